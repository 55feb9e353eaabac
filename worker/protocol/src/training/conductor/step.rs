//! One step: work for trainers, keys for peers, updates.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::Conductor;
use super::machines::usual::Task;
use super::turn::Turn;
use crate::training::ids::{Microbatch, StageId, Step, StepAttempt};
use crate::training::ledger::Claimed;
use crate::training::message::{Contribution, StateDigest, ToPeer, TrainerReport};

impl Conductor {
    /// Trainers get microbatches, if every stage is served.
    pub(super) fn give_work(&mut self, turn: &mut Turn<'_>) {
        let served: Vec<usize> = (0..self.config.stages).map(|s| self.peers.of(s).count()).collect();
        if !served.contains(&0) {
            self.work.hand_out(turn, served.into_iter().sum());
        }
    }

    pub(super) fn trainer_report(&mut self, turn: &mut Turn<'_>, name: &PeerName, report: TrainerReport) {
        let (TrainerReport::Finished { attempt, .. }
        | TrainerReport::Contradicted { attempt, .. }
        | TrainerReport::Failed { attempt, .. }) = report;
        if !self.live() || !self.work.has_trainer(name) || attempt != self.work.attempt() {
            return;
        }
        match report {
            TrainerReport::Finished { step, microbatch, loss, .. } => {
                let took_ms = self.work.finished(turn.now_ms, name, (step, microbatch), loss);
                if let Some(took_ms) = took_ms {
                    self.usual.took(Task::Flight, took_ms);
                }
            }
            TrainerReport::Contradicted { peer, by, what, .. } => {
                self.contradicted(turn, &peer, &by, &what);
            }
            TrainerReport::Failed { step, microbatch, peers, what, .. } => {
                self.failed(turn, name, (step, microbatch), &peers, &what);
            }
        }
    }

    pub(super) fn claim(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        (step, microbatch, attempt): (Step, Microbatch, StepAttempt),
    ) {
        if self.peers.is_parked(name) {
            // It counts from the next averages on, perhaps of this step, and asks only once. A call that comes then asks again.
            return turn.tell(name, ToPeer::Grant { step, microbatch, granted: false });
        }
        let Some(stage) = self.peers.serving_stage(name).filter(|_| self.work.is_open(step)) else { return };
        // One that leaves takes nothing new; the call was on its way already. What it was given may be of an attempt that was given up.
        let takes = self.peers.member_stage(name).is_some() && attempt == self.work.attempt();
        let claimed = if takes {
            self.work.claim(turn.now_ms, name, stage, (step, microbatch))
        } else {
            Claimed::Refused
        };
        if claimed != Claimed::Waits {
            let granted = claimed == Claimed::Granted;
            turn.tell(name, ToPeer::Grant { step, microbatch, granted });
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
        let Some(stage) = self.peers.serving_stage(name).filter(|_| self.work.is_open(step)) else { return };
        self.timed(name, stage, took_us);
        if let Some(claimed_ms) = self.work.done(turn, name, stage, step, contribution) {
            self.usual.took(Task::Claim(stage), claimed_ms);
        }
    }

    /// What `name` had of `stage` is open again; averages that the stage is part of are formed anew.
    pub(super) fn reopen(&mut self, turn: &mut Turn<'_>, stage: StageId, name: &PeerName) {
        for step in self.work.steps() {
            self.work.release(turn, step, stage, name);
        }
        for shard in self.averages.of_stage(stage) {
            self.form_anew(turn, shard);
        }
    }

    pub(super) fn applied(&mut self, turn: &mut Turn<'_>, name: &PeerName, step: Step, state: StateDigest) {
        // Of a leaver too: what it hands over was computed with that.
        let Some(stage) = self.peers.serving_stage(name) else { return };
        if self.peers.get(name).is_none_or(|p| step <= p.step) {
            return;
        }
        if step > self.work.step() {
            return self.is_nowhere(turn, name, step);
        }
        self.peers.set_step(name, step);
        if let Some(edge_ms) = self.measured.edge_ms().filter(|_| step == self.work.step()) {
            self.usual.took(Task::Update, turn.now_ms.saturating_sub(edge_ms));
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
        let stage = peers.iter().find_map(|n| self.peers.member_stage(n));
        let others = stage.is_none_or(|stage| self.peers.of(stage).any(|n| !asked.contains(&machine(n))));
        let more = asked.len() < 2 && others;
        let Some(again) = self.work.failed(trainer, (step, microbatch), more) else { return };
        let who: Vec<&str> = peers.iter().map(PeerName::as_str).collect();
        let found = format!("step {step}, microbatch {microbatch}: {what}. So say {}", who.join(" and "));
        if again {
            turn.note(format!("{found}, asked by {trainer}; it is driven once more"));
            return;
        }
        self.fail(turn, format!(
                "{found}, again and again, and of values that other peers had made where there are others; lower the learning rate or the clip, or mend the data, and go on from \
                 the last checkpoint"
            ));
    }
}
