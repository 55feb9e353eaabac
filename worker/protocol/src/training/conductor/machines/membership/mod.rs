//! The peers that are there, and what each of them does.
//!
//! [`held`] what they say before the run goes on · [`leaving`] who goes where

mod held;
mod leaving;

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

use super::peer::{PeerRecord, Place};
use crate::training::ids::{StageId, Step};
use crate::training::mates::Mates;
use crate::training::message::{Held, Mate};

/// Everybody who computes, by name.
pub struct Membership {
    peers: BTreeMap<PeerName, PeerRecord>,
    /// Since when each stage has no peer.
    lost_ms: Vec<Option<u64>>,
    /// Something of this changed since others were told.
    changed: bool,
    /// Peers lost without notice.
    lost: u64,
    /// Peers that went from one stage to another.
    moves: u64,
}

impl Membership {
    /// Nobody is there.
    pub fn new(stages: u32) -> Self {
        let lost_ms = vec![None; stages as usize];
        Self { peers: BTreeMap::new(), lost_ms, changed: false, lost: 0, moves: 0 }
    }

    /// All peers.
    pub fn all(&self) -> &BTreeMap<PeerName, PeerRecord> {
        &self.peers
    }

    /// What is known of a peer.
    pub fn get(&self, name: &PeerName) -> Option<&PeerRecord> {
        self.peers.get(name)
    }

    /// The machine that a peer runs on. Empty if that is not known.
    pub fn host(&self, name: &PeerName) -> String {
        self.get(name).map(|p| p.mate.host.clone()).unwrap_or_default()
    }

    /// Peers that were lost without notice, and how often one went to another stage, in the whole run.
    pub fn lost_and_moved(&self) -> (u64, u64) {
        (self.lost, self.moves)
    }

    /// Names of the peers of which something is true.
    pub fn those(&self, is: impl Fn(&PeerRecord) -> bool) -> Vec<PeerName> {
        self.peers.iter().filter(|(_, p)| is(p)).map(|(name, _)| name.clone()).collect()
    }

    /// Names of the peers for which `stage` gives one, and that.
    pub fn those_at(&self, stage: impl Fn(&PeerRecord) -> Option<StageId>) -> Vec<(PeerName, StageId)> {
        self.peers.iter().filter_map(|(name, p)| Some((name.clone(), stage(p)?))).collect()
    }

    /// Is something true of any peer?
    pub fn any(&self, is: impl Fn(&PeerRecord) -> bool) -> bool {
        self.peers.values().any(is)
    }

    /// Peers that serve a stage.
    pub fn of(&self, stage: StageId) -> impl Iterator<Item = &PeerName> {
        let serves = move |peer: &PeerRecord| peer.place == Place::Member { stage };
        self.peers.iter().filter(move |(_, peer)| serves(peer)).map(|(name, _)| name)
    }

    /// Does a peer serve a stage?
    pub fn serve(&self, stage: StageId) -> bool {
        self.of(stage).next().is_some()
    }

    /// Peers that serve, stage by stage.
    pub fn serving(&self) -> Vec<PeerName> {
        (0..self.lost_ms.len() as StageId).flat_map(|stage| self.of(stage)).cloned().collect()
    }

    /// Has every stage a peer that serves it?
    pub fn serve_all(&self) -> bool {
        (0..self.lost_ms.len() as StageId).all(|stage| self.serve(stage))
    }

    /// The stage that a peer serves.
    pub fn member_stage(&self, name: &PeerName) -> Option<StageId> {
        match self.get(name)?.place {
            Place::Member { stage } => Some(stage),
            _ => None,
        }
    }

    /// Has a peer the state of a stage, and waits for averages that it may take part in?
    pub fn is_parked(&self, name: &PeerName) -> bool {
        self.get(name).is_some_and(|p| matches!(p.place, Place::Parked { .. }))
    }

    /// The stage of a member, or of one that is finishing what it has claimed.
    pub fn serving_stage(&self, name: &PeerName) -> Option<StageId> {
        match self.get(name)?.place {
            Place::Member { stage } | Place::HandingOver { stage, .. } => Some(stage),
            _ => None,
        }
    }

    /// Has anybody the state of a stage who serves it, or is about to?
    pub fn hold(&self, stage: StageId) -> bool {
        self.any(|p| p.place.held_stage() == Some(stage))
    }

    /// Something becomes known of a peer, if it is there.
    fn with(&mut self, name: &PeerName, learn: impl FnOnce(&mut PeerRecord)) {
        if let Some(peer) = self.peers.get_mut(name) {
            learn(peer);
        }
    }

