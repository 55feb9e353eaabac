//! Writing checkpoints: one peer of every stage writes its files, then the manifest makes them one. At the end of the run everybody waits
//! until the last state is written, and read again.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

use super::peer_state::Place;
use super::saving::{Confirmation, Destination, Outcome, UnderWay, Writer};
use super::turn::Turn;
use super::{Conductor, ConductorEffect, Phase};
use crate::training::ids::{StageId, Step};
use crate::training::message::{SaveFailure, ToPeer, ToTrainer};

/// A checkpoint counts as recent for a quarter of the save interval.
const LATE: Step = 4;
/// After an attempt that came to nothing through no fault of the destination the next one is not before.
const AGAIN_MS: u64 = 500;

impl Conductor {
    /// At the edge of a step: is a checkpoint due?
    pub(super) fn plan_save(&mut self) {
        let every = self.config.checkpoint_every;
        let last = self.work.is_over();
        let periodic = every > 0 && self.work.step() > 0 && self.work.step().is_multiple_of(every);
        let wanted = last || periodic || self.suspend;
        if self.config.saves && wanted && self.saving.newest() != Some(self.work.step()) {
            self.saving.due = true;
        }
        if last && self.phase == Phase::Running {
            self.phase = Phase::Finishing;
        }
    }

    /// The loss of one more peer would take everybody back to the newest checkpoint. A new one is written at once, unless the newest is recent:
    /// many losses do not make many checkpoints.
    pub(super) fn save_for_one_left(&mut self) {
        let late = (self.config.checkpoint_every / LATE).max(1);
        if self.saving.newest().unwrap_or(0) + late <= self.work.step() {
            self.saving.want_now(self.config.saves);
        }
    }

    /// Asks one peer of every stage to write, once each has a peer at this step. A peer that is asked has not begun the next update: the
    /// order of what it is told keeps it so.
    fn try_save(&mut self, turn: &mut Turn<'_>) {
        let saving = &self.saving;
        let may =
            saving.due && saving.is_known() && saving.under_way.is_none() && !saving.pauses(turn.now_ms);
        if !may || !self.live() {
            return;
        }
        match self.saving.place {
            Destination::Ready => {}
            Destination::Asked => return,
            Destination::Unready => {
                self.saving.place = Destination::Asked;
                if let Some(step) = self.saving.abandoned.take() {
                    turn.push(ConductorEffect::Discard { step });
                }
                turn.push(ConductorEffect::Prepare);
                return;
            }
        }
        let mut writers = BTreeMap::new();
        for stage in 0..self.config.stages {
            // A peer that empties its sums can say in a moment what is to be written.
            let clearing = self.peers.values().any(|p| p.place == Place::Clearing { stage });
            if clearing || !self.is_agreed(stage) {
                return;
            }
            let Some(name) = self.writer_of(stage) else { return };
            writers.insert(stage, self.writer(name));
        }
        let checkers: Vec<(StageId, Writer)> = writers
            .iter()
            .flat_map(|(stage, w)| {
                self.checkers_of(*stage, &w.name).into_iter().map(|c| (*stage, self.writer(c)))
            })
            .collect();
        self.saving.due = false;
        let step = self.work.step();
        for writer in writers.values() {
            turn.tell(&writer.name, ToPeer::Save { step, check: false });
        }
        for (_, checker) in &checkers {
            turn.tell(&checker.name, ToPeer::Save { step, check: true });
        }
        self.saving.under_way = Some(UnderWay { step, writers, checkers, sealing: false });
    }

    fn writer(&self, name: PeerName) -> Writer {
        let host = self.peers.get(&name).map(|p| p.mate.host.clone()).unwrap_or_default();
        Writer { name, host, outcome: Outcome::Open }
    }

    /// The peer that writes a stage: one on a machine that could write so far, if there is one. After failures it is another one each time.
    fn writer_of(&self, stage: StageId) -> Option<PeerName> {
        let current = |name: &&PeerName| self.peers.get(*name).is_some_and(|p| p.step == self.work.step());
        let able: Vec<&PeerName> = self.members_of(stage).filter(current).collect();
        let Some(trouble) = &self.saving.trouble else { return able.first().copied().cloned() };
        let elsewhere =
            |name: &&&PeerName| self.peers.get(**name).is_some_and(|p| !trouble.is_on(&p.mate.host));
        let next = able.get(trouble.attempts() % able.len().max(1));
        able.iter().find(elsewhere).or(next).copied().cloned()
    }

    pub(super) fn saved(&mut self, turn: &mut Turn<'_>, name: &PeerName, step: Step, record: String) {
        self.written(turn, name, step, Outcome::Written(record));
    }

    pub(super) fn save_failed(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        step: Step,
        failure: SaveFailure,
        why: &str,
    ) {
        let outcome = match failure {
            SaveFailure::Destination => Outcome::Refused(why.to_owned()),
            SaveFailure::OtherStep => Outcome::Missed,
        };
        if self.written(turn, name, step, outcome) {
            turn.note(format!("{name} could not write the checkpoint of step {step}: {why}"));
        }
    }

    /// A writer or checker is done. False when nobody waited for it.
    fn written(&mut self, turn: &mut Turn<'_>, name: &PeerName, step: Step, outcome: Outcome) -> bool {
        let Some(under_way) = self.saving.under_way.as_mut().filter(|u| u.step == step) else { return false };
        let open = |w: &&mut Writer| w.name == *name && w.outcome == Outcome::Open;
        let checkers = under_way.checkers.iter_mut().map(|(_, checker)| checker);
        let Some(writer) = under_way.writers.values_mut().chain(checkers).find(open) else { return false };
        writer.outcome = outcome;
        self.settle_attempt(turn);
        true
    }

