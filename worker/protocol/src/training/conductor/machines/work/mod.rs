//! The work that is open: the step that is decided next and, with delayed updates, the one behind it.
//!
//! [`keys`] who adds what to which sums · [`flights`] which trainer drives what

mod flights;
mod keys;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use dunlin_swarm::PeerName;

use crate::training::conductor::shell::ConductorConfig;
use crate::training::ids::{LIFE_BITS, Microbatch, StageId, Step, StepAttempt};
use crate::training::ledger::Ledger;

/// Everything that is to be done for the steps that are open, and who does it.
pub struct Work {
    config: Arc<ConductorConfig>,
    /// Updates decided so far: the oldest open step.
    step: Step,
    /// Of the update before it, if there was one and it is known.
    scale: Option<f32>,
    /// At the open steps.
    attempt: StepAttempt,
    /// The oldest first.
    open: VecDeque<Open>,
    /// Losses of the validation with the parameters of the oldest.
    validation: BTreeMap<Microbatch, Option<f64>>,
    /// What each trainer drives, and since when.
    trainers: BTreeMap<PeerName, BTreeMap<(Step, Microbatch), u64>>,
    /// Contributions of the whole run that were computed again.
    redone: u64,
}

/// A step whose microbatches are being done.
struct Open {
    /// Of every stage.
    ledgers: Vec<Ledger>,
    /// Microbatches that no trainer has.
    todo: BTreeSet<Microbatch>,
    /// Microbatches that nobody can compute, by the word of these trainers, one for each time.
    failed: BTreeMap<Microbatch, Vec<PeerName>>,
    /// Contributions that were computed again.
    redone: u32,
}

impl Work {
    /// Everything is open from step 0 on.
    pub fn new(config: Arc<ConductorConfig>) -> Self {
        let mut work = Self {
            step: 0,
            scale: None,
            attempt: config.incarnation << LIFE_BITS,
            open: VecDeque::new(),
            validation: BTreeMap::new(),
            trainers: BTreeMap::new(),
            redone: 0,
            config,
        };
        work.open_anew();
        work
    }

    /// Updates decided so far: the oldest step that is open, whose averages are next.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The scale of the update before that step, if it is known.
    pub fn scale(&self) -> Option<f32> {
        self.scale
    }

    /// What trainers and peers do in an earlier attempt counts nothing.
    pub fn attempt(&self) -> StepAttempt {
        self.attempt
    }

    /// Are all updates decided?
    pub fn is_over(&self) -> bool {
        self.step >= self.config.steps
    }

    /// The steps that are open.
    pub fn steps(&self) -> Range<Step> {
        self.step..self.step + self.open.len() as Step
    }

    /// Contributions of the oldest step, and of the whole run, that were computed again.
    pub fn redone(&self) -> (u32, u64) {
        (self.open[0].redone, self.redone)
    }

    /// The run is at this step, before which an update of this scale was made if that is known. All keys are open.
    pub fn begin_at(&mut self, step: Step, scale: Option<f32>) {
        (self.step, self.scale) = (step, scale);
        self.open_anew();
    }

    /// Nothing that was done of the open steps is of any use.
    pub fn begin_anew(&mut self) {
        let done: u32 = self.open.iter().flat_map(|open| &open.ledgers).map(Ledger::count_done).sum();
        let redone = self.open[0].redone + done;
        self.redone += u64::from(done);
        self.open_anew();
        self.open[0].redone = redone;
    }

    /// The oldest step is decided, by an update of this scale.
    pub fn decide(&mut self, scale: f32) {
        self.step += 1;
        self.scale = Some(scale);
        self.open.pop_front();
        for work in self.trainers.values_mut() {
            work.retain(|(step, _), _| *step >= self.step);
        }
        self.begin_oldest();
    }

    fn open_anew(&mut self) {
        self.attempt += 1;
        self.open.clear();
        self.trainers.values_mut().for_each(BTreeMap::clear);
        self.begin_oldest();
    }

    fn begin_oldest(&mut self) {
        let config = &self.config;
        let (count, steps) = (config.microbatches, config.steps);
        let last = if config.delayed_updates { self.step + 1 } else { self.step };
        // Behind the last update there is nothing but a validation.
        while self.open.is_empty()
            || self.step + (self.open.len() as Step) <= last.min(steps.saturating_sub(1))
        {
            self.open.push_back(Open {
                ledgers: vec![Ledger::new(count); config.stages as usize],
                todo: if self.step < steps { (0..count).collect() } else { BTreeSet::new() },
                failed: BTreeMap::new(),
                redone: 0,
            });
        }
        let every = config.validate_every;
        let due = every > 0 && (self.step.is_multiple_of(every) || self.step >= steps);
        let batches = if due { config.validation_batches } else { 0 };
        self.validation = (count..count + batches).map(|batch| (batch, None)).collect();
        self.open[0].todo.extend(count..count + batches);
    }

    /// Is everything validated that is to be?
    pub fn is_validated(&self) -> bool {
        self.validation.values().all(Option::is_some)
    }

    /// The loss of the validation with the parameters of the oldest step, summed over its tokens; `None` if there is none.
    pub fn validation(&self) -> Option<f64> {
        (!self.validation.is_empty()).then(|| self.validation.values().flatten().sum())
    }

    /// The loss of the oldest step, summed over the tokens of the global batch.
    pub fn loss(&self) -> f64 {
        self.open[0].ledgers.last().map_or(0.0, Ledger::loss)
    }

    /// Where a step is among the open ones.
    fn index(&self, step: Step) -> Option<usize> {
        let index = usize::try_from(step.checked_sub(self.step)?).ok()?;
        (index < self.open.len()).then_some(index)
    }

    /// Is a step open?
    pub fn is_open(&self, step: Step) -> bool {
        self.index(step).is_some()
    }

    fn ledger(&mut self, step: Step, stage: StageId) -> Option<&mut Ledger> {
        let index = self.index(step)?;
        self.open[index].ledgers.get_mut(stage as usize)
    }

    /// The open steps, and who adds what in them at a stage, oldest first.
    fn ledgers(&self, stage: StageId) -> impl Iterator<Item = (Step, &Ledger)> {
        (self.step..).zip(self.open.iter().map(move |open| &open.ledgers[stage as usize]))
    }
}
