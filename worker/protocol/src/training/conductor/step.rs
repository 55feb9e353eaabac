//! One step: work for trainers, keys for peers, updates.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::Conductor;
use super::peer_state::Place;
use super::turn::Turn;
use crate::training::ids::{Attempt, Microbatch, StageId, Step};
use crate::training::ledger::{Claimed, Released};
use crate::training::message::{Contribution, StateDigest, ToPeer, ToTrainer, TrainerReport};

/// A microbatch that cannot be computed, as several trainers say or one again and again: so often it is driven.
const FAILURES_MAX: usize = 4;

impl Conductor {
    /// Trainers get microbatches, as many as keep the peers busy.
    pub(super) fn give_work(&mut self, turn: &mut Turn<'_>) {
        if self.trainers.is_empty() || (0..self.config.stages).any(|s| self.members_of(s).next().is_none()) {
            return;
        }
        let members: usize = (0..self.config.stages).map(|s| self.members_of(s).count()).sum();
        // Every member has one to compute and one to wait for, and one is on its way in each stage.
        let wanted = 2 * members + self.config.stages as usize;
        let window = wanted.div_ceil(self.trainers.len()).max(2);
        // The oldest step first.
        for index in 0..self.open.len() {
            let step = self.step + index as Step;
            if self.trainers.values().all(|work| work.len() >= window) {
                return;
            }
            for microbatch in self.open[index].todo.clone() {
                let key = (step, microbatch);
                // Not one that said of it that nobody can compute it, as long as there is another, which may be busy now.
                let failed = self.open[index].failed.get(&microbatch);
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
                let name = name.clone();
                self.open[index].todo.remove(&microbatch);
                let (validation, attempt) = (microbatch >= self.config.microbatches, self.attempt);
                let work = ToTrainer::Work { step, microbatch, validation, attempt };
                turn.tell_trainer(&name, work);
            }
        }
    }

    pub(super) fn trainer_report(&mut self, turn: &mut Turn<'_>, name: &PeerName, report: TrainerReport) {
        if !self.live() || !self.trainers.contains_key(name) {
            return;
        }
        match report {
            TrainerReport::Finished { step, microbatch, attempt, loss } => {
                if attempt == self.attempt {
                    self.finished(turn.now_ms, name, step, microbatch, loss);
                }
            }
            TrainerReport::Contradicted { attempt, peer, by, what, .. } => {
                if attempt == self.attempt {
                    self.contradicted(turn, &peer, &by, &what);
                }
            }
            TrainerReport::Failed { step, microbatch, attempt, peers, what } => {
                if attempt == self.attempt && self.index(step).is_some() {
                    self.failed(turn, name, (step, microbatch), &peers, &what);
                }
            }
        }
    }

    /// Microbatches that a trainer is late with, when there is nothing else to do: whoever is free drives them as well. A gradient counts once, whoever comes first.
    pub(super) fn drive_late_work(&mut self, now_ms: u64) {
        if !self.live() || self.trainers.len() < 2 || self.open.iter().any(|open| !open.todo.is_empty()) {
            return;
        }
        let limit = self.usual.flight_ms_max(self.config.claim_ms_max);
        let late: Vec<(Step, Microbatch)> = self
            .trainers
            .values_mut()
            .flat_map(|work| work.iter_mut().filter(|(_, since)| now_ms > **since + limit))
            .map(|(key, since)| {
                // Not again at once.
                *since = now_ms;
                *key
            })
            .collect();
        for (step, microbatch) in late {
            let Some(index) = self.index(step) else { continue };
            let needed = microbatch >= self.config.microbatches
                || self.open[index].ledgers.iter().any(|ledger| !ledger.is_done(microbatch));
            if needed {
                self.open[index].todo.insert(microbatch);
            }
        }
    }

    fn finished(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        step: Step,
        microbatch: Microbatch,
        loss: Option<f64>,
    ) {
        let Some(index) = self.index(step) else { return };
        let Some(since_ms) = self.trainers.get_mut(name).and_then(|work| work.remove(&(step, microbatch)))
        else {
            return;
        };
        self.usual.drove(now_ms.saturating_sub(since_ms));
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
    }

    pub(super) fn claim(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        (step, microbatch, attempt): (Step, Microbatch, Attempt),
    ) {
        let Some(stage) = self.serving_stage(name) else { return };
        // What it was given may be of an attempt that was given up.
        let member = self.member_stage(name).is_some() && attempt == self.attempt;
        let Some(ledger) = self.ledger(step, stage) else { return };
        let granted = match member {
            // It takes nothing new; the call was on its way already.
            false => false,
            true => match ledger.claim(microbatch, name, turn.now_ms) {
                Claimed::Waits => return,
                Claimed::Granted => true,
                Claimed::Refused => false,
            },
        };
        turn.tell(name, ToPeer::Grant { step, microbatch, granted });
    }

    pub(super) fn unclaim(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        step: Step,
        microbatch: Microbatch,
    ) {
        let Some(stage) = self.serving_stage(name) else { return };
        let Some(ledger) = self.ledger(step, stage) else { return };
        if let Some(next) = ledger.unclaim(microbatch, name, turn.now_ms) {
            turn.tell(&next, ToPeer::Grant { step, microbatch, granted: true });
        } else if ledger.is_open(microbatch) {
            self.bring_back(step, microbatch);
        }
    }