    /// A peer comes.
    pub fn join(&mut self, now_ms: u64, mate: Mate, held: Option<Held>) {
        self.peers.insert(mate.name.clone(), PeerRecord::new(now_ms, mate, held));
    }

    /// A peer is gone.
    pub fn gone(&mut self, name: &PeerName) -> Option<PeerRecord> {
        let peer = self.peers.remove(name)?;
        self.changed = true;
        Some(peer)
    }

    /// It was not to go: it counts as lost.
    pub fn count_lost(&mut self) {
        self.lost += 1;
    }

    /// All are gone, and none is lost.
    pub fn clear(&mut self) {
        self.peers.clear();
        self.changed = true;
    }

    /// A peer does something else from now on.
    pub fn place(&mut self, name: &PeerName, place: Place) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.place = place;
            self.changed = true;
        }
    }

    /// Others are to be told who does what.
    pub fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// Are they? Asking again says no.
    pub fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// A stage has no peer from now on.
    pub fn lose_stage(&mut self, now_ms: u64, stage: StageId) {
        self.lost_ms[stage as usize] = Some(now_ms);
    }

    /// Since when a stage has had no peer: since now, if that was not known before.
    pub fn lost_since(&mut self, now_ms: u64, stage: StageId) -> u64 {
        *self.lost_ms[stage as usize].get_or_insert(now_ms)
    }

    /// A stage has a peer, or need not have one.
    pub fn regain_stage(&mut self, stage: StageId) {
        self.lost_ms[stage as usize] = None;
    }

    /// No stage is missed any longer.
    pub fn forget_losses(&mut self) {
        self.lost_ms.fill(None);
    }

    /// A peer brings something, or owes nothing.
    pub fn hear_from(&mut self, now_ms: u64, name: &PeerName) {
        self.with(name, |peer| peer.quiet_since_ms = now_ms);
    }

    /// A peer has made the update to a step.
    pub fn set_step(&mut self, name: &PeerName, step: Step) {
        self.with(name, |peer| peer.step = step);
    }

    /// A peer has the state of its stage at a step, and nothing in its sums.
    pub fn got_state(&mut self, name: &PeerName, step: Step) {
        self.with(name, |peer| (peer.step, peer.gave) = (step, None));
    }

    /// A peer got a state that is not the right one. Says how often that was.
    pub fn got_wrong_state(&mut self, name: &PeerName) -> Option<u32> {
        let peer = self.peers.get_mut(name)?;
        peer.wrong_states += 1;
        Some(peer.wrong_states)
    }

    /// A peer fetches the whole state of its new stage.
    pub fn start_fetch(&mut self, now_ms: u64, name: &PeerName) {
        self.with(name, |peer| peer.fetch_since_ms = Some(now_ms));
    }

    /// It has that. Says since when it fetched, the first time.
    pub fn fetched(&mut self, name: &PeerName) -> Option<u64> {
        self.peers.get_mut(name)?.fetch_since_ms.take()
    }

    /// A peer could not get the state of a stage. False when it did not try.
    pub fn fetch_failed(&mut self, name: &PeerName) -> bool {
        let fetches = |p: &&mut PeerRecord| matches!(p.place, Place::Fetching { .. });
        let Some(peer) = self.peers.get_mut(name).filter(fetches) else { return false };
        peer.place = Place::Idle;
        peer.fetch_since_ms = None;
        peer.held = None;
        true
    }

    /// A peer took so long for a row forward, at a stage of cost 1.
    pub fn timed(&mut self, name: &PeerName, seconds_per_row: f64) {
        self.with(name, |peer| peer.speed.measure(seconds_per_row));
    }

    /// A peer gives values to these from now on. False when it did already.
    pub fn set_mates(&mut self, name: &PeerName, mates: &Mates) -> bool {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.mates != *mates) else { return false };
        peer.mates.clone_from(mates);
        true
    }

    /// Whoever has a state empties its sums. Returns them.
    pub fn all_clear(&mut self, now_ms: u64) -> Vec<PeerName> {
        self.changed = true;
        let mut names = Vec::new();
        for (name, peer) in &mut self.peers {
            if let Some(stage) = peer.place.held_stage() {
                peer.place = Place::Clearing { stage };
                peer.moving = None;
                peer.quiet_since_ms = now_ms;
                names.push(name.clone());
            }
        }
        names
    }
}
