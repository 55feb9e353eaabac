//! Peers on their way out of a stage, for another one or for good.

use dunlin_swarm::PeerName;

use super::Membership;
use crate::training::conductor::machines::peer::{Moving, PeerRecord, Place};
use crate::training::ids::{StageId, Step};

impl Membership {
    /// Has a stage a peer that will not be gone, as far as is known?
    pub fn stay_at(&self, stage: StageId) -> bool {
        self.of(stage).any(|name| self.stays(name))
    }

    /// Will a peer not be gone, as far as is known?
    pub fn stays(&self, name: &PeerName) -> bool {
        self.get(name).is_some_and(|p| p.doomed_ms.is_none())
    }

    /// Has a stage a peer that does not leave yet?
    pub fn are_relieved(&self, stage: StageId) -> bool {
        self.of(stage).any(|name| self.get(name).is_some_and(|p| !p.leaving))
    }

    /// Peers that hand their sums of a stage over.
    pub fn handing_over(&self, stage: StageId) -> Vec<PeerName> {
        self.those(|p| matches!(p.place, Place::HandingOver { stage: s, .. } if s == stage))
    }

    /// Does a peer take the sums of another?
    pub fn takes(&self, mate: &PeerName) -> bool {
        self.any(|p| matches!(&p.place, Place::HandingOver { to: Some(to), .. } if to == mate))
    }

    /// A peer will be gone at this time, or sooner if it said so before.
    pub fn doom(&mut self, name: &PeerName, at_ms: u64) {
        let sooner = |before: u64| before.min(at_ms);
        self.with(name, |peer| peer.doomed_ms = Some(peer.doomed_ms.map_or(at_ms, sooner)));
    }

    /// A peer is to go. Not when it was before.
    pub fn start_leaving(&mut self, name: &PeerName) -> Option<&PeerRecord> {
        let peer = self.peers.get_mut(name).filter(|p| !p.leaving)?;
        peer.leaving = true;
        Some(peer)
    }

    /// A peer is to go to another stage, once a mate has its sums.
    pub fn plan_move(&mut self, name: &PeerName, moving: Moving) {
        self.with(name, |peer| peer.moving = Some(moving));
    }

    /// A peer is to stay where it is after all.
    pub fn cancel_move(&mut self, name: &PeerName) -> Option<&PeerRecord> {
        let peer = self.peers.get_mut(name)?;
        peer.moving = None;
        Some(peer)
    }

    /// A peer whose sums are of no more use where it is has nothing to do from now on, or may go. Says where it was to move, unless it is to go for good.
    pub fn released(&mut self, now_ms: u64, name: &PeerName) -> Option<Moving> {
        let peer = self.peers.get_mut(name)?;
        let moving = peer.moving.take().filter(|_| !peer.leaving);
        if moving.is_some() {
            peer.moved_ms = Some(now_ms);
        }
        self.place(name, if moving.is_some() { Place::Idle } else { Place::Retired });
        moving
    }

    /// One more went from one stage to another.
    pub fn moved(&mut self) {
        self.moves += 1;
    }

    /// A mate has the sums of a peer of a step. Says of which stage, if that mate was to take them.
    pub fn taken(&mut self, from: &PeerName, step: Step, mate: &PeerName) -> Option<StageId> {
        let peer = self.peers.get_mut(from)?;
        let Place::HandingOver { stage, to } = &mut peer.place else { return None };
        to.take_if(|to| to == mate)?;
        peer.gave = Some(step);
        Some(*stage)
    }

    /// A mate could not take the sums of a peer.
    pub fn take_failed(&mut self, from: &PeerName) {
        if let Some(PeerRecord { place: Place::HandingOver { to, .. }, .. }) = self.peers.get_mut(from) {
            *to = None;
        }
    }

    /// This mate takes no sums over any more.
    pub fn end_takes_by(&mut self, mate: &PeerName) {
        for peer in self.peers.values_mut() {
            if let Place::HandingOver { to, .. } = &mut peer.place {
                to.take_if(|to| to == mate);
            }
        }
    }
}
