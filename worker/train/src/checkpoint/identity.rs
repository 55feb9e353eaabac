//! What a checkpoint is of.

use dunlin_model::ModelConfig;

use super::texts::Texts;
use crate::config::TrainingConfig;

/// What a checkpoint is of.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    /// Updates so far.
    pub step: u64,
    /// The configuration of the run.
    pub config: &'a TrainingConfig,
    /// The shape of the model that is trained.
    pub model: &'a ModelConfig,
    /// What goes beside it.
    pub texts: &'a Texts,
    /// Digest of the tokens.
    pub data_sha256: &'a str,
    /// Vectors of the optimizer for each tensor.
    pub slots: usize,
}
