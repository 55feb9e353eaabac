//! One step: work for trainers, keys for peers, averages, the commit.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_planner::PeerName;

use super::{Averaging, Committed, Conductor, ConductorEffect, Phase, Place};
use crate::training::clip;
use crate::training::ledger::{Claimed, Ledger, Released};
use crate::training::message::{
    Contribution, Mate, Microbatch, ShardId, StageId, Step, ToPeer, ToTrainer, TrainerReport,
};

/// An average that failed is formed again after this long.
const AVERAGE_AGAIN_MS: u64 = 100;

impl Conductor {
    /// All keys of the step are open, all its microbatches to be done.
    pub(super) fn open_step(&mut self) {
        let count = self.config.microbatches;
        for stage in &mut self.stages {
            stage.ledger = Ledger::new(count);
        }
        for shard in &mut self.shards {
            shard.averaging = None;
            shard.not_before_ms = 0;
        }
        let every = self.config.validate_every;
        let due = every > 0 && (self.step.is_multiple_of(every) || self.step >= self.config.steps);
        let batches = if due { self.config.validation_batches } else { 0 };
        self.validation = (count..count + batches).map(|batch| (batch, None)).collect();
        let first = if self.step >= self.config.steps { count } else { 0 };
        self.todo = (first..count + batches).collect();
        for work in self.trainers.values_mut() {
            work.clear();
        }
        self.redone = 0;
    }

    /// Trainers get microbatches, as many as keep the peers busy.
    pub(super) fn give_work(&mut self, out: &mut Vec<ConductorEffect>) {
        if self.trainers.is_empty() || (0..self.config.stages).any(|s| self.members_of(s).next().is_none()) {
            return;
        }
        let members: usize = (0..self.config.stages).map(|s| self.members_of(s).count()).sum();
        // Every member has one to compute and one to wait for, and one is on its way in each stage.
        let wanted = 2 * members + self.config.stages as usize;
        let window = wanted.div_ceil(self.trainers.len()).max(2);
        while let Some(&microbatch) = self.todo.first() {
            let free = self.trainers.iter().filter(|(_, work)| work.len() < window);
            let Some(name) = free.min_by_key(|(_, work)| work.len()).map(|(name, _)| name.clone()) else {
                return;
            };
            self.todo.remove(&microbatch);
            if let Some(work) = self.trainers.get_mut(&name) {
                work.insert(microbatch);
            }
            let validation = microbatch >= self.config.microbatches;
            out.push(ConductorEffect::ToTrainer(
                name,
                ToTrainer::Work { step: self.step, microbatch, validation },
            ));
        }
    }

    pub(super) fn trainer_report(&mut self, name: &PeerName, report: TrainerReport) {
        let TrainerReport::Finished { step, microbatch, loss } = report;
        if step != self.step || !matches!(self.phase, Phase::Running | Phase::Finishing) {
            return;
        }
        let Some(work) = self.trainers.get_mut(name) else { return };
        if !work.remove(&microbatch) {
            return;
        }
        if let Some(slot) = self.validation.get_mut(&microbatch) {
            *slot = slot.or(loss);
            if slot.is_none() {
                self.todo.insert(microbatch);
            }
        } else if self.stages.iter().any(|s| s.ledger.is_open(microbatch)) {
            // A peer was lost that had added it already. A claimed key is not open: its holder's word is on its way.
            self.todo.insert(microbatch);
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
        let Some(stage) = self.serving_stage(name).filter(|_| step == self.step) else { return };
        let granted = match self.member_stage(name) {
            // It takes nothing new; the call was on its way already.
            None => false,
            Some(_) => match self.stages[stage as usize].ledger.claim(microbatch, name, now_ms) {
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
        let Some(stage) = self.serving_stage(name).filter(|_| step == self.step) else { return };
        if let Some(next) = self.stages[stage as usize].ledger.unclaim(microbatch, name, now_ms) {
            out.push(ConductorEffect::ToPeer(next, ToPeer::Grant { step, microbatch, granted: true }));
        } else if self.stages[stage as usize].ledger.is_open(microbatch) {
            self.bring_back(microbatch);
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
        let Some(stage) = self.serving_stage(name).filter(|_| step == self.step) else { return };
        let microbatch = contribution.microbatch;
        self.timed(name, stage, took_us);
        let waited = self.stages[stage as usize].ledger.done(contribution, name);
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
        if step == self.step && self.phase == Phase::Running {
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
        self.release(now_ms, stage, name, out);
        for shard in self.shards_of(stage) {
            self.form_anew(now_ms, shard, out);
        }
    }

    /// An average must be formed from the sums that are still there: what was only in the old one is open again.
    fn form_anew(&mut self, now_ms: u64, shard: ShardId, out: &mut Vec<ConductorEffect>) {
        self.shards[shard as usize].averaging = None;
        for stage in self.shards[shard as usize].stages.clone() {
            for holder in self.stages[stage as usize].ledger.holders() {
                if self.serving_stage(&holder) != Some(stage) && !self.in_doubt.contains_key(&holder) {
                    self.release(now_ms, stage, &holder, out);
                }
            }
        }
    }

    fn release(&mut self, now_ms: u64, stage: StageId, name: &PeerName, out: &mut Vec<ConductorEffect>) {
        let Released { undone, open, granted } = self.stages[stage as usize].ledger.release(name, now_ms);
        self.redone += undone;
        self.totals.redone += u64::from(undone);
        for (peer, microbatch) in granted {
            let grant = ToPeer::Grant { step: self.step, microbatch, granted: true };
            out.push(ConductorEffect::ToPeer(peer, grant));
        }
        for microbatch in open {
            self.bring_back(microbatch);
        }
    }

    /// A microbatch must be done again, unless a trainer has it: that one will report it finished, and then it comes back.
    fn bring_back(&mut self, microbatch: Microbatch) {
        if !self.trainers.values().any(|work| work.contains(&microbatch)) {
            self.todo.insert(microbatch);
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
                self.stages[s as usize].ledger.complete()
                    && self.members_of(s).next().is_some()
                    && !self.handing_over(s)
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
        let losses = self.stages.last().map_or(0.0, |s| s.ledger.loss());
        let validation: Option<f64> =
            (!self.validation.is_empty()).then(|| self.validation.values().flatten().sum());
        out.push(ConductorEffect::Committed(Committed {
            step,
            loss: losses,
            validation,
            norm,
            redone: self.redone,
        }));
        self.step += 1;
        self.last_scale = Some(scale);
        self.open_step();
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
