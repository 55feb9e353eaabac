//! Leaving: whoever will be gone takes nothing new in time, and a mate adds its sums to its own.

use dunlin_swarm::PeerName;

use super::machines::doubts::Doubt;
use super::machines::peer::{PeerRecord, Place};
use super::turn::Turn;
use super::{Conductor, Phase};
use crate::training::ids::{StageId, Step};
use crate::training::message::ToPeer;

impl Conductor {
    /// A peer will be gone: those without work go at once, others serve on as long as there is time.
    pub(super) fn doomed(&mut self, turn: &mut Turn<'_>, name: &PeerName, within_ms: u64) {
        self.peers.doom(name, turn.now_ms + within_ms);
        match self.peers.member_stage(name) {
            Some(stage) if self.live() && within_ms > self.config.hand_over_ms => {
                self.last_will_leave(turn, name, stage)
            }
            _ => self.leaving(turn, name),
        }
    }

    /// Those whose time is nearly up.
    pub(super) fn leave_in_time(&mut self, turn: &mut Turn<'_>) {
        let due = |p: &PeerRecord| {
            !p.leaving && p.doomed_ms.is_some_and(|at| turn.now_ms + self.config.hand_over_ms >= at)
        };
        for name in self.peers.those(due) {
            self.leaving(turn, &name);
        }
    }

    /// A peer will be gone. When it is the last of its stage that was to stay, what it knows must be on disk before it goes, and somebody
    /// else must come.
    pub(super) fn last_will_leave(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId) {
        if self.peers.stay_at(stage) {
            return;
        }
        // A peer that was about to go to another stage, and has not begun to hand over, stays instead.
        let goes = Place::HandingOver { stage, to: None };
        let back = self.peers.those(|p| p.place == goes && p.doomed_ms.is_none());
        if back.is_empty() {
            self.saving.want();
            turn.note(format!(
                "{name}, the last peer of stage {stage}, will leave: a checkpoint is written at the end of this step"
            ));
            self.settle(turn);
        }
        for other in back {
            self.stays_after_all(turn, &other, stage);
        }
    }

    /// A peer will be gone soon: it gets no more work and hands its sums to a mate.
    pub(super) fn leaving(&mut self, turn: &mut Turn<'_>, name: &PeerName) {
        let live = self.live();
        let Some(peer) = self.peers.start_leaving(name) else { return };
        if self.phase == Phase::Gathering && peer.held.is_some() {
            // What it holds counts; it goes when the step goes on.
            return;
        }
        match peer.place {
            Place::Member { stage } if live => self.last_will_leave(turn, name, stage),
            Place::Member { .. } | Place::HandingOver { .. } | Place::Clearing { .. } => {}
            Place::Idle | Place::Fetching { .. } | Place::Parked { .. } | Place::Retired => {
                self.peers.place(name, Place::Retired);
                turn.tell(name, ToPeer::Retire);
            }
        }
    }

    pub(super) fn handing_over(&self, stage: StageId) -> bool {
        !self.peers.handing_over(stage).is_empty() || self.doubts.are_at(stage)
    }

    /// Hand-overs that can begin: the leaver has computed what it had claimed, and a mate is there. One whose averages are under way
    /// stays until the step is decided.
    pub(super) fn try_hand_over(&mut self, turn: &mut Turn<'_>) {
        // The last of a stage may go once somebody else has come. When one shard of it is being averaged, the others have to be as well, with
        // the same peers.
        let relieved = self.peers.those_at(|p| match p.place {
            Place::Member { stage }
                if p.leaving && self.peers.are_relieved(stage) && self.averages.collects(stage) =>
            {
                Some(stage)
            }
            _ => None,
        });
        for (name, stage) in relieved {
            self.relieve(turn, &name, stage);
        }
        let waiting = self.peers.those_at(|p| match p.place {
            Place::HandingOver { stage, to: None } => Some(stage),
            _ => None,
        });
        for (name, stage) in waiting {
            if self.occupied(&name, stage) {
                continue;
            }
            let Some((step, contributions)) = self.work.contributions(&name, stage) else {
                self.released(turn, &name);
                continue;
            };
            // One mate at a time takes from one leaver, and it must not be leaving itself.
            let free: Vec<&PeerName> = self.peers.of(stage).filter(|mate| !self.peers.takes(mate)).collect();
            // Rather one that stays.
            let stays = |mate: &&PeerName| self.peers.stays(mate);
            let mate = free.iter().copied().find(stays).or(free.first().copied()).cloned();
            let from = self.peers.get(&name).map(|p| p.mate.clone());
            if let (Some(mate), Some(from)) = (mate, from) {
                self.peers.place(&name, Place::HandingOver { stage, to: Some(mate.clone()) });
                turn.tell(&mate, ToPeer::Take { step, from, contributions });
            }
        }
    }

    /// A peer takes nothing new from now on.
    pub(super) fn relieve(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId) {
        self.peers.place(name, Place::HandingOver { stage, to: None });
        // What it waits for it must not get once its sums are on their way to a mate.
        self.work.refuse_waiting(turn, stage, name);
    }

    /// A peer on its way out serves on. Sums of which a mate has taken a part would count that twice: they are emptied.
    pub(super) fn stays_after_all(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId) {
        let Some(peer) = self.peers.cancel_move(name) else { return };
        if peer.gave.is_none_or(|step| step < self.work.step()) {
            return self.peers.place(name, Place::Member { stage });
        }
        // Nor does it keep what it takes from others.
        self.end_hand_overs_to(turn, name);
        self.reopen(turn, stage, name);
        self.clear(turn, name, stage, self.work.step());
    }

    /// Is there something that a peer does before it can hand over?
    pub(super) fn occupied(&self, name: &PeerName, stage: StageId) -> bool {
        // Sums that it is given, or has been given without a word yet, are handed over with its own.
        self.averages.include(name, stage)
            || self.peers.takes(name)
            || self.doubts.wait_for(name)
            // It was lost and is back; what a mate is told to take of it is what it had then.
            || self.doubts.are_of(name)
            || self.work.is_busy(name, stage)
    }

    /// Can a peer of a stage go without a word?
    pub(super) fn has_nothing(&self, name: &PeerName, stage: StageId) -> bool {
        !self.occupied(name, stage) && self.work.contributions(name, stage).is_none()
    }

    pub(super) fn taken(&mut self, turn: &mut Turn<'_>, mate: &PeerName, step: Step, from: &PeerName) {
        if !self.work.is_open(step) {
            return;
        }
        if self.doubts.taken(from, step, mate) {
            // Lost, but its sums are safe.
            return;
        }
        let Some(stage) = self.peers.taken(from, step, mate) else { return };
        self.work.transfer(step, stage, from, mate);
        if self.has_nothing(from, stage) {
            self.released(turn, from);
        }
    }

    pub(super) fn take_failed(&mut self, turn: &mut Turn<'_>, step: Step, from: &PeerName) {
        if !self.work.is_open(step) {
            return;
        }
        self.not_taken(turn, from);
        self.peers.take_failed(from);
    }

    /// The sums of a peer that was lost are lost with it, if they are in doubt.
    pub(super) fn not_taken(&mut self, turn: &mut Turn<'_>, lost: &PeerName) {
        let Some(Doubt { step, stage, mate, microbatches }) = self.doubts.end(lost) else { return };
        self.work.release_some(turn, (step, stage), &mate, &microbatches);
        for shard in self.averages.of_stage(stage) {
            self.form_anew(turn, shard);
        }
    }
}
