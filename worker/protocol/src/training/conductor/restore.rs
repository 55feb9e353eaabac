//! Beginning from a checkpoint, or from the first values when there is none: at the start of a run, and when a stage has lost all its peers.
//!
//! A manifest that is being written when the last peer of a stage is lost may yet become complete, and is newer than any other: what comes of it is waited for. Should
//! something newer turn up while everybody loads, everybody loads that.

use dunlin_swarm::PeerName;

use super::machines::gathering::Gathering;
use super::machines::peer::Place;
use super::turn::Turn;
use super::{Conductor, Phase};
use crate::training::ids::StageId;
use crate::training::message::{StageStart, ToPeer, ToTrainer};

/// A manifest that takes longer is not waited for.
const SEAL_MS_MAX: u64 = 60_000;

impl Conductor {
    /// Is there something that peers can begin with, now? When every checkpoint is damaged the run ends here: it would lose all steps without a
    /// word if it began anew.
    pub(super) fn may_load(&mut self, turn: &mut Turn<'_>) -> bool {
        if let Some(why) = self.saving.known().all_damaged() {
            self.fail(turn, why);
        }
        let seals = self.saving.seals().is_some() && self.gathering.waits_for_seal(turn.now_ms);
        self.phase == Phase::Gathering && self.saving.known().is_certain() && !seals
    }

    /// Peers without a stage load one. When a stage has nobody then, and another more than it needs, somebody moves.
    pub(super) fn load_all(&mut self, turn: &mut Turn<'_>) {
        for (name, stage) in self.places(turn, false) {
            let has = [Place::Member { stage }, Place::Fetching { stage }];
            if self.peers.get(&name).is_some_and(|p| !has.contains(&p.place)) {
                self.load(turn, name, stage);
            }
        }
    }

    /// A peer begins with a stage, from the newest checkpoint if there is one.
    fn load(&mut self, turn: &mut Turn<'_>, name: PeerName, stage: StageId) {
        self.peers.place(&name, Place::Fetching { stage });
        let checkpoint = self.saving.newest().is_some();
        turn.tell(&name, ToPeer::Load(StageStart { stage, step: self.work.step(), checkpoint }));
    }

    /// The last peer of a stage is gone, with the newest state of its layers.
    pub(super) fn stage_lost(&mut self, turn: &mut Turn<'_>, stage: StageId) {
        let step = self.work.step();
        turn.note(format!("stage {stage} has no peer left at step {step}: all go back"));
        self.restore(turn);
    }

    /// Everybody loads the newest checkpoint, once it is known which that is.
    pub(super) fn restore(&mut self, turn: &mut Turn<'_>) {
        self.work.tell_trainers(turn, &ToTrainer::Anew);
        self.phase = Phase::Gathering;
        self.trust.forget_states();
        self.peers.forget_losses();
        self.saving.forget();
        self.doubts.clear();
        self.gathering = Gathering::restoring(turn.now_ms, turn.now_ms + SEAL_MS_MAX);
        self.begin_at(self.saving.newest().unwrap_or(0), None);
        self.peers.forget_held();
        if !self.may_load(turn) {
            if let Some(step) = self.saving.seals() {
                turn.note(format!(
                    "the checkpoint of step {step} is being completed: nobody goes back to an older one before that is over"
                ));
            }
            self.peers.all_idle();
            return;
        }
        let from = match self.saving.newest() {
            Some(step) => format!("the checkpoint of step {step}"),
            None => "the first values".to_owned(),
        };
        turn.note(format!("everybody begins from {from}"));
        let places = self.places(turn, true);
        let names: Vec<PeerName> = self.peers.all().keys().cloned().collect();
        for name in names {
            let Some(peer) = self.peers.get(&name) else { continue };
            match (places.get(&name), &peer.place) {
                (Some(stage), _) => self.load(turn, name, *stage),
                (None, Place::Retired | Place::Idle) => {}
                (None, _) => {
                    self.peers.place(&name, Place::Retired);
                    turn.tell(&name, ToPeer::Retire);
                }
            }
        }
    }

    /// The newest checkpoint has changed: whoever is loading an older one loads that instead.
    pub(super) fn follow_newest(&mut self, turn: &mut Turn<'_>) {
        let newest = self.saving.newest().unwrap_or(0);
        if self.phase == Phase::Gathering && self.gathering.restores() && newest != self.work.step() {
            self.restore(turn);
        }
    }
}
