//! What a training run is: model, data, batch, optimizer, stages, wire, checkpoints. One file, JSON or YAML, checked before anything runs.

mod changes;
mod error;
mod model;
mod schema;
mod validate;

pub use changes::{Change, Changes};
pub use dunlin_model::adapter::{AdapterShape, LoraShape, PromptShape};
pub use dunlin_swarm::run::{ActivationWire, GradientWire, OptimizerKind, ScheduleKind};
pub use error::ConfigError;
pub use model::{Architecture, ModelShape, ModelSource};
pub use schema::{
    CheckpointConfig, DataConfig, OptimizerConfig, ScheduleConfig, TokenizerConfig, TrainingConfig,
    ValidationConfig, WireConfig,
};