    /// A peer that was writing is gone.
    pub(super) fn forget_saver(&mut self, turn: &mut Turn<'_>, name: &PeerName) {
        if let Some(step) = self.saving.under_way.as_ref().map(|u| u.step) {
            self.written(turn, name, step, Outcome::Missed);
        }
    }

    /// Once nobody writes any longer, the files become a checkpoint, or the attempt has come to nothing.
    fn settle_attempt(&mut self, turn: &mut Turn<'_>) {
        let Some(under_way) = self.saving.under_way.as_mut().filter(|u| !u.sealing) else { return };
        if under_way.writers.values().any(|w| w.outcome == Outcome::Open) {
            return;
        }
        let step = under_way.step;
        let record = |writer: &Writer| match &writer.outcome {
            Outcome::Written(record) => Some(record.clone()),
            _ => None,
        };
        if let Some(records) = under_way.writers.values().map(record).collect() {
            if under_way.checkers.iter().any(|(_, c)| c.outcome == Outcome::Open) {
                return;
            }
            let wrong = under_way.compare();
            // What was to be compared, and was not, may be wrong as well.
            let compared = under_way.checkers.iter().all(|(_, c)| record(c).is_some());
            let right = compared && under_way.writers.values().all(|w| !wrong.names(&w.name));
            if right && !wrong.is_tied() {
                under_way.sealing = true;
                turn.push(ConductorEffect::Seal { step, records });
            } else {
                self.give_up_attempt(turn, step);
            }
            self.disagree(turn, step, wrong);
            return;
        }
        let writers = std::mem::take(&mut under_way.writers);
        self.give_up_attempt(turn, step);
        for Writer { name, host, outcome } in writers.into_values() {
            if let Outcome::Refused(why) = outcome {
                self.in_trouble(turn, why.clone());
                if let Some(trouble) = &mut self.saving.trouble {
                    trouble.refused(name, host, why);
                }
            }
        }
    }

    /// What was written of `step` is of no use.
    fn give_up_attempt(&mut self, turn: &mut Turn<'_>, step: Step) {
        self.saving.not_before_ms = turn.now_ms + AGAIN_MS;
        self.saving.under_way = None;
        self.saving.due = true;
        self.saving.place = Destination::Unready;
        turn.push(ConductorEffect::Discard { step });
    }

    /// The destination can take a checkpoint, or not.
    pub(super) fn prepared(&mut self, turn: &mut Turn<'_>, error: Option<String>) {
        if self.saving.place != Destination::Asked {
            return;
        }
        self.saving.place = if error.is_none() { Destination::Ready } else { Destination::Unready };
        if let Some(why) = error {
            self.in_trouble(turn, why);
        }
    }

    pub(super) fn sealed(&mut self, turn: &mut Turn<'_>, step: Step, error: Option<String>) {
        if self.saving.under_way.as_ref().is_none_or(|u| u.step != step) {
            return;
        }
        if let Some(why) = error {
            turn.note(format!("the checkpoint of step {step} is not complete: {why}"));
            self.give_up_attempt(turn, step);
            self.in_trouble(turn, why);
            return;
        }
        let writers = self.saving.under_way.take().map(|u| u.writers).unwrap_or_default();
        self.saving.known.completed(step);
        self.saving.differed = 0;
        self.saving.confirmation = Confirmation::Open;
        if let Some(trouble) = &self.saving.trouble {
            let able = writers.values().map(|w| (&w.name, w.host.as_str()));
            for note in trouble.blame(able) {
                turn.note(note);
            }
        }
        self.trouble_is_over(turn, &format!("the checkpoint of step {step} is written"));
        self.follow_newest(turn);
    }

    /// The last checkpoint was read again.
    pub(super) fn confirmed(&mut self, turn: &mut Turn<'_>, step: Step, error: Option<String>) {
        if self.saving.confirmation != Confirmation::Asked || step != self.work.step() {
            return;
        }
        let Some(why) = error else {
            self.saving.confirmation = Confirmation::Given;
            self.trouble_is_over(turn, "the last checkpoint is there");
            return;
        };
        // What is there now is found out; then what is missing is written again.
        self.saving.confirmation = Confirmation::Open;
        self.in_trouble(turn, why);
        turn.push(ConductorEffect::Inspect);
    }

    /// Is the last state in a checkpoint that was read again?
    fn is_safe(&mut self, turn: &mut Turn<'_>) -> bool {
        let saving = &mut self.saving;
        if !self.config.saves {
            return true;
        }
        if saving.newest() != Some(self.work.step()) || saving.under_way.is_some() || !saving.is_certain() {
            return false;
        }
        if saving.confirmation == Confirmation::Open && !saving.pauses(turn.now_ms) {
            saving.confirmation = Confirmation::Asked;
            turn.push(ConductorEffect::Confirm { step: self.work.step() });
        }
        saving.confirmation == Confirmation::Given
    }

    /// The run ends when its last state is on disk.
    pub(super) fn try_end(&mut self, turn: &mut Turn<'_>) {
        self.try_save(turn);
        let over = match self.phase {
            Phase::Finishing => self.work.is_validated() && self.is_safe(turn),
            Phase::Running => self.suspend && self.is_safe(turn),
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
            turn.tell(&name, ToPeer::Retire);
        }
        self.work.tell_trainers(turn, &ToTrainer::Retire);
    }
}
