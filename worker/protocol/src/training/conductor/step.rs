//! One step: work for trainers, keys for peers, averages, the commit.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_planner::PeerName;

use super::{Averaging, Committed, Conductor, ConductorEffect, PeerState, Phase, Place};
use crate::training::clip;
use crate::training::ledger::{Claimed, Ledger, Released};
use crate::training::message::{
    Contribution, Mate, Microbatch, ShardId, StageId, Step, ToPeer, ToTrainer, TrainerReport,
};

/// An average that failed is formed again after this long.
const AVERAGE_AGAIN_MS: u64 = 100;
/// Newcomers that miss one update are waited for so long, or for as long as the last step took.
const NEWCOMERS_MS_MIN: u64 = 500;

impl Conductor {
    /// Trainers get microbatches, as many as keep the peers busy.
    pub(super) fn give_work(&mut self, out: &mut Vec<ConductorEffect>) {
        if self.trainers.is_empty() || (0..self.config.stages).any(|s| self.members_of(s).next().is_none()) {
            return;
        }
        let members: usize = (0..self.config.stages).map(|s| self.members_of(s).count()).sum();
        // Every member has one to compute and one to wait for, and one is on its way in each stage.
        let wanted = 2 * members + self.config.stages as usize;
        let window = wanted.div_ceil(self.trainers.len()).max(2);
        // The oldest step first.
        while let Some((step, microbatch)) =
            (self.step..).zip(&self.open).find_map(|(step, open)| Some((step, *open.todo.first()?)))
        {
            let free = self.trainers.iter().filter(|(_, work)| work.len() < window);
            let Some(name) = free.min_by_key(|(_, work)| work.len()).map(|(name, _)| name.clone()) else {
                return;
            };
            if let Some(index) = self.index(step) {
                self.open[index].todo.remove(&microbatch);
            }
            if let Some(work) = self.trainers.get_mut(&name) {
                work.insert((step, microbatch));
            }
            let validation = microbatch >= self.config.microbatches;
            out.push(ConductorEffect::ToTrainer(name, ToTrainer::Work { step, microbatch, validation }));
        }
    }

    pub(super) fn trainer_report(&mut self, name: &PeerName, report: TrainerReport) {
        let TrainerReport::Finished { step, microbatch, loss } = report;
        let Some(index) = self.index(step).filter(|_| self.live()) else { return };
        let Some(work) = self.trainers.get_mut(name) else { return };
        if !work.remove(&(step, microbatch)) {
            return;
        }
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
        now_ms: u64,
        name: &PeerName,
        step: Step,
        microbatch: Microbatch,
        out: &mut Vec<ConductorEffect>,
    ) {
        let Some(stage) = self.serving_stage(name) else { return };
        let member = self.member_stage(name).is_some();
        let Some(ledger) = self.ledger(step, stage) else { return };
        let granted = match member {
            // It takes nothing new; the call was on its way already.
            false => false,
            true => match ledger.claim(microbatch, name, now_ms) {
                Claimed::Waits => return,
                Claimed::Granted => true,
                Claimed::Refused => false,
            },
        };
        out.push(ConductorEffect::ToPeer(name.clone(), ToPeer::Grant { step, microbatch, granted }));
    }

    pub(super) fn unclaim(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        step: Step,
        microbatch: Microbatch,
        out: &mut Vec<ConductorEffect>,
    ) {
        let Some(stage) = self.serving_stage(name) else { return };
        let Some(ledger) = self.ledger(step, stage) else { return };
        if let Some(next) = ledger.unclaim(microbatch, name, now_ms) {
            out.push(ConductorEffect::ToPeer(next, ToPeer::Grant { step, microbatch, granted: true }));
        } else if ledger.is_open(microbatch) {
            self.bring_back(step, microbatch);
        }
    }

    pub(super) fn done(
        &mut self,
        name: &PeerName,
        step: Step,
        contribution: &Contribution,
        took_us: u64,
        out: &mut Vec<ConductorEffect>,
    ) {
        let Some(stage) = self.serving_stage(name).filter(|_| self.index(step).is_some()) else { return };
        let microbatch = contribution.microbatch;
        self.timed(name, stage, took_us);
        let waited = self.ledger(step, stage).and_then(|ledger| ledger.done(contribution, name));
        for peer in waited.into_iter().flatten() {
            out.push(ConductorEffect::ToPeer(peer, ToPeer::Grant { step, microbatch, granted: false }));
        }
    }

