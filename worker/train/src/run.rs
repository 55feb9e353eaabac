//! What every process of a run derives from its configuration.

use std::ops::Range;

use dunlin_model::ModelConfig;
use dunlin_model::training::ParameterLayout;
use dunlin_model::training::layout::EMBEDDING;

use crate::codec::Codec;
use crate::config::{ConfigError, TrainingConfig};
use crate::optimizer::{Optimizer, TensorRange};

/// A run: its configuration and the model it trains.
#[derive(Clone, Debug)]
pub struct Run {
    /// As the user wrote it.
    pub config: TrainingConfig,
    /// The model.
    pub model: ModelConfig,
}

impl Run {
    /// A run that trains `model`.
    ///
    /// # Errors
    /// When there are more stages than blocks.
    pub fn new(config: TrainingConfig, model: ModelConfig) -> Result<Self, ConfigError> {
        if config.stages > model.layers {
            return Err(ConfigError::Field {
                field: "stages".to_owned(),
                problem: format!("is {}, but the model has {} layers only", config.stages, model.layers),
            });
        }
        Ok(Self { config, model })
    }

    /// Blocks of a stage: as even as possible.
    #[must_use]
    pub fn layers(&self, stage: u32) -> Range<u32> {
        let at = |stage: u32| {
            let (layers, stages) = (u64::from(self.model.layers), u64::from(self.config.stages));
            u32::try_from(layers * u64::from(stage) / stages).unwrap_or(self.model.layers)
        };
        at(stage)..at(stage + 1)
    }

    /// Tensors of a stage.
    #[must_use]
    pub fn layout(&self, stage: u32) -> ParameterLayout {
        ParameterLayout::new(&self.model, self.layers(stage), stage == 0, stage + 1 == self.config.stages)
    }

    /// Do the first and the last stage share the embedding?
    #[must_use]
    pub fn shares_embedding(&self) -> bool {
        self.model.tied && self.config.stages > 1
    }

    /// The tensors of a shard in a stage: all but the shared embedding, or that alone.
    pub(crate) fn shard(&self, layout: &ParameterLayout, stage: u32, shard: u32) -> Vec<TensorRange> {
        let shared = |name: &str| self.shares_embedding() && name == EMBEDDING;
        let here = layout.tensors().iter().filter(|t| {
            if shard == self.config.stages { shared(&t.name) } else { shard == stage && !shared(&t.name) }
        });
        here.map(|t| TensorRange { range: t.range(), decay: t.decay }).collect()
    }

    /// What the gradient of a summed loss is multiplied by, so that the sum over the global batch is the gradient of the mean.
    #[must_use]
    pub fn gradient_scale(&self) -> f32 {
        (1.0 / self.config.tokens_per_step() as f64) as f32
    }

    /// The largest value of a microbatch's gradient: as many as a step has never overflow a sum.
    #[must_use]
    pub fn gradient_limit(&self) -> f32 {
        // A tied embedding gets two gradients of each.
        dunlin_kernels::gradient_sum::LIMIT_MAX / (2 * self.config.microbatches()) as f32
    }

    /// Values of the rows of a microbatch.
    #[must_use]
    pub fn values_per_microbatch(&self) -> usize {
        self.config.microbatch * self.config.sequence_length * self.model.hidden
    }

    /// How rows travel.
    #[must_use]
    pub fn row_codec(&self) -> Codec {
        self.config.wire.activations.into()
    }

    /// Vectors that the optimizer keeps beside the parameters.
    #[must_use]
    pub fn optimizer_slots(&self) -> usize {
        Optimizer::slots(&self.config.optimizer)
    }

    /// Tokens of a validation.
    #[must_use]
    pub fn validation_tokens(&self) -> u64 {
        let batches = self.config.validation.as_ref().map_or(0, |v| v.batches);
        (batches * self.config.microbatch * self.config.sequence_length) as u64
    }
}
