//! Writing checkpoints: one peer of every stage writes its files, then the manifest makes them one. At the end of the run everybody waits
//! until the last state is written, and read again.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

use super::machines::peer::Place;
use super::machines::saving::{WriterOutcome, Wrong};
use super::turn::Turn;
use super::{Conductor, Phase};
use crate::training::ids::{StageId, Step};
use crate::training::message::{Mate, SaveFailure, ToPeer, ToTrainer};

/// A checkpoint counts as recent for a quarter of the save interval.
const LATE: Step = 4;

impl Conductor {
    /// At the edge of a step: is a checkpoint due?
    pub(super) fn plan_save(&mut self) {
        let every = self.config.checkpoint_every;
        let last = self.work.is_over();
        let periodic = every > 0 && self.work.step() > 0 && self.work.step().is_multiple_of(every);
        let wanted = last || periodic || self.suspend;
        if wanted && self.saving.newest() != Some(self.work.step()) {
            self.saving.want();
        }
        if last && self.phase == Phase::Running {
            self.phase = Phase::Finishing;
        }
    }

    /// The loss of one more peer would take everybody back to the newest checkpoint, if one is left at the stage. A new one is written at once then.
    pub(super) fn save_if_one_is_left(&mut self, stage: StageId) {
        if self.peers.of(stage).count() == 1 {
            self.save_unless_recent();
        }
    }

    /// A checkpoint is written at once, unless the newest is recent: many losses do not make many checkpoints.
    pub(super) fn save_unless_recent(&mut self) {
        let late = (self.config.checkpoint_every / LATE).max(1);
        if self.saving.newest().unwrap_or(0) + late <= self.work.step() {
            self.saving.want();
        }
    }

    /// Asks one peer of every stage to write, once each has a peer at this step. A peer that is asked has not begun the next update: the
    /// order of what it is told keeps it so.
    fn try_save(&mut self, turn: &mut Turn<'_>) {
        if !self.live() || !self.saving.may_begin(turn) {
            return;
        }
        let (mut writers, mut checkers) = (BTreeMap::new(), Vec::new());
        for stage in 0..self.config.stages {
            // A peer that empties its sums can say in a moment what is to be written.
            let clearing = self.peers.any(|p| p.place == Place::Clearing { stage });
            if clearing || !self.is_agreed(stage) {
                return;
            }
            let members = self.peers.of(stage).filter_map(|name| self.peers.get(name));
            let able: Vec<&Mate> = members.filter(|p| p.step == self.work.step()).map(|p| &p.mate).collect();
            let Some(writer) = self.saving.writer_of(&able) else { return };
            let others = self.saving.checkers_of(&able, writer);
            checkers.extend(others.into_iter().map(|mate| (stage, mate.clone())));
            writers.insert(stage, writer.clone());
        }
        self.saving.begin(turn, self.work.step(), writers, checkers);
    }

    pub(super) fn save_failed(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        step: Step,
        failure: SaveFailure,
        why: &str,
    ) {
        let answer = match failure {
            SaveFailure::Destination => WriterOutcome::Refused(why.to_owned()),
            SaveFailure::OtherStep => WriterOutcome::Missed,
        };
        if self.written(turn, name, step, answer) {
            turn.note(format!("{name} could not write the checkpoint of step {step}: {why}"));
        }
    }

    /// A peer that was writing is gone.
    pub(super) fn forget_saver(&mut self, turn: &mut Turn<'_>, name: &PeerName) {
        if let Some(step) = self.saving.under_way() {
            self.written(turn, name, step, WriterOutcome::Missed);
        }
    }

    /// A writer or checker is done. False when nobody waited for it.
    pub(super) fn written(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        step: Step,
        answer: WriterOutcome,
    ) -> bool {
        let Some(wrong) = self.saving.written(turn, &self.phase, name, step, answer) else { return false };
        self.disagree(turn, step, wrong);
        true
    }

    /// Those who do not agree on what a checkpoint is.
    fn disagree(&mut self, turn: &mut Turn<'_>, step: Step, Wrong { odd, tied }: Wrong) {
        if !odd.is_empty() {
            let why = format!("what it has for the checkpoint of step {step} is not what most others have");
            self.expel(turn, odd, &why);
        }
        let Some((stage, names)) = tied.first() else { return };
        let names: Vec<&str> = names.iter().map(PeerName::as_str).collect();
        let what = format!(
            "{} have different values of stage {stage} for the checkpoint of step {step}",
            names.join(" and ")
        );
        if self.saving.tie() {
            turn.note(format!("{what}: it is written again, and all others of the stage are asked"));
        } else {
            self.tied(turn, &what);
        }
    }

    /// The run ends when its last state is on disk.
    pub(super) fn try_end(&mut self, turn: &mut Turn<'_>) {
        self.try_save(turn);
        let over = match self.phase {
            Phase::Finishing => self.work.is_validated() && self.saving.confirm(turn, self.work.step()),
            Phase::Running => self.suspend && self.saving.confirm(turn, self.work.step()),
            // Nobody has anything that is not in the last checkpoint.
            Phase::Gathering => self.suspend && self.peers.all().values().all(|p| p.held.is_none()),
            _ => false,
        };
        if !over {
            return;
        }
        self.phase = if self.phase == Phase::Finishing { Phase::Finished } else { Phase::Suspended };
        let names: Vec<PeerName> = self.peers.all().keys().cloned().collect();
        for name in names {
            self.peers.place(&name, Place::Retired);
            turn.tell(&name, ToPeer::Retire);
        }
        self.work.tell_trainers(turn, &ToTrainer::Retire);
    }
}
