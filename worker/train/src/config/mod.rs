//! What a training run is: model, data, batch, optimizer, stages, wire, checkpoints. One file, JSON or YAML, checked before anything runs.

mod changes;
mod error;
mod model;
mod schema;
mod strict;
mod validate;

pub use changes::{Change, Changes};
pub use dunlin_model::adapter::AdapterShape;
pub use dunlin_swarm::run::{
    ActivationWire, Architecture, CheckpointSpec, GradientWire, LoraShape, ModelShape, OptimizerKind,
    OptimizerSpec, PromptShape, ScheduleKind, ScheduleSpec, ValidationSpec, WireSpec,
};
pub use error::ConfigError;
pub use model::{InitialModel, model_config};
pub use schema::{DataConfig, TokenizerConfig, TrainingConfig};
