//! A training run: what its manifest and its workers both say of it, each struct once.
//!
//! `crds/` makes the manifest of these parts (feature `schema`: JSON Schema with the rules of the API server as `x-kubernetes-validations`),
//! `worker/train` the file that workers read. A field that is added here is a field of both, and has one default: a run whose manifest leaves it
//! out means the same to whoever reads it. Parts that name a place (data, a model that is there, a destination) differ on both sides: a manifest
//! names volumes and Secrets, a worker what is mounted.
//!
//! * [`model`] the shape of a new model · [`adapter`] what is trained over one that stays as it is · [`optimizer`] how gradients become updates
//! * [`conduct`] how numbers travel, when the loss is measured, what is kept
//!
//! None of these structs denies fields that it does not know, because an operator must read the manifests of a newer one. Workers, which must not
//! ignore what could change numbers, deny them where they read.

pub mod adapter;
pub mod conduct;
pub mod model;
pub mod optimizer;

pub use adapter::{LoraShape, Projection, PromptShape};
pub use conduct::{ActivationWire, CheckpointSpec, GradientWire, ValidationSpec, WireSpec};
pub use model::{Architecture, ModelShape};
pub use optimizer::{OptimizerKind, OptimizerSpec, ScheduleKind, ScheduleSpec};

/// The field of a JSON object that has the document.
#[must_use]
pub fn text_field() -> String {
    "text".to_owned()
}

/// Share of the tokens, at the end, that is held back to measure the loss on.
#[must_use]
pub fn validation_fraction() -> f64 {
    0.01
}

/// Rules of the API server in CEL, each with what it says of an object that breaks it.
#[cfg(feature = "schema")]
fn rules(rules: &[(&str, &str)]) -> serde_json::Value {
    rules.iter().map(|(rule, message)| serde_json::json!({"rule": rule, "message": message})).collect()
}
