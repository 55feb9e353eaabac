//! A stage in training: parameters, gradient sums, optimizer state, and the last few averages for those that join.
//!
//! Values that travel are bytes here, little-endian.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::ModelError;
use dunlin_model::training::{Backward, Base, Grad, ParameterLayout, StageInput, StageModel, TrainingError};
use thiserror::Error;

use crate::average::{Average, Share, has_feedback};
use crate::codec::{Codec, CodecError};
use crate::optimizer::{Optimizer, OptimizerError, OptimizerState, TensorRange};
use crate::run::Run;
use crate::schedule::learning_rate;
use crate::squares::sums_of_squares;

/// Averages that are kept for peers that join.
pub(crate) const UPDATES_KEPT: usize = 4;

/// Why a stage cannot go on.
#[derive(Debug, Error)]
pub enum StageError {
    /// A microbatch cannot be computed.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// The update cannot be made.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The model that an adapter is trained over cannot be read.
    #[error("the model under the adapter cannot be used")]
    Base(#[from] ModelError),
    /// Values that arrived cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Values that arrived are not those of this stage.
    #[error("{0}")]
    Shape(String),
}

/// What was computed for a call.
#[derive(Debug, Default)]
pub struct Computed {
    /// Encoded rows, or gradients of rows.
    pub data: Vec<u8>,
    /// At the last stage: summed over tokens.
    pub loss: Option<f64>,
}

/// The average of a step, scaled as it was applied.
#[derive(Clone, Debug)]
pub struct Update {
    /// Updates before it.
    pub step: u64,
    /// One value per parameter.
    pub gradient: Arc<Vec<f32>>,
}

/// A stage in training.
pub struct Stage {
    run: Arc<Run>,
    index: u32,
    step: u64,
    model: StageModel,
    optimizer: Optimizer,
    parameters: Vec<f32>,
    /// Shared with whoever is sending them.
    sums: Arc<Vec<i64>>,
    /// What averages have lost and the next one gets; as long as the parameters, empty without error feedback.
    residual: Arc<Vec<f32>>,
    updates: VecDeque<Update>,
}

impl Stage {
    /// Stage `index` with its first values.
    ///
    /// # Errors
    /// When the configuration makes no stage.
    pub fn initial(run: &Arc<Run>, index: u32, pool: &Pool) -> Result<Self, StageError> {
        let model = Self::model(run, index)?;
        let parameters = model.initial(run.config.seed);
        let slots = vec![vec![0.0; parameters.len()]; Optimizer::slots(&run.config.optimizer)];
        Self::of_model(run, index, 0, model, (parameters, slots), pool)
    }

    /// Stage `index` after `step` updates.
    ///
    /// # Errors
    /// When the vectors are not those of this stage.
    pub fn from_state(
        run: &Arc<Run>,
        index: u32,
        step: u64,
        parameters: Vec<f32>,
        slots: Vec<Vec<f32>>,
        pool: &Pool,
    ) -> Result<Self, StageError> {
        Self::of_model(run, index, step, Self::model(run, index)?, (parameters, slots), pool)
    }

    /// What computes stage `index`; an adapter's weights are read.
    fn model(run: &Run, index: u32) -> Result<StageModel, StageError> {
        let (first, last) = (index == 0, index + 1 == run.config.stages);
        let (layers, length) = (run.layers(index), run.config.sequence_length);
        let Some(shape) = &run.config.adapter else {
            return Ok(StageModel::new(&run.model, layers, first, last, length)?);
        };
        let file = run.base.as_ref().ok_or_else(|| {
            StageError::Shape("an adapter is trained over a model, and none is open".to_owned())
        })?;
        let base = Base::load(file, layers.clone(), first, last)?;
        Ok(StageModel::over(&run.model, base, shape, layers, length)?)
    }

    fn of_model(
        run: &Arc<Run>,
        index: u32,
        step: u64,
        mut model: StageModel,
        (parameters, slots): (Vec<f32>, Vec<Vec<f32>>),
        pool: &Pool,
    ) -> Result<Self, StageError> {
        model.set_parameters(pool, &parameters)?;
        let tensors: Vec<TensorRange> = model
            .layout()
            .tensors()
            .iter()
            .map(|t| TensorRange { range: t.range(), decay: t.decay })
            .collect();
        let state = OptimizerState { step, slots };
        let optimizer = Optimizer::with_state(&run.config.optimizer, tensors, parameters.len(), state)?;
        let sums = Arc::new(vec![0; parameters.len()]);
        let kept = if has_feedback(run.config.wire.gradients) { parameters.len() } else { 0 };
        let residual = Arc::new(vec![0.0; kept]);
        let run = Arc::clone(run);
        Ok(Self { run, index, step, model, optimizer, parameters, sums, residual, updates: VecDeque::new() })
    }

    /// Which stage.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Updates applied.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Its tensors.
    #[must_use]
    pub fn layout(&self) -> &ParameterLayout {
        self.model.layout()
    }

