//! A stage in training: parameters, gradient sums, optimizer state, and the last few averages for those that join.
//!
//! Values that travel are bytes here, little-endian.
//!
//! * [`memory`] whether it still holds what was written
//! * [`snapshot`] its state, for those that read it while training goes on

mod memory;
pub mod snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dunlin_kernels::{GradientSums, Pool};
use dunlin_model::ModelError;
use dunlin_model::training::{Backward, Base, Grad, ParameterLayout, StageInput, StageModel, TrainingError};
use thiserror::Error;

use crate::average::{Average, Share, has_feedback};
use crate::codec::{Codec, CodecError};
use crate::optimizer::{Checked, Optimizer, OptimizerError, OptimizerState};
use crate::parts::TensorRange;
use crate::run::{Run, UPDATES_KEPT};
use crate::schedule::learning_rate;
use crate::squares::sums_of_squares;
pub use snapshot::Snapshot;

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
    /// A value in memory is not the one that was written.
    #[error("memory has changed: {0}")]
    Memory(String),
}

impl StageError {
    /// Has memory changed by itself? Then nothing here is to be trusted any more.
    #[must_use]
    pub fn is_of_memory(&self) -> bool {
        matches!(
            self,
            Self::Memory(_)
                | Self::Optimizer(OptimizerError::Changed { .. })
                | Self::Codec(CodecError::Changed(_))
        )
    }
}

/// What was computed for a call.
#[derive(Debug, Default)]
pub struct ComputedCall {
    /// Encoded rows, or gradients of rows.
    pub data: Vec<u8>,
    /// At the last stage: summed over tokens.
    pub loss: Option<f64>,
}

/// What a computation is part of.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    /// The step that it is computed for.
    pub step: u64,
    /// It measures what all updates before that step have made.
    pub validation: bool,
}

/// Parameters that a stage has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// After all updates.
    Now,
    /// Before the last.
    Before,
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
///
/// With delayed updates (as hivemind's `Optimizer` and ZeRO-Offload have them) step `k` is computed with the parameters before the last update, those
/// after `k - 1` updates: so the averages of a step are formed while the next one is computed. Every step then has sums of its own, and which
/// parameters it is computed with depends on nothing but its number.
pub struct Stage {
    run: Arc<Run>,
    index: u32,
    step: u64,
    model: StageModel,
    optimizer: Optimizer,
    parameters: Checked,
    /// Those before the last update, when updates are delayed.
    before: Option<Checked>,
    /// Which of both the model has packed.
    packed: Option<Version>,
    /// Something was computed with what is packed since it was compared.
    used: bool,
    /// The sums of bits of the weights below an adapter.
    frozen: Vec<u64>,
    /// Of this step, and of the one behind it when updates are delayed. Shared with whoever is sending them.
    sums: VecDeque<Arc<GradientSums>>,
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

