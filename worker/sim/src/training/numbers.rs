//! Tensors that are hashes, and the steps done one after the other.

use std::collections::BTreeMap;

use dunlin_protocol::training::{Microbatch, ShardId, StageId, Step, clip};
use dunlin_swarm::NumericsClass;

use crate::serving::model::mix;

/// Which bits everybody computes.
pub(super) const ARITHMETIC: NumericsClass = NumericsClass::FIRST;

/// Parameters and optimizer of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Tensors that no other stage has.
    pub own: u64,
    /// The embedding that both ends hold; 0 elsewhere.
    pub shared: u64,
}

impl Weights {
    /// Both in one number.
    #[must_use]
    pub fn hash(&self) -> u64 {
        mix(self.own, self.shared)
    }
}

/// Of one stage: the parameters, and with delayed updates those before the last update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// After all updates.
    pub now: Weights,
    /// Before the last; the same when there was none, or when updates are not delayed.
    pub before: Weights,
}

/// What was added to sums, for the judge: how often each key is in them.
pub type Keys = BTreeMap<(Step, Microbatch, StageId), u32>;

/// Sums of gradients; addition wraps, so it is exact in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Of the stage's own tensors.
    pub own: i64,
    /// Of the embedding.
    pub shared: i64,
    /// What they contain.
    pub keys: Keys,
}

impl Sums {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.own = self.own.wrapping_add(other.own);
        self.shared = self.shared.wrapping_add(other.shared);
        for (key, count) in &other.keys {
            *self.keys.entry(*key).or_insert(0) += count;
        }
    }

    /// The part that a shard averages.
    #[must_use]
    pub fn of(&self, shard: ShardId, stages: u32) -> i64 {
        if shard == stages { self.shared } else { self.own }
    }
}

/// Shape of the fake model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of stages.
    pub stages: u32,
    /// Both ends hold the embedding.
    pub tied: bool,
    /// Microbatches of a step.
    pub microbatches: u32,
    /// Microbatches of a validation.
    pub validation_batches: u32,
    /// Largest norm.
    pub clip: f64,
    /// Of the initial weights and the data.
    pub seed: u64,
    /// Steps are computed with the weights before the last update.
    pub delayed_updates: bool,
}

/// What a backward pass gives.
pub struct Backward {
    /// Gradient of the input.
    pub input: u64,
    /// Gradient of the stage's own tensors.
    pub own: i64,
    /// Of the embedding.
    pub shared: i64,
    /// At the last stage.
    pub loss: Option<f64>,
}

impl Shape {
    /// Has a stage the embedding?
    #[must_use]
    pub fn has_shared(&self, stage: StageId) -> bool {
        self.tied && self.stages > 1 && (stage == 0 || stage + 1 == self.stages)
    }

    /// The shards of a stage.
    #[must_use]
    pub fn shards(&self, stage: StageId) -> Vec<ShardId> {
        let mut shards = vec![stage];
        if self.has_shared(stage) {
            shards.push(self.stages);
        }
        shards
    }

    /// Stages that hold a shard.
    #[must_use]
    pub fn stages_of(&self, shard: ShardId) -> Vec<StageId> {
        (0..self.stages).filter(|s| self.shards(*s).contains(&shard)).collect()
    }

    /// Before the first update.
    #[must_use]
    pub fn initial(&self, stage: StageId) -> Weights {
        let shared = if self.has_shared(stage) { mix(self.seed, 999) } else { 0 };
        Weights { own: mix(self.seed, u64::from(stage)), shared }
    }

    /// The state after an update to `now`.
    #[must_use]
    pub fn next(&self, state: &State, now: Weights) -> State {
        State { now, before: if self.delayed_updates { state.now } else { now } }
    }

    /// A state without updates behind it.
    #[must_use]
    pub fn first(&self, now: Weights) -> State {
        State { now, before: now }
    }

    /// The tokens of a microbatch.
    #[must_use]
    pub fn tokens(&self, step: Step, microbatch: Microbatch) -> u64 {
        // Those for validation are the same at every step.
        let step = if microbatch < self.microbatches { step } else { 0 };
        mix(mix(self.seed, 77), mix(step, u64::from(microbatch)))
    }