    /// Parameters and the optimizer's vectors.
    #[must_use]
    pub fn state(&self) -> (&[f32], &[Vec<f32>]) {
        (&self.parameters, &self.optimizer.state().slots)
    }

    /// Encoded outputs of encoded inputs (tokens at the first stage).
    ///
    /// # Errors
    /// When the input is not sound or a value is not finite.
    pub fn forward(&mut self, pool: &Pool, input: &[u8]) -> Result<Computed, StageError> {
        let input = self.input(input)?;
        let rows = self.model.forward(pool, input.as_input(), self.run.config.microbatch)?;
        Ok(Computed { data: self.encode(&rows)?, loss: None })
    }

    /// The loss of a microbatch, at the last stage.
    ///
    /// # Errors
    /// When the input is not sound or a value is not finite.
    pub fn loss(&mut self, pool: &Pool, input: &[u8], targets: &[u8]) -> Result<Computed, StageError> {
        let input = self.input(input)?;
        let loss = self.model.loss(pool, input.as_input(), &tokens(targets)?)?;
        Ok(Computed { data: Vec::new(), loss: Some(loss) })
    }

    /// Input gradients (none at the first stage) from inputs and output gradients, or targets at the last stage. The parameters' gradients
    /// are added to the sums if `accumulate`.
    ///
    /// # Errors
    /// When the input is not sound, or a value is not finite or too large; nothing is added then.
    pub fn backward(
        &mut self,
        pool: &Pool,
        input: &[u8],
        output: &[u8],
        accumulate: bool,
    ) -> Result<Computed, StageError> {
        let input = self.input(input)?;
        let last = self.index + 1 == self.run.config.stages;
        let (targets, rows);
        let grad = if last {
            targets = tokens(output)?;
            Grad::Targets { targets: &targets, scale: self.run.gradient_scale() }
        } else {
            rows = self.decode(output)?;
            Grad::Rows(&rows)
        };
        let sums = accumulate.then(|| Arc::make_mut(&mut self.sums).as_mut_slice());
        let Backward { input_gradient, loss } =
            self.model.backward(pool, input.as_input(), grad, sums, self.run.gradient_limit())?;
        let data = match input_gradient {
            Some(rows) => self.encode(&rows)?,
            None => Vec::new(),
        };
        Ok(Computed { data, loss })
    }

    /// Gradient sums of all parameters.
    #[must_use]
    pub fn sums(&self) -> &[i64] {
        &self.sums
    }

    /// Empties the sums.
    pub fn clear(&mut self) {
        zero(&mut self.sums);
    }

    /// What this peer contributes to the average of a shard, as of now.
    #[must_use]
    pub fn share(&self, shard: u32) -> Share {
        let tensors = self.shard(shard).into_iter().map(|t| t.range).collect();
        let (sums, residual) = (Arc::clone(&self.sums), Arc::clone(&self.residual));
        Share::new(self.run.config.wire.gradients, sums, residual, tensors)
    }

    /// Adds the sums of another peer of this stage.
    ///
    /// # Errors
    /// When there are more or fewer of them.
    pub fn add_sums(&mut self, sums: &[i64]) -> Result<(), StageError> {
        if sums.len() != self.sums.len() {
            return Err(StageError::Shape(format!("{} gradient sums, not {}", sums.len(), self.sums.len())));
        }
        Arc::make_mut(&mut self.sums).iter_mut().zip(sums).for_each(|(sum, more)| *sum += more);
        Ok(())
    }

    /// The tensors of a shard, as they lie in this stage.
    fn shard(&self, shard: u32) -> Vec<TensorRange> {
        self.run.shard(self.layout(), self.index, shard)
    }

    /// Sum of squares of every tensor of a shard's average, in canonical order.
    #[must_use]
    pub fn squares(&self, pool: &Pool, shard: u32, average: &[f32]) -> Vec<f64> {
        let mut at = 0;
        let tensors: Vec<TensorRange> = self
            .shard(shard)
            .into_iter()
            .map(|t| {
                let range = at..at + t.range.len();
                at = range.end;
                TensorRange { range, ..t }
            })
            .collect();
        sums_of_squares(pool, average, &tensors)
    }

    /// Updates with the averages of all shards, of which [`Stage::share`] was a part; empties the sums, and keeps what the averages have lost.
    /// The hash of the new parameters.
    ///
    /// # Errors
    /// When a shard is missing, or a parameter is no longer finite.
    pub fn apply(
        &mut self,
        pool: &Pool,
        scale: f32,
        averages: &BTreeMap<u32, Arc<Average>>,
    ) -> Result<u64, StageError> {
        let mut gradient = vec![0.0; self.parameters.len()];
        let mut covered = 0;
        for (&shard, average) in averages {
            let mut at = 0;
            for tensor in self.shard(shard) {
                let values = average.values.get(at..at + tensor.range.len());
                let values =
                    values.ok_or_else(|| StageError::Shape(format!("a short average of shard {shard}")))?;
                gradient[tensor.range.clone()].iter_mut().zip(values).for_each(|(g, v)| *g = v * scale);
                at += tensor.range.len();
            }
            covered += at;
        }
        if covered != gradient.len() {
            let all = gradient.len();
            return Err(StageError::Shape(format!("averages of {covered} of {all} parameters")));
        }
        if !self.residual.is_empty() {
            for (&shard, average) in averages {
                let remaining = self.share(shard).remaining(pool, average)?;
                let residual = Arc::make_mut(&mut self.residual);
                for (range, lost) in remaining {
                    residual[range].copy_from_slice(&lost);
                }
            }
        }
        self.update_with(pool, Arc::new(gradient))
    }