    /// Stage `index` after `step` updates. `slots` are the optimizer's vectors, and behind them the parameters before the last update if there were
    /// any: without, updates are delayed from here on, and with them but no delay they are of no use.
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
        (parameters, mut slots): (Vec<f32>, Vec<Vec<f32>>),
        pool: &Pool,
    ) -> Result<Self, StageError> {
        model.set_parameters(pool, &parameters)?;
        let of_optimizer = Optimizer::slots(&run.config.optimizer);
        let before = if slots.len() == of_optimizer + 1 { slots.pop() } else { None };
        let delayed = run.config.optimizer.delayed_updates;
        let before = delayed.then(|| before.unwrap_or_else(|| parameters.clone()));
        if before.as_ref().is_some_and(|before| before.len() != parameters.len()) {
            return Err(StageError::Shape(
                "fewer parameters before the last update than after it".to_owned(),
            ));
        }
        let tensors: Vec<TensorRange> = model
            .layout()
            .tensors()
            .iter()
            .map(|t| TensorRange { range: t.range(), decay: t.decay })
            .collect();
        let (len, state) = (parameters.len(), OptimizerState { step, slots });
        let optimizer = Optimizer::with_state(&run.config.optimizer, tensors, len, state)?;
        let open = if delayed { 2 } else { 1 };
        let kept = if has_feedback(run.config.wire.gradients) { len } else { 0 };
        let mut stage = Self {
            run: Arc::clone(run),
            index,
            step,
            model,
            parameters: optimizer.checked(parameters)?,
            before: before.map(|before| optimizer.checked(before)).transpose()?,
            optimizer,
            packed: Some(Version::Now),
            used: false,
            frozen: Vec::new(),
            sums: (0..open).map(|_| Arc::new(GradientSums::new(len))).collect(),
            residual: Arc::new(vec![0.0; kept]),
            updates: VecDeque::new(),
        };
        stage.sum_frozen(pool);
        Ok(stage)
    }

    /// Index of the stage in the pipeline.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Updates applied.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The tensors that the vector of parameters consists of, in order.
    #[must_use]
    pub fn layout(&self) -> &ParameterLayout {
        self.model.layout()
    }

    /// Its state as it is now: parameters, and what is kept beside them ([`Run::state_slots`] vectors), which are the optimizer's vectors and the parameters before the
    /// last update.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let vectors = std::iter::once(&self.parameters).chain(self.optimizer.vectors()).chain(&self.before);
        Snapshot::new(self.index, self.step, vectors.cloned().collect())
    }

    /// Packs the parameters that a purpose asks for, if they are not.
    fn pack(&mut self, pool: &Pool, purpose: Purpose) -> Result<(), StageError> {
        let version = match (purpose.step.checked_sub(self.step), &self.before) {
            (Some(0), Some(_)) if !purpose.validation => Version::Before,
            (Some(1), Some(_)) if !purpose.validation => Version::Now,
            (Some(0), _) => Version::Now,
            _ => {
                let (asked, here) = (purpose.step, self.step);
                return Err(StageError::Shape(format!("step {asked} cannot be computed at step {here}")));
            }
        };
        if self.packed != Some(version) {
            // What was computed with the others counts.
            self.check(pool)?;
            let before = self.before.as_ref().filter(|_| version == Version::Before);
            self.packed = None;
            self.model.set_parameters(pool, before.unwrap_or(&self.parameters).values())?;
            self.packed = Some(version);
        }
        self.used = true;
        Ok(())
    }

    /// Encoded outputs of encoded inputs (tokens at the first stage).
    ///
    /// # Errors
    /// When the input is not sound or a value is not finite.
    pub fn forward(
        &mut self,
        pool: &Pool,
        purpose: Purpose,
        input: &[u8],
    ) -> Result<ComputedCall, StageError> {
        self.pack(pool, purpose)?;
        let input = self.input(input)?;
        let rows = self.model.forward(pool, input.as_input(), self.run.config.microbatch)?;
        Ok(ComputedCall { data: self.encode(&rows)?, loss: None })
    }

    /// The loss of a microbatch, at the last stage.
    ///
    /// # Errors
    /// When the input is not sound or a value is not finite.
    pub fn loss(
        &mut self,
        pool: &Pool,
        purpose: Purpose,
        input: &[u8],
        targets: &[u8],
    ) -> Result<ComputedCall, StageError> {
        self.pack(pool, purpose)?;
        let input = self.input(input)?;
        let loss = self.model.loss(pool, input.as_input(), &tokens(targets)?)?;
        Ok(ComputedCall { data: Vec::new(), loss: Some(loss) })
    }

    /// Input gradients (none at the first stage) from inputs and output gradients, or targets at the last stage. The parameters' gradients
    /// are added to the sums of the step if `accumulate`.
    ///
    /// # Errors
    /// When the input is not sound, or a value is not finite or too large; nothing is added then.
    pub fn backward(
        &mut self,
        pool: &Pool,
        step: u64,
        input: &[u8],
        output: &[u8],
        accumulate: bool,
    ) -> Result<ComputedCall, StageError> {
        self.pack(pool, Purpose { step, validation: false })?;
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
        let sums = (step.checked_sub(self.step))
            .and_then(|ahead| self.sums.get_mut(usize::try_from(ahead).ok()?))
            .filter(|_| accumulate)
            .map(Arc::make_mut);
        let Backward { input_gradient, loss } =
            self.model.backward(pool, input.as_input(), grad, sums, self.run.gradient_limit())?;
        let data = match input_gradient {
            Some(rows) => self.encode(&rows)?,
            None => Vec::new(),
        };
        Ok(ComputedCall { data, loss })
    }

    /// Empties the sums of all steps.
    pub fn clear(&mut self) {
        self.sums.iter_mut().for_each(empty);
    }

    /// What this peer contributes to the average of a shard in this step, as of now.
    ///
    /// # Errors
    /// [`StageError::Memory`] when what it was computed with is not what it was.
    pub fn share(&mut self, pool: &Pool, shard: u32) -> Result<Share, StageError> {
        self.check(pool)?;
        Ok(self.share_unchecked(shard))
    }

    fn share_unchecked(&self, shard: u32) -> Share {
        let tensors = self.shard(shard).into_iter().map(|t| t.range).collect();
        let (sums, residual) = (Arc::clone(&self.sums[0]), Arc::clone(&self.residual));
        Share::new(self.run.config.wire.gradients, sums, residual, tensors)
    }

    /// Adds the sums of another peer of this stage in a step; nothing when it is over.
    ///
    /// # Errors
    /// When there are more or fewer of them.
    pub fn add_sums(&mut self, step: u64, sums: &[i64]) -> Result<(), StageError> {
        let (found, expected) = (sums.len(), self.layout().len());
        if found != expected {
            return Err(StageError::Shape(format!("{found} gradient sums, not {expected}")));
        }
        let ahead = step.checked_sub(self.step).and_then(|ahead| usize::try_from(ahead).ok());
        if let Some(ours) = ahead.and_then(|ahead| self.sums.get_mut(ahead)) {
            Arc::make_mut(ours).add_sums(sums);
        }
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

    /// Updates with the averages of all shards, of which [`Stage::share`] was a part; empties the sums of the step, and keeps what the averages have
    /// lost. The [fingerprint](Self::fingerprint) of the new state.
    ///
    /// # Errors
    /// When a shard is missing, a parameter is no longer finite, or memory has changed; the state is of no use then.
    pub fn apply(
        &mut self,
        pool: &Pool,
        scale: f32,
        averages: &BTreeMap<u32, Arc<Average>>,
    ) -> Result<u64, StageError> {
        let mut gradient = vec![0.0; self.layout().len()];
        let mut covered = 0;
        for (&shard, average) in averages {
            if !average.is_intact() {
                return Err(StageError::Memory(format!(
                    "the average of shard {shard} is not what was formed"
                )));
            }
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
                let remaining = self.share_unchecked(shard).remaining(pool, average)?;
                let residual = Arc::make_mut(&mut self.residual);
                for (range, lost) in remaining {
                    residual[range].copy_from_slice(&lost);
                }
            }
        }
        self.update_with(pool, Arc::new(gradient))
    }

    /// Updates with the scaled average of a step that was made without this peer. Whether the residual was a part of it is not known: it is
    /// given up, because sending it twice would be an error, and not sending it is only a loss. The [fingerprint](Self::fingerprint) of the new state.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn follow(&mut self, pool: &Pool, gradient: Arc<Vec<f32>>) -> Result<u64, StageError> {
        zero(&mut self.residual);
        self.update_with(pool, gradient)
    }

    fn update_with(&mut self, pool: &Pool, gradient: Arc<Vec<f32>>) -> Result<u64, StageError> {
        let rate = learning_rate(&self.run.config.optimizer, self.step, self.run.config.steps);
        if let Some(before) = &mut self.before {
            before.copy_from(&self.parameters);
        }
        self.optimizer.step(pool, rate, 1.0, &mut self.parameters, &gradient)?;
        self.packed = match (&self.before, self.packed) {
            // What comes next is computed with what was new until now.
            (Some(_), Some(Version::Now)) => Some(Version::Before),
            (Some(_), _) => None,
            (None, _) => {
                self.model.set_parameters(pool, self.parameters.values())?;
                Some(Version::Now)
            }
        };
        self.sums.rotate_left(1);
        self.sums.back_mut().into_iter().for_each(empty);
        self.updates.push_back(Update { step: self.step, gradient });
        if self.updates.len() > UPDATES_KEPT {
            self.updates.pop_front();
        }
        self.step += 1;
        Ok(self.fingerprint())
    }

    /// The scaled average that led from `step` to the next, if it is still here.
    #[must_use]
    pub fn update(&self, step: u64) -> Option<Update> {
        self.updates.iter().find(|u| u.step == step).cloned()
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

/// Sums of nothing; a copy that somebody else reads stays.
fn empty(sums: &mut Arc<GradientSums>) {
    match Arc::get_mut(sums) {
        Some(sums) => sums.clear(),
        None => *sums = Arc::new(GradientSums::new(sums.len())),
    }
}

/// All zero; a copy that somebody else reads stays.
fn zero<T: Clone + Default>(values: &mut Arc<Vec<T>>) {
    match Arc::get_mut(values) {
        Some(values) => values.fill(T::default()),
        None => *values = Arc::new(vec![T::default(); values.len()]),
    }
}

#[cfg(test)]
mod tests;