    /// Outputs from inputs.
    #[must_use]
    pub fn forward(&self, input: u64, weights: &Weights) -> u64 {
        mix(input, weights.hash())
    }

    /// The loss at the last stage.
    #[must_use]
    pub fn loss(&self, input: u64, weights: &Weights) -> f64 {
        (self.forward(input, weights) & 0xffff) as f64
    }

    /// `above` is the gradient of the output; at the last stage it comes from the loss.
    #[must_use]
    pub fn backward(&self, stage: StageId, input: u64, above: u64, weights: &Weights) -> Backward {
        let last = stage + 1 == self.stages;
        let above = if last { mix(self.forward(input, weights), 5) } else { above };
        let below = mix(mix(above, input), weights.hash());
        Backward {
            input: below,
            own: mix(below, 1) as i64,
            shared: if self.has_shared(stage) { mix(below, 2) as i64 } else { 0 },
            loss: last.then(|| self.loss(input, weights)),
        }
    }

    /// Sums of squares per tensor; whole numbers, so that they are exact.
    #[must_use]
    pub fn squares(&self, average: i64) -> Vec<f64> {
        vec![(average & 0xff) as f64, (average >> 8 & 0xff) as f64]
    }

    /// The weights after an update with this average.
    #[must_use]
    pub fn update(
        &self,
        stage: StageId,
        before: &Weights,
        averages: &BTreeMap<ShardId, i64>,
        scale: f32,
    ) -> Weights {
        let average = |shard: ShardId| {
            mix(averages.get(&shard).copied().unwrap_or(0) as u64, u64::from(scale.to_bits()))
        };
        Weights {
            own: mix(before.own, average(stage)),
            shared: if self.has_shared(stage) { mix(before.shared, average(self.stages)) } else { 0 },
        }
    }
}

/// What a step must give.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Of all stages before the update.
    pub states: Vec<State>,
    /// Summed over the microbatches.
    pub loss: f64,
    /// Summed over the validation.
    pub validation: f64,
    /// Of the gradient.
    pub norm: f64,
}

/// All steps, one after the other; one more than there are updates.
#[must_use]
pub fn sequential(shape: &Shape, steps: Step) -> Vec<Truth> {
    let mut states: Vec<State> = (0..shape.stages).map(|s| shape.first(shape.initial(s))).collect();
    let mut truth = Vec::new();
    for step in 0..=steps {
        let (now, before): (Vec<Weights>, Vec<Weights>) = states.iter().map(|s| (s.now, s.before)).unzip();
        let inputs = |microbatch, weights: &[Weights]| {
            let mut at = shape.tokens(step, microbatch);
            let through = weights.iter().map(|w| {
                let next = shape.forward(at, w);
                std::mem::replace(&mut at, next)
            });
            through.collect::<Vec<u64>>()
        };
        let mut sums = vec![Sums::default(); shape.stages as usize];
        let mut loss = 0.0;
        for microbatch in 0..shape.microbatches {
            let inputs = inputs(microbatch, &before);
            let mut above = 0;
            for stage in (0..shape.stages).rev() {
                let s = stage as usize;
                let back = shape.backward(stage, inputs[s], above, &before[s]);
                above = back.input;
                sums[s].add(&Sums { own: back.own, shared: back.shared, keys: Keys::new() });
                loss += back.loss.unwrap_or(0.0);
            }
        }
        let last = shape.stages as usize - 1;
        let batches = shape.microbatches..shape.microbatches + shape.validation_batches;
        let validation = batches.map(|b| shape.loss(inputs(b, &now)[last], &now[last])).sum();
        let mut averages: BTreeMap<ShardId, i64> =
            (0..shape.stages).map(|s| (s, sums[s as usize].own)).collect();
        if shape.has_shared(0) {
            averages.insert(shape.stages, sums[0].shared.wrapping_add(sums[last].shared));
        }
        let norm = averages.values().flat_map(|a| shape.squares(*a)).sum::<f64>().sqrt();
        let scale = clip::scale(norm, Some(shape.clip));
        let after = (0..)
            .zip(&states)
            .map(|(stage, state)| shape.next(state, shape.update(stage, &state.now, &averages, scale)));
        let after = after.collect();
        truth.push(Truth { states: std::mem::replace(&mut states, after), loss, validation, norm });
    }
    truth
}
