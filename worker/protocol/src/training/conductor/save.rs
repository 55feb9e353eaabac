//! Checkpoints: one peer of every stage writes its files, then the manifest makes them one.

use std::collections::BTreeMap;

use dunlin_planner::PeerName;

use super::{Checkpoints, Conductor, ConductorEffect, Phase, Place};
use crate::training::message::{StageId, Step, ToPeer, ToTrainer};

/// Checkpoints that may fail in a row before the run stops.
const FAILURES_MAX: u32 = 5;
/// A checkpoint is of late for this part of the steps from one to the next.
const LATE: Step = 4;
/// A checkpoint that was found sound is not read again before, whoever says that it is damaged.
const DOUBT_MS: u64 = 60_000;
/// A checkpoint that failed is written again after this long.
const AGAIN_MS: u64 = 500;

/// What is there, and what is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Saving {
    /// What there is to go on from, once that is known.
    known: Option<Checkpoints>,
    /// The newest is being looked at: this peer says that it is damaged.
    doubted_by: Option<PeerName>,
    /// It is not looked at again before.
    doubt_not_before_ms: u64,
    /// One is due at the next edge of a step.
    due: bool,
    under_way: Option<UnderWay>,
    failures: u32,
    /// The next attempt is not before.
    not_before_ms: u64,
}

#[derive(Clone, Debug)]
struct UnderWay {
    step: Step,
    /// Who writes which stage, and what came of it.
    stages: BTreeMap<StageId, (PeerName, Option<String>)>,
    sealing: bool,
}

impl Saving {
    pub(super) fn new(saves: bool) -> Self {
        Self { known: (!saves).then_some(Checkpoints::None), ..Self::default() }
    }

    /// The newest sound checkpoint, if there is one.
    pub(super) fn newest(&self) -> Option<Step> {
        match self.known {
            Some(Checkpoints::Newest(step)) => Some(step),
            _ => None,
        }
    }

    /// Is it known what there is to go on from?
    pub(super) fn is_known(&self) -> bool {
        self.known.is_some() && self.doubted_by.is_none()
    }

