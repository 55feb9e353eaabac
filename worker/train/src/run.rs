//! What every process of a run derives from its configuration.

use std::ops::Range;
use std::sync::Arc;

use dunlin_model::training::layout::EMBEDDING;
use dunlin_model::training::{ParameterLayout, ParameterTensor, untrained};
use dunlin_model::{ModelConfig, ModelFile};

use crate::average::has_feedback;
use crate::codec::Codec;
use crate::config::{ConfigError, TrainingConfig};
use crate::optimizer::Optimizer;
use crate::parts::TensorRange;

/// Averages that a stage keeps for peers that join.
pub(crate) const UPDATES_KEPT: usize = 4;

/// What a message has besides the values of a call.
const CALL_BYTES_AROUND: usize = 64 << 10;
/// Memory for calls that wait at a peer.
const CALLS_BYTES_MAX: usize = 512 << 20;
/// Calls that wait at a peer, whatever their size: at least, and at most.
const CALLS: (usize, usize) = (8, 256);

/// A run: its configuration and the model it trains.
#[derive(Clone)]
pub struct Run {
    /// As the user wrote it.
    pub config: TrainingConfig,
    /// The shape of the model that is trained.
    pub model: ModelConfig,
    /// The file of the model that an adapter is trained over.
    pub base: Option<Arc<ModelFile>>,
}

impl Run {
    /// A run that trains `model`, or an adapter over it; that needs [`Run::over`] to compute.
    ///
    /// # Errors
    /// When there are more stages than blocks, or sequences are longer than the model can take.
    pub fn new(config: TrainingConfig, model: ModelConfig) -> Result<Self, ConfigError> {
        if let Some(why) = untrained(&model) {
            return Err(ConfigError::Field {
                field: "model".to_owned(),
                problem: format!(
                    "is a {}, which {why}: such models are served here, and not trained",
                    model.architecture
                ),
            });
        }
        if config.stages > model.layers {
            return Err(ConfigError::Field {
                field: "stages".to_owned(),
                problem: format!("is {}, but the model has {} layers only", config.stages, model.layers),
            });
        }
        let (rows, longest) = (config.rows_per_sequence(), model.trained_length_max());
        if rows > longest as usize {
            return Err(ConfigError::Field {
                field: "sequenceLength".to_owned(),
                problem: format!("makes sequences of {rows} rows, but the model takes {longest} at most"),
            });
        }
        Ok(Self { config, model, base: None })
    }

    /// A run that trains over the model in `file`.
    ///
    /// # Errors
    /// As [`Run::new`].
    pub fn over(config: TrainingConfig, file: ModelFile) -> Result<Self, ConfigError> {
        let run = Self::new(config, file.config().clone())?;
        Ok(Self { base: Some(Arc::new(file)), ..run })
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
        match &self.config.adapter {
            Some(shape) => ParameterLayout::of_adapter(&self.model, shape, self.layers(stage), stage == 0),
            None => self.model_layout(stage),
        }
    }

    /// All tensors of the model in a stage, trained or not.
    fn model_layout(&self, stage: u32) -> ParameterLayout {
        ParameterLayout::new(&self.model, self.layers(stage), stage == 0, stage + 1 == self.config.stages)
    }

    /// Do the first and the last stage share the embedding?
    #[must_use]
    pub fn shares_embedding(&self) -> bool {
        self.model.tied && self.config.stages > 1 && self.config.adapter.is_none()
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
        self.rows_per_microbatch() * self.model.hidden
    }

    /// Rows of a microbatch: one for every token, and those of a prompt.
    #[must_use]
    pub fn rows_per_microbatch(&self) -> usize {
        self.config.microbatch * self.config.rows_per_sequence()
    }

    /// Work of a row at every stage, 1 on average: multiplications with its matrices, and with the rows before it in attention.
    #[must_use]
    pub fn costs(&self) -> Vec<f64> {
        let stages = 0..self.config.stages;
        let work: Vec<f64> = stages
            .map(|stage| {
                let layout = self.model_layout(stage);
                // The embedding is a table for the first stage, and a matrix for the last.
                let looked_up = |name: &str| name == EMBEDDING && stage + 1 < self.config.stages;
                let matrices = layout.tensors().iter().filter(|t| t.decay && !looked_up(&t.name));
                let attention = self.layers(stage).len() * self.config.sequence_length * self.model.q_width();
                (matrices.map(|t| t.len()).sum::<usize>() + attention) as f64
            })
            .collect();
        let mean = work.iter().sum::<f64>() / work.len().max(1) as f64;
        work.iter().map(|w| w / mean.max(1.0)).collect()
    }