    /// Updates with the scaled average of a step that was made without this peer. Whether the residual was a part of it is not known: it is
    /// given up, because sending it twice would be an error, and not sending it is only a loss. The hash of the new parameters.
    ///
    /// # Errors
    /// When it has another length, or a parameter is no longer finite.
    pub fn follow(&mut self, pool: &Pool, gradient: Arc<Vec<f32>>) -> Result<u64, StageError> {
        zero(&mut self.residual);
        self.update_with(pool, gradient)
    }

    fn update_with(&mut self, pool: &Pool, gradient: Arc<Vec<f32>>) -> Result<u64, StageError> {
        let rate = learning_rate(&self.run.config.optimizer, self.step, self.run.config.steps);
        self.optimizer.step(pool, rate, 1.0, &mut self.parameters, &gradient)?;
        self.model.set_parameters(pool, &self.parameters)?;
        self.clear();
        self.updates.push_back(Update { step: self.step, gradient });
        if self.updates.len() > UPDATES_KEPT {
            self.updates.pop_front();
        }
        self.step += 1;
        Ok(hash(&self.parameters))
    }

    /// The scaled average that led from `step` to the next, if it is still here.
    #[must_use]
    pub fn update(&self, step: u64) -> Option<Update> {
        self.updates.iter().find(|u| u.step == step).cloned()
    }

    /// Values in one row of the state: a parameter and what the optimizer remembers of it.
    #[must_use]
    pub fn state_width(&self) -> usize {
        1 + self.optimizer.state().slots.len()
    }

    /// Parameters and the optimizer's vectors of a range, one after the other.
    #[must_use]
    pub fn state_of(&self, range: Range<usize>) -> Vec<f32> {
        let range = range.start.min(self.parameters.len())..range.end.min(self.parameters.len());
        let mut out = Vec::with_capacity(range.len() * self.state_width());
        out.extend_from_slice(&self.parameters[range.clone()]);
        for slot in &self.optimizer.state().slots {
            out.extend_from_slice(&slot[range.clone()]);
        }
        out
    }

    fn codec(&self) -> Codec {
        self.run.row_codec()
    }

    fn encode(&self, rows: &[f32]) -> Result<Vec<u8>, StageError> {
        let mut out = Vec::new();
        self.codec().encode(rows, &mut out)?;
        Ok(out)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<f32>, StageError> {
        let mut out = Vec::new();
        self.codec().decode(bytes, self.run.values_per_microbatch(), &mut out)?;
        Ok(out)
    }

    fn input(&self, bytes: &[u8]) -> Result<Input, StageError> {
        if self.index == 0 {
            return Ok(Input::Tokens(tokens(bytes)?));
        }
        Ok(Input::Rows(self.decode(bytes)?))
    }
}

/// A decoded input.
enum Input {
    Tokens(Vec<u32>),
    Rows(Vec<f32>),
}

impl Input {
    fn as_input(&self) -> StageInput<'_> {
        match self {
            Self::Tokens(tokens) => StageInput::Tokens(tokens),
            Self::Rows(rows) => StageInput::Rows(rows),
        }
    }
}

fn tokens(bytes: &[u8]) -> Result<Vec<u32>, StageError> {
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(StageError::Shape(format!("{} bytes are not whole tokens", bytes.len())));
    }
    Ok(words.iter().map(|w| u32::from_le_bytes(*w)).collect())
}

/// All zero; a copy that somebody else reads stays.
fn zero<T: Clone + Default>(values: &mut Arc<Vec<T>>) {
    match Arc::get_mut(values) {
        Some(values) => values.fill(T::default()),
        None => *values = Arc::new(vec![T::default(); values.len()]),
    }
}

/// A hash over the bits of all parameters: 8 lanes of multiply and add, so that it costs no more than reading them.
fn hash(parameters: &[f32]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    const LANES: usize = 8;
    let mut lanes = [0xcbf2_9ce4_8422_2325u64; LANES];
    let (blocks, rest) = parameters.as_chunks::<LANES>();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = (*lane ^ u64::from(value.to_bits())).wrapping_mul(PRIME);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = (*lane ^ u64::from(value.to_bits())).wrapping_mul(PRIME);
    }
    lanes.iter().fold(parameters.len() as u64, |all, lane| (all ^ lane).wrapping_mul(PRIME).rotate_left(29))
}

#[cfg(test)]
mod tests;
