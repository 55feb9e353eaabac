//! The steps whose microbatches are being done: the one that is decided next and, with delayed updates, the one behind it.

use super::Conductor;
use super::open_step::Open;
use crate::training::ids::{StageId, Step};
use crate::training::ledger::Ledger;

impl Conductor {
    /// The step `self.step` begins with all its keys open, and so does the one behind it if there is one.
    pub(super) fn open_anew(&mut self) {
        self.attempt += 1;
        self.open.clear();
        for work in self.trainers.values_mut() {
            work.clear();
        }
        self.begin_oldest();
    }

    /// The oldest step was decided, and `self.step` is the next.
    pub(super) fn open_next(&mut self) {
        self.open.pop_front();
        for work in self.trainers.values_mut() {
            work.retain(|(step, _), _| *step >= self.step);
        }
        self.begin_oldest();
    }

    /// What belongs to the oldest step alone: averages, and the validation of what the updates so far have made.
    fn begin_oldest(&mut self) {
        self.averages.begin_step();
        let (count, steps) = (self.config.microbatches, self.config.steps);
        let last = if self.config.delayed_updates { self.step + 1 } else { self.step };
        // Behind the last update there is nothing but a validation.
        while self.open.is_empty()
            || self.step + (self.open.len() as Step) <= last.min(steps.saturating_sub(1))
        {
            let mut open = Open::new(self.config.stages, count);
            if self.step >= steps {
                open.todo.clear();
            }
            self.open.push_back(open);
        }
        let every = self.config.validate_every;
        let due = every > 0 && (self.step.is_multiple_of(every) || self.step >= steps);
        let batches = if due { self.config.validation_batches } else { 0 };
        self.validation = (count..count + batches).map(|batch| (batch, None)).collect();
        self.open[0].todo.extend(count..count + batches);
    }

    /// Where a step is among the open ones.
    pub(super) fn index(&self, step: Step) -> Option<usize> {
        let index = usize::try_from(step.checked_sub(self.step)?).ok()?;
        (index < self.open.len()).then_some(index)
    }

    /// The open steps, oldest first.
    pub(super) fn open_steps(&self) -> impl Iterator<Item = Step> + use<> {
        self.step..self.step + self.open.len() as Step
    }

    /// The ledger of a stage in a step, if that step is open.
    pub(super) fn ledger(&mut self, step: Step, stage: StageId) -> Option<&mut Ledger> {
        let index = self.index(step)?;
        self.open[index].ledgers.get_mut(stage as usize)
    }

    /// The open steps, and who adds what in them at a stage, oldest first.
    pub(super) fn ledgers(&self, stage: StageId) -> impl Iterator<Item = (Step, &Ledger)> {
        (self.step..).zip(self.open.iter().map(move |open| &open.ledgers[stage as usize]))
    }
}