    /// The stage of a member, or of one that is finishing what it has claimed.
    fn serving_stage(&self, name: &PeerName) -> Option<StageId> {
        match self.peers.get(name)?.place {
            Place::Member { stage } | Place::HandingOver { stage, .. } => Some(stage),
            _ => None,
        }
    }

    pub(super) fn failed(
        &mut self,
        step: Step,
        microbatch: Microbatch,
        what: &str,
        out: &mut Vec<ConductorEffect>,
    ) {
        if self.index(step).is_some() && self.phase == Phase::Running {
            self.fail(
                format!(
                    "step {step}, microbatch {microbatch}: {what}. Every peer would compute the same; lower the learning rate or the clip, or mend the data, and go on from the last checkpoint"
                ),
                out,
            );
        }
    }

    /// What `name` had of `stage` is open again; averages that the stage is part of are formed anew.
    pub(super) fn reopen(
        &mut self,
        now_ms: u64,
        stage: StageId,
        name: &PeerName,
        out: &mut Vec<ConductorEffect>,
    ) {
        for step in self.open_steps() {
            self.release(now_ms, step, stage, name, out);
        }
        for shard in self.shards_of(stage) {
            self.form_anew(now_ms, shard, out);
        }
    }

    /// An average must be formed from the sums that are still there: what was only in the old one is open again.
    fn form_anew(&mut self, now_ms: u64, shard: ShardId, out: &mut Vec<ConductorEffect>) {
        self.shards[shard as usize].averaging = None;
        for stage in self.shards[shard as usize].stages.clone() {
            for holder in self.open[0].ledgers[stage as usize].holders() {
                if self.serving_stage(&holder) != Some(stage) && !self.in_doubt.contains_key(&holder) {
                    self.release(now_ms, self.step, stage, &holder, out);
                }
            }
        }
    }

    /// What `name` had of `stage` in one step is open again.
    pub(super) fn release(
        &mut self,
        now_ms: u64,
        step: Step,
        stage: StageId,
        name: &PeerName,
        out: &mut Vec<ConductorEffect>,
    ) {
        let Some(index) = self.index(step) else { return };
        let of_step = &mut self.open[index];
        let Released { undone, open, granted } = of_step.ledgers[stage as usize].release(name, now_ms);
        of_step.redone += undone;
        self.totals.redone += u64::from(undone);
        for (peer, microbatch) in granted {
            let grant = ToPeer::Grant { step, microbatch, granted: true };
            out.push(ConductorEffect::ToPeer(peer, grant));
        }
        for microbatch in open {
            self.bring_back(step, microbatch);
        }
    }

    /// A microbatch must be done again, unless a trainer has it: that one will report it finished, and then it comes back.
    fn bring_back(&mut self, step: Step, microbatch: Microbatch) {
        let flies = self.trainers.values().any(|work| work.contains(&(step, microbatch)));
        if let Some(index) = self.index(step).filter(|_| !flies) {
            self.open[index].todo.insert(microbatch);
        }
    }

    /// Shards whose keys are all done are averaged as soon as they are.
    pub(super) fn start_averages(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        if self.step >= self.config.steps {
            return;
        }
        for shard in 0..self.shards.len() {
            let stages = self.shards[shard].stages.clone();
            let complete = stages.iter().all(|&s| {
                self.open[0].ledgers[s as usize].complete()
                    && self.members_of(s).next().is_some()
                    && self.members_of(s).all(|n| self.peers.get(n).is_some_and(|p| p.step == self.step))
                    && !self.handing_over(s)
                    && !self.nearly_there(now_ms, s)
            });
            let early = now_ms < self.shards[shard].not_before_ms;
            if self.shards[shard].averaging.is_some() || !complete || early {
                continue;
            }
            self.round += 1;
            let names: BTreeSet<PeerName> =
                stages.iter().flat_map(|&s| self.members_of(s)).cloned().collect();
            let group: Vec<Mate> =
                names.iter().filter_map(|n| self.peers.get(n)).map(|p| p.mate.clone()).collect();
            for name in &names {
                let average = ToPeer::Average {
                    step: self.step,
                    shard: shard as ShardId,
                    round: self.round,
                    group: group.clone(),
                };
                out.push(ConductorEffect::ToPeer(name.clone(), average));
            }
            self.shards[shard].averaging =
                Some(Averaging { round: self.round, group: names, squares: BTreeMap::new() });
        }
    }

