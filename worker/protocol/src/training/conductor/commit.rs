//! The averages of the oldest open step are formed, and the step is decided.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::machines::averages::AveragingOutcome;
use super::machines::peer::{PeerRecord, Place};
use super::machines::usual::Task;
use super::turn::Turn;
use super::{Committed, Conductor, ConductorEffect, Phase};
use crate::training::clip;
use crate::training::ids::{ShardId, StageId, Step};
use crate::training::message::{Mate, ToPeer, ToTrainer};

/// Newcomers that miss one update are waited for so long, or for as long as the last step took.
const NEWCOMERS_MS_MIN: u64 = 500;

impl Conductor {
    /// Shards whose keys are all done are averaged as soon as they are.
    pub(super) fn start_averages(&mut self, turn: &mut Turn<'_>) {
        if self.work.is_over() {
            return;
        }
        for shard in self.averages.ids() {
            let stages = self.averages.stages_of(shard).to_vec();
            let complete = stages.iter().all(|&s| {
                self.work.is_complete(s)
                    && self.peers.serve(s)
                    && self.is_agreed(s)
                    && !self.handing_over(s)
                    && !self.nearly_there(turn.now_ms, s)
            });
            if !complete || !self.averages.may_begin(shard, turn.now_ms) {
                continue;
            }
            let names: BTreeSet<PeerName> = stages.iter().flat_map(|&s| self.peers.of(s)).cloned().collect();
            let group: Vec<Mate> =
                names.iter().filter_map(|n| self.peers.get(n)).map(|p| p.mate.clone()).collect();
            let (step, round) = (self.work.step(), self.averages.begin(shard, turn.now_ms, names.clone()));
            for name in &names {
                let group = group.clone();
                turn.tell(name, ToPeer::Average { step, shard, round, group });
            }
        }
    }

    /// With delayed updates the averages of a step begin as soon as the step before is decided. Whoever waited for that, and gets the update that
    /// it missed, takes part all the same: there is time, as the microbatches of the next step are being done.
    pub(super) fn nearly_there(&self, now_ms: u64, stage: StageId) -> bool {
        let comes = |p: &PeerRecord| p.place == Place::Fetching { stage } && p.step + 1 == self.work.step();
        self.config.delayed_updates
            && self.measured.is_after_edge(now_ms, NEWCOMERS_MS_MIN)
            && self.peers.any(comes)
    }

    pub(super) fn averaged(
        &mut self,
        turn: &Turn<'_>,
        name: &PeerName,
        (step, shard, round): (Step, ShardId, u64),
        squares: Vec<f64>,
    ) {
        if step != self.work.step() {
            return;
        }
        if let Some(took_ms) = self.averages.averaged(turn.now_ms, name, (shard, round), squares) {
            self.usual.took(Task::Average, took_ms);
        }
    }

    pub(super) fn average_failed(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        (step, shard, round): (Step, ShardId, u64),
        why: &str,
        mate: Option<PeerName>,
    ) {
        if step != self.work.step() || !self.averages.failed(turn.now_ms, shard, round) {
            return;
        }
        self.form_anew(turn, shard);
        turn.note(format!("{name} could not average step {step}: {why}; trying again"));
        // Whoever is a part of that again and again is taken to be lost, though the conductor hears of it.
        let lost = self.averages.blame(shard, name, mate);
        if let Some((lost, times)) = lost.filter(|(lost, _)| self.peers.all().contains_key(lost)) {
            let why = format!("{times} averages of step {step} could not be formed with it");
            self.give_up(turn, &lost, &why);
        }
    }

    /// Everything is averaged everywhere: the step is decided.
    pub(super) fn try_commit(&mut self, turn: &mut Turn<'_>) {
        let served = self.peers.serve_all();
        if !served || !self.work.is_validated() || self.phase != Phase::Running {
            return;
        }
        let step = self.work.step();
        let differ = |names: &[PeerName]| {
            let names: Vec<&str> = names.iter().map(PeerName::as_str).collect();
            format!("{} hold different averages of step {step}", names.join(" and "))
        };
        match self.averages.outcome(|name| self.peers.host(name)) {
            AveragingOutcome::Open => {}
            AveragingOutcome::Complete(squares) => self.commit(turn, &squares),
            AveragingOutcome::Odd(names) => {
                self.expel(turn, names, &format!("its average of step {step} is not that of most others"));
            }
            AveragingOutcome::Again(shard, names) => {
                turn.note(format!("{}: they are formed once more", differ(&names)));
                self.form_anew(turn, shard);
            }
            AveragingOutcome::Tied(names) => self.tied(turn, &differ(&names)),
        }
    }

    /// Peers update with the averages, whose sums of squares these are, and go on.
    fn commit(&mut self, turn: &mut Turn<'_>, squares: &[f64]) {
        let norm = match clip::norm(squares) {
            Ok(norm) => norm,
            Err(diverged) => return self.fail(turn, format!("step {}: {diverged}", self.work.step())),
        };
        let scale = clip::scale(norm, self.config.clip);
        let (step, prove) = (self.work.step(), self.proves(self.work.step() + 1));
        for name in self.peers.serving() {
            turn.tell(&name, ToPeer::Apply { step, scale, prove });
        }
        self.work.tell_trainers(turn, &ToTrainer::Committed { step });
        turn.push(ConductorEffect::Committed(Committed {
            step,
            loss: self.work.loss(),
            validation: self.work.validation(),
            norm,
            redone: self.work.redone().0,
        }));
        self.work.decide(scale);
        self.averages.begin_step();
        self.after_commit(turn);
    }

    /// An average must be formed from the sums that are still there: what was only in the old one is open again.
    pub(super) fn form_anew(&mut self, turn: &mut Turn<'_>, shard: ShardId) {
        self.averages.discard(shard);
        for stage in self.averages.stages_of(shard).to_vec() {
            for holder in self.work.holders(stage) {
                if self.peers.serving_stage(&holder) != Some(stage) {
                    self.work.release(turn, self.work.step(), stage, &holder);
                }
            }
        }
    }
}