    /// When there are checkpoints and none is sound: what to tell people.
    pub(super) fn all_damaged(&self) -> Option<String> {
        match &self.known {
            Some(Checkpoints::AllDamaged(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// Takes in what was found. Returns who doubted the newest in vain.
    pub(super) fn found(&mut self, found: Checkpoints) -> Option<PeerName> {
        let sound = self.known.as_ref() == Some(&found);
        self.known = Some(found);
        self.doubted_by.take().filter(|_| sound)
    }

    pub(super) fn want_now(&mut self, saves: bool) {
        self.due |= saves;
    }

    /// Nobody writes any longer. A manifest that is being written may yet become complete.
    pub(super) fn forget(&mut self) {
        self.under_way = self.under_way.take().filter(|u| u.sealing);
    }

    pub(super) fn waits_for(&self, name: &PeerName) -> bool {
        let writes = |u: &UnderWay| u.stages.values().any(|(writer, r)| writer == name && r.is_none());
        self.under_way.as_ref().is_some_and(writes)
    }
}

impl Conductor {
    /// What there is to go on from is known, or known better.
    pub(super) fn found(&mut self, now_ms: u64, found: Checkpoints, out: &mut Vec<ConductorEffect>) {
        if let Some(name) = self.saving.found(found) {
            out.push(ConductorEffect::Note(format!(
                "{name} says that the newest checkpoint is damaged, and it is sound as read from here: see to that machine"
            )));
        }
        let newest = self.saving.newest().unwrap_or(0);
        match self.phase {
            Phase::Gathering if self.gathering.restores() && newest != self.step => self.restore(now_ms, out),
            Phase::Gathering if !self.gathering.restores() => {
                self.step = newest;
                self.open_anew();
            }
            // The run goes on from the memory of its peers; what they have wants to be in a sound checkpoint soon.
            Phase::Running | Phase::Finishing => self.save_for_one_left(),
            _ => {}
        }
    }

    /// A peer says that a checkpoint is damaged, which may be so or may be its own view: it is looked at from here.
    pub(super) fn doubt_checkpoint(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        step: Step,
        out: &mut Vec<ConductorEffect>,
    ) {
        let saving = &mut self.saving;
        let asked = saving.doubted_by.is_some() || now_ms < saving.doubt_not_before_ms;
        if saving.newest() == Some(step) && !asked {
            saving.doubted_by = Some(name.clone());
            saving.doubt_not_before_ms = now_ms + DOUBT_MS;
            out.push(ConductorEffect::Inspect);
        }
    }

    /// At the edge of a step: is a checkpoint due?
    pub(super) fn plan_save(&mut self) {
        let every = self.config.checkpoint_every;
        let last = self.step >= self.config.steps;
        let periodic = every > 0 && self.step > 0 && self.step.is_multiple_of(every);
        if self.config.saves && (last || periodic || self.suspend) && self.saving.newest() != Some(self.step)
        {
            self.saving.due = true;
        }
        if last && self.phase == Phase::Running {
            self.phase = Phase::Finishing;
        }
    }

    /// The loss of one more peer would take everybody back to the newest checkpoint. A new one is written at once, unless the newest is of late:
    /// many losses do not make many checkpoints.
    pub(super) fn save_for_one_left(&mut self) {
        let late = (self.config.checkpoint_every / LATE).max(1);
        if self.saving.newest().unwrap_or(0) + late <= self.step {
            self.saving.want_now(self.config.saves);
        }
    }

    /// Asks one peer of every stage to write, once each has a peer at this step. Whoever is asked has not begun the next update: the
    /// order of what it is told keeps it so.
    pub(super) fn try_save(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        if now_ms < self.saving.not_before_ms
            || !self.saving.due
            || self.saving.known.is_none()
            || self.saving.under_way.is_some()
            || !self.live()
        {
            return;
        }
        let current = |name: &&PeerName| self.peers.get(*name).is_some_and(|p| p.step == self.step);
        let mut writers = BTreeMap::new();
        for stage in 0..self.config.stages {
            // After a failure somebody else writes, if there is anybody.
            let able: Vec<&PeerName> = self.members_of(stage).filter(current).collect();
            let Some(name) = able.get(self.saving.failures as usize % able.len().max(1)) else { return };
            writers.insert(stage, (PeerName::clone(name), None));
        }
        self.saving.due = false;
        for (name, _) in writers.values() {
            out.push(ConductorEffect::ToPeer(name.clone(), ToPeer::Save { step: self.step }));
        }
        self.saving.under_way = Some(UnderWay { step: self.step, stages: writers, sealing: false });
    }

    pub(super) fn saved(
        &mut self,
        name: &PeerName,
        step: Step,
        record: String,
        out: &mut Vec<ConductorEffect>,
    ) {
        let Some(under_way) = self.saving.under_way.as_mut().filter(|u| u.step == step) else { return };
        if let Some((_, slot)) = under_way.stages.values_mut().find(|(writer, _)| writer == name) {
            *slot = Some(record);
        }
        let records: Option<Vec<String>> =
            under_way.stages.values().map(|(_, record)| record.clone()).collect();
        if let Some(records) = records.filter(|_| !under_way.sealing) {
            under_way.sealing = true;
            out.push(ConductorEffect::Seal { step, records });
        }
    }

    pub(super) fn save_failed(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        step: Step,
        why: &str,
        out: &mut Vec<ConductorEffect>,
    ) {
        if self.saving.under_way.as_ref().is_some_and(|u| u.step == step) {
            out.push(ConductorEffect::Note(format!(
                "{name} could not write the checkpoint of step {step}: {why}"
            )));
            self.save_again(now_ms, out);
        }
    }

    pub(super) fn sealed(
        &mut self,
        now_ms: u64,
        step: Step,
        error: Option<String>,
        out: &mut Vec<ConductorEffect>,
    ) {
        if self.saving.under_way.as_ref().is_none_or(|u| u.step != step) {
            return;
        }
        match error {
            None => {
                self.saving.under_way = None;
                self.saving.failures = 0;
                self.saving.known = Some(Checkpoints::Newest(step));
            }
            Some(why) => {
                out.push(ConductorEffect::Note(format!(
                    "the checkpoint of step {step} is not complete: {why}"
                )));
                self.save_again(now_ms, out);
            }
        }
    }

    fn save_again(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        self.saving.not_before_ms = now_ms + AGAIN_MS;
        self.saving.under_way = None;
        self.saving.due = true;
        self.saving.failures += 1;
        if self.saving.failures >= FAILURES_MAX {
            self.fail(
                format!("{FAILURES_MAX} checkpoints in a row could not be written: see to their destination"),
                out,
            );
        }
    }

    /// A peer that was writing is gone.
    pub(super) fn forget_saver(&mut self, name: &PeerName) {
        // Who seals has every record.
        if self.saving.waits_for(name) {
            self.saving.under_way = None;
            self.saving.due = true;
        }
    }

    /// The run ends when its last state is on disk.
    pub(super) fn try_end(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        self.try_save(now_ms, out);
        let saved = (self.saving.newest() == Some(self.step) && self.saving.under_way.is_none())
            || !self.config.saves;
        let over = match self.phase {
            Phase::Finishing => self.validation.values().all(Option::is_some) && saved,
            Phase::Running => self.suspend && saved,
            // Nobody has anything that is not in the last checkpoint.
            Phase::Gathering => self.suspend && self.peers.values().all(|p| p.held.is_none()),
            _ => false,
        };
        if !over {
            return;
        }
        self.phase = if self.phase == Phase::Finishing { Phase::Finished } else { Phase::Suspended };
        let names: Vec<PeerName> = self.peers.keys().cloned().collect();
        for name in names {
            self.place(&name, Place::Retired);
            out.push(ConductorEffect::ToPeer(name, ToPeer::Retire));
        }
        for name in self.trainers.keys() {
            out.push(ConductorEffect::ToTrainer(name.clone(), ToTrainer::Retire));
        }
    }
}