    /// With delayed updates the averages of a step begin as soon as the step before is decided. Whoever waited for that, and gets the update that
    /// it missed, takes part all the same: there is time, as the microbatches of the next step are being done.
    fn nearly_there(&self, now_ms: u64, stage: StageId) -> bool {
        let comes = |p: &PeerState| p.place == Place::Fetching { stage } && p.step + 1 == self.step;
        self.config.delayed_updates
            && self.measured.is_after_edge(now_ms, NEWCOMERS_MS_MIN)
            && self.peers.values().any(comes)
    }

    pub(super) fn averaged(
        &mut self,
        name: &PeerName,
        step: Step,
        shard: ShardId,
        round: u64,
        squares: Vec<f64>,
    ) {
        if step != self.step {
            return;
        }
        let averaging = self.shards.get_mut(shard as usize).and_then(|s| s.averaging.as_mut());
        if let Some(averaging) = averaging.filter(|a| a.round == round && a.group.contains(name)) {
            averaging.squares.insert(name.clone(), squares);
        }
    }

    pub(super) fn average_failed(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        step: Step,
        shard: ShardId,
        round: u64,
        why: &str,
        out: &mut Vec<ConductorEffect>,
    ) {
        let Some(state) = self.shards.get_mut(shard as usize).filter(|_| step == self.step) else { return };
        if state.averaging.as_ref().is_some_and(|a| a.round == round) {
            // Whoever is lost will be reported as such; until then another attempt now and then costs little.
            state.not_before_ms = now_ms + AVERAGE_AGAIN_MS;
            self.form_anew(now_ms, shard, out);
            out.push(ConductorEffect::Note(format!(
                "{name} could not average step {step}: {why}; trying again"
            )));
        }
    }

    /// Everything is averaged everywhere: the step is decided.
    pub(super) fn try_commit(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        let averaged = self.shards.iter().all(|s| s.averaging.as_ref().is_some_and(Averaging::complete));
        let served = (0..self.config.stages).all(|s| self.members_of(s).next().is_some());
        let validated = self.validation.values().all(Option::is_some);
        if !averaged || !served || !validated || self.phase != Phase::Running {
            return;
        }
        let mut squares = Vec::new();
        // Canonical order of tensors: the shared embedding is the first, then stage by stage.
        let (own, shared) = self.shards.split_at(self.config.stages as usize);
        for averaging in shared.iter().chain(own).filter_map(|s| s.averaging.as_ref()) {
            let mut all = averaging.squares.values();
            let first = all.next().cloned().unwrap_or_default();
            if all.any(|other| other.iter().map(|v| v.to_bits()).ne(first.iter().map(|v| v.to_bits()))) {
                self.fail(format!("peers of one stage hold different averages of step {}", self.step), out);
                return;
            }
            squares.extend(first);
        }
        let norm = match clip::norm(&squares) {
            Ok(norm) => norm,
            Err(diverged) => return self.fail(format!("step {}: {diverged}", self.step), out),
        };
        let scale = clip::scale(norm, self.config.clip);
        let step = self.step;
        let members: Vec<PeerName> =
            (0..self.config.stages).flat_map(|s| self.members_of(s)).cloned().collect();
        for name in members {
            out.push(ConductorEffect::ToPeer(name, ToPeer::Apply { step, scale }));
        }
        for name in self.trainers.keys() {
            out.push(ConductorEffect::ToTrainer(name.clone(), ToTrainer::Committed { step }));
        }
        let losses = self.open[0].ledgers.last().map_or(0.0, Ledger::loss);
        let validation: Option<f64> =
            (!self.validation.is_empty()).then(|| self.validation.values().flatten().sum());
        out.push(ConductorEffect::Committed(Committed {
            step,
            loss: losses,
            validation,
            norm,
            redone: self.open[0].redone,
        }));
        self.step += 1;
        self.last_scale = Some(scale);
        self.open_next();
        self.after_commit(now_ms, out);
    }

    pub(super) fn applied(&mut self, name: &PeerName, step: Step, hash: u64, out: &mut Vec<ConductorEffect>) {
        let Some(stage) = self.member_stage(name) else { return };
        if let Some(peer) = self.peers.get_mut(name) {
            peer.step = step;
        }
        let first = *self.hashes.entry((stage, step)).or_insert(hash);
        self.hashes.retain(|(_, s), _| s + 2 > step);
        if first != hash {
            self.fail(
                format!("peers of stage {stage} differ after step {step}: {name} has other weights"),
                out,
            );
        }
    }
}