    pub(super) fn done(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        step: Step,
        contribution: &Contribution,
        took_us: u64,
    ) {
        let Some(stage) = self.serving_stage(name).filter(|_| self.index(step).is_some()) else { return };
        let microbatch = contribution.microbatch;
        self.timed(name, stage, took_us);
        let since_ms = self.ledger(step, stage).and_then(|ledger| ledger.claimed_ms(microbatch, name));
        if let Some(since_ms) = since_ms {
            self.usual.claimed(stage, turn.now_ms.saturating_sub(since_ms));
        }
        let waited = self.ledger(step, stage).and_then(|ledger| ledger.done(contribution, name));
        for peer in waited.into_iter().flatten() {
            turn.tell(&peer, ToPeer::Grant { step, microbatch, granted: false });
        }
    }

    /// The stage of a member, or of one that is finishing what it has claimed.
    pub(super) fn serving_stage(&self, name: &PeerName) -> Option<StageId> {
        match self.peers.get(name)?.place {
            Place::Member { stage } | Place::HandingOver { stage, .. } => Some(stage),
            _ => None,
        }
    }

    /// What `name` had of `stage` is open again; averages that the stage is part of are formed anew.
    pub(super) fn reopen(&mut self, turn: &mut Turn<'_>, stage: StageId, name: &PeerName) {
        for step in self.open_steps() {
            self.release(turn, step, stage, name);
        }
        for shard in self.averages.of_stage(stage) {
            self.form_anew(turn, shard);
        }
    }

    /// What `name` had of `stage` in one step is open again.
    pub(super) fn release(&mut self, turn: &mut Turn<'_>, step: Step, stage: StageId, name: &PeerName) {
        let Some(index) = self.index(step) else { return };
        let of_step = &mut self.open[index];
        let Released { undone, open, granted } = of_step.ledgers[stage as usize].release(name, turn.now_ms);
        of_step.redone += undone;
        self.totals.redone += u64::from(undone);
        for (peer, microbatch) in granted {
            let grant = ToPeer::Grant { step, microbatch, granted: true };
            turn.tell(&peer, grant);
        }
        for microbatch in open {
            self.bring_back(step, microbatch);
        }
    }

    /// A microbatch must be done again, unless a trainer has it: that one will report it finished, and then it comes back.
    pub(super) fn bring_back(&mut self, step: Step, microbatch: Microbatch) {
        let flies = self.trainers.values().any(|work| work.contains_key(&(step, microbatch)));
        if let Some(index) = self.index(step).filter(|_| !flies) {
            self.open[index].todo.insert(microbatch);
        }
    }

    pub(super) fn applied(&mut self, turn: &mut Turn<'_>, name: &PeerName, step: Step, state: StateDigest) {
        // Of a leaver too: what it hands over was computed with that.
        let Some(stage) = self.serving_stage(name) else { return };
        let Some(peer) = self.peers.get_mut(name).filter(|p| step > p.step) else { return };
        if step > self.step {
            let why = format!("it says that it is at step {step}, and the run is at step {}", self.step);
            self.expel(turn, [name.clone()], &why);
            return;
        }
        peer.step = step;
        if let Some(edge_ms) = self.measured.edge_ms().filter(|_| step == self.step) {
            self.usual.updated(turn.now_ms.saturating_sub(edge_ms));
        }
        self.hear_state(name, (stage, step), state, false);
    }

    /// Nobody can compute a microbatch, says a trainer. Another trainer drives it, if there is one: the first may be wrong about what it drives. So it does if all that were
    /// asked are of one machine and there are others.
    pub(super) fn failed(
        &mut self,
        turn: &mut Turn<'_>,
        trainer: &PeerName,
        (step, microbatch): (Step, Microbatch),
        peers: &[PeerName],
        what: &str,
    ) {
        let machine = |name: &PeerName| {
            let host = self.peers.get(name).map(|p| p.mate.host.clone()).unwrap_or_default();
            if host.is_empty() { name.to_string() } else { host }
        };
        let asked: BTreeSet<String> = peers.iter().map(machine).collect();
        let stage = peers.iter().find_map(|n| self.member_stage(n));
        let others = stage.is_none_or(|stage| self.members_of(stage).any(|n| !asked.contains(&machine(n))));
        let (Some(index), Some(work)) = (self.index(step), self.trainers.get_mut(trainer)) else { return };
        if work.remove(&(step, microbatch)).is_none() {
            return;
        }
        let said = self.open[index].failed.entry(microbatch).or_default();
        said.push(trainer.clone());
        let unheard = self.trainers.keys().any(|other| !said.contains(other));
        let doubtful = (unheard || asked.len() < 2 && others) && said.len() < FAILURES_MAX;
        let who: Vec<&str> = peers.iter().map(PeerName::as_str).collect();
        let found = format!("step {step}, microbatch {microbatch}: {what}. So say {}", who.join(" and "));
        if doubtful {
            turn.note(format!("{found}, asked by {trainer}; it is driven once more"));
            self.bring_back(step, microbatch);
            return;
        }
        self.fail(turn, format!(
                "{found}, again and again, and of values that other peers had made where there are others; lower the learning rate or the clip, or mend the data, and go on from \
                 the last checkpoint"
            ));
    }
}