    /// Memory that a peer of a stage needs in any case, in bytes; activations and what travels come on top.
    ///
    /// Per parameter: its value, what the optimizer keeps, a sum of gradients (8), what averages have lost, and the last updates; with delayed updates
    /// the value before the last and another sum; in f32, a packed matrix and, but for an embedding, its transpose and its gradient. Under an adapter, the model's weights as their file has them.
    #[must_use]
    pub fn stage_bytes_min(&self, stage: u32) -> u64 {
        let feedback = usize::from(has_feedback(self.config.wire.gradients));
        let sums = if self.config.optimizer.delayed_updates { 4 } else { 2 };
        let each = 4 * (1 + self.state_slots() + sums + feedback + UPDATES_KEPT);
        let packed = |t: &ParameterTensor| match (t.decay, t.name.as_str()) {
            (true, EMBEDDING) => 4,
            (true, _) => 12,
            (false, _) => 8,
        };
        let layout = self.layout(stage);
        let trained: usize = layout.tensors().iter().map(|t| t.len() * (each + packed(t))).sum();
        let base = self.base.as_ref().map_or(0, |file| {
            let blocks: u64 = self.layers(stage).map(|layer| file.layer_bytes(layer)).sum();
            let embedding = if stage == 0 { file.embedding_bytes() } else { 0 };
            let last = stage + 1 == self.config.stages && !(self.model.tied && stage == 0);
            blocks + embedding + if last { file.head_bytes() } else { 0 }
        });
        trained as u64 + base
    }

    /// The largest call, or answer to one, in bytes: rows of a microbatch both ways, or its tokens and targets, and what is around them.
    #[must_use]
    pub fn call_bytes_max(&self) -> usize {
        let rows = self.row_codec().bytes(self.values_per_microbatch());
        let tokens = 4 * self.config.microbatch * self.config.sequence_length;
        2 * rows.max(tokens) + CALL_BYTES_AROUND
    }

    /// Calls that may wait at a peer: as many as there is work for, but no more than fit in a part of its memory.
    #[must_use]
    pub fn calls_max(&self) -> usize {
        (CALLS_BYTES_MAX / self.call_bytes_max()).clamp(CALLS.0, CALLS.1)
    }

    /// How rows travel.
    #[must_use]
    pub fn row_codec(&self) -> Codec {
        self.config.wire.activations.into()
    }

    /// Vectors beside the parameters in the state of a stage: the optimizer's, and with delayed updates the parameters before the last.
    #[must_use]
    pub fn state_slots(&self) -> usize {
        self.optimizer_slots() + usize::from(self.config.optimizer.delayed_updates)
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

#[cfg(test)]
mod tests {
    use super::Run;
    use crate::config::{InitialModel, TrainingConfig, model_config};

    /// 13 million parameters in 4 layers were measured to take 80 bytes each.
    #[test]
    fn a_stage_needs_some_fifty_bytes_a_parameter_in_any_case() {
        let json = serde_json::json!({
            "model": {"config": {"hiddenSize": 512, "layers": 4, "heads": 8, "ffn": 1408, "contextLength": 32, "tied": true}},
            "data": {"text": {"path": "a"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 1,
            "optimizer": {"kind": "AdamW", "learningRate": 0.1},
        });
        let config = TrainingConfig::from_json(&json.to_string()).unwrap();
        let InitialModel::Config(shape) = &config.model else { unreachable!() };
        let model = model_config(shape, 256).unwrap();
        let run = Run::new(config, model).unwrap();
        let each = run.stage_bytes_min(0) as f64 / run.layout(0).len() as f64;
        assert!((40.0..60.0).contains(&each), "{each}");
    }

    #[test]
    fn what_cannot_be_trained_is_refused_by_name() {
        let json = serde_json::json!({
            "model": {"config": {"hiddenSize": 16, "layers": 2, "heads": 2, "ffn": 24, "contextLength": 32}},
            "data": {"text": {"path": "a"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 1,
            "optimizer": {"kind": "AdamW", "learningRate": 0.1},
        });
        let config = TrainingConfig::from_json(&json.to_string()).unwrap();
        let InitialModel::Config(shape) = &config.model else { unreachable!() };
        let mut model = model_config(shape, 256).unwrap();
        (model.architecture, model.block.attention.qk_norm) = ("qwen3".to_owned(), true);
        let refused = Run::new(config, model).err().unwrap().to_string();
        assert!(refused.contains("model is a qwen3, which norms queries and keys"), "{refused}");
    }

    #[test]
    fn the_output_matrix_is_work_of_the_last_stage_and_the_embedding_of_nobody() {
        for tied in [true, false] {
            let json = serde_json::json!({
                "model": {"config": {"hiddenSize": 16, "layers": 4, "heads": 2, "ffn": 24, "contextLength": 32, "tied": tied}},
                "data": {"text": {"path": "a"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 1, "seed": 9,
                "stages": 2, "optimizer": {"kind": "AdamW", "learningRate": 0.1},
            });
            let config = TrainingConfig::from_json(&json.to_string()).unwrap();
            let InitialModel::Config(shape) = &config.model else { unreachable!() };
            let model = model_config(shape, 256).unwrap();
            let costs = Run::new(config, model).unwrap().costs();
            // Two blocks each: four matrices of attention, three of the feed-forward part, eight rows before.
            let blocks = f64::from(2 * (4 * 16 * 16 + 3 * 16 * 24 + 8 * 16));
            let head = f64::from(256 * 16);
            let mean = blocks + head / 2.0;
            assert_eq!(costs, [blocks / mean, (blocks + head) / mean]);
        }
    }
}
