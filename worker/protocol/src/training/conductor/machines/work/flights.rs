//! Which trainer drives which microbatch.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

use super::Work;
use crate::training::conductor::turn::Turn;
use crate::training::ids::{Microbatch, Step};
use crate::training::message::ToTrainer;

/// A microbatch that cannot be computed, as several trainers say or one again and again: so often it is driven.
const FAILURES_MAX: usize = 4;

impl Work {
    /// A trainer comes, and drives nothing.
    pub fn trainer_joins(&mut self, name: PeerName) {
        self.trainers.insert(name, BTreeMap::new());
    }

    /// A trainer is gone: its microbatches go to others.
    pub fn trainer_gone(&mut self, name: &PeerName) {
        for (step, microbatch) in self.trainers.remove(name).into_iter().flat_map(BTreeMap::into_keys) {
            self.bring_back(step, microbatch);
        }
    }

    /// All of them are gone, and none is lost.
    pub fn trainers_gone(&mut self) {
        self.trainers.clear();
    }

    /// Is a trainer of this name there?
    pub fn has_trainer(&self, name: &PeerName) -> bool {
        self.trainers.contains_key(name)
    }

    /// All trainers are told the same.
    pub fn tell_trainers(&self, turn: &mut Turn<'_>, message: &ToTrainer) {
        for name in self.trainers.keys() {
            turn.tell_trainer(name, message.clone());
        }
    }

    /// Trainers get microbatches, as many as keep so many peers busy.
    pub fn hand_out(&mut self, turn: &mut Turn<'_>, peers: usize) {
        if self.trainers.is_empty() {
            return;
        }
        // Every peer has one to compute and one to wait for, and one is on its way in each stage.
        let wanted = 2 * peers + self.config.stages as usize;
        let window = wanted.div_ceil(self.trainers.len()).max(2);
        for (step, open) in (self.step..).zip(&mut self.open) {
            if self.trainers.values().all(|work| work.len() >= window) {
                return;
            }
            for microbatch in open.todo.clone() {
                let key = (step, microbatch);
                // Not one that said of it that nobody can compute it, as long as there is another, which may be busy now.
                let failed = open.failed.get(&microbatch);
                let times = |name: &PeerName| failed.map_or(0, |by| by.iter().filter(|n| *n == name).count());
                let fewest = self.trainers.keys().map(times).min();
                let takes = |name: &PeerName, work: &BTreeMap<_, _>| {
                    work.len() < window && !work.contains_key(&key) && fewest.is_none_or(|n| times(name) <= n)
                };
                let free = self.trainers.iter_mut().filter(|(name, work)| takes(name, work));
                let Some((name, work)) = free.min_by_key(|(name, work)| (times(name), work.len())) else {
                    continue;
                };
                work.insert(key, turn.now_ms);
                open.todo.remove(&microbatch);
                let (validation, attempt) = (microbatch >= self.config.microbatches, self.attempt);
                turn.tell_trainer(name, ToTrainer::Work { step, microbatch, validation, attempt });
            }
        }
    }

    /// A microbatch must be done again, unless a trainer has it: that one will report it finished, and then it comes back.
    pub(super) fn bring_back(&mut self, step: Step, microbatch: Microbatch) {
        let flies = self.trainers.values().any(|work| work.contains_key(&(step, microbatch)));
        if let Some(index) = self.index(step).filter(|_| !flies) {
            self.open[index].todo.insert(microbatch);
        }
    }

    /// A microbatch went all the way, so many milliseconds after the trainer was given it. `None` when that is not the trainer's.
    pub fn finished(
        &mut self,
        now_ms: u64,
        trainer: &PeerName,
        (step, microbatch): (Step, Microbatch),
        loss: Option<f64>,
    ) -> Option<u64> {
        let index = self.index(step)?;
        let since_ms = self.trainers.get_mut(trainer)?.remove(&(step, microbatch))?;
        let open = &mut self.open[index];
        let again = if let Some(slot) = self.validation.get_mut(&microbatch) {
            *slot = slot.or(loss);
            slot.is_none()
        } else {
            // A peer was lost that had added it already. A claimed key is not open: its holder's word is on its way.
            open.ledgers.iter().any(|ledger| ledger.is_open(microbatch))
        };
        if again {
            open.todo.insert(microbatch);
        }
        Some(now_ms.saturating_sub(since_ms))
    }

    /// Nobody can compute a microbatch, says a trainer that drives it. It is driven once more, if another trainer has not said so yet or `more` that can be asked; `None` when that is
    /// not the trainer's.
    pub fn failed(
        &mut self,
        trainer: &PeerName,
        (step, microbatch): (Step, Microbatch),
        more: bool,
    ) -> Option<bool> {
        let index = self.index(step)?;
        self.trainers.get_mut(trainer)?.remove(&(step, microbatch))?;
        let said = self.open[index].failed.entry(microbatch).or_default();
        said.push(trainer.clone());
        let unheard = self.trainers.keys().any(|other| !said.contains(other));
        let again = (unheard || more) && said.len() < FAILURES_MAX;
        if again {
            self.bring_back(step, microbatch);
        }
        Some(again)
    }

    /// Microbatches that a trainer has had for longer than `limit_ms`, when there is nothing else to do: whoever is free drives them as well. A gradient counts once, whoever comes
    /// first.
    pub fn drive_late(&mut self, now_ms: u64, limit_ms: u64) {
        if self.trainers.len() < 2 || self.open.iter().any(|open| !open.todo.is_empty()) {
            return;
        }
        let flights = self.trainers.values_mut().flatten();
        let late = flights.filter(|(_, since_ms)| now_ms > **since_ms + limit_ms);
        for ((step, microbatch), since_ms) in late {
            // Not again at once.
            *since_ms = now_ms;
            let index = step.checked_sub(self.step).and_then(|index| usize::try_from(index).ok());
            let Some(open) = index.and_then(|index| self.open.get_mut(index)) else { continue };
            let needed = *microbatch >= self.config.microbatches
                || open.ledgers.iter().any(|ledger| !ledger.is_done(*microbatch));
            if needed {
                open.todo.insert(*microbatch);
            }
        }
    }
}
