//! Peers that were lost while a mate took their sums over: whether it has them is not known yet.
//!
//! What they had added is entered as the mate's meanwhile. So a lost peer that comes back begins with nothing, and what it adds then is its own.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

use crate::training::ids::{Microbatch, StageId, Step};

/// Lost peers whose sums may be safe.
#[derive(Default)]
pub struct Doubts {
    lost: BTreeMap<PeerName, Doubt>,
}

/// Sums of a step that a mate may have added to its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    pub step: Step,
    pub stage: StageId,
    pub mate: PeerName,
    /// What is in them.
    pub microbatches: Vec<Microbatch>,
}

impl Doubts {
    /// A peer is lost while a mate takes its sums.
    pub fn begin(&mut self, lost: PeerName, doubt: Doubt) {
        self.lost.insert(lost, doubt);
    }

    /// Nobody has sums any longer.
    pub fn clear(&mut self) {
        self.lost.clear();
    }

    /// Are sums of this peer in doubt?
    pub fn are_of(&self, lost: &PeerName) -> bool {
        self.lost.contains_key(lost)
    }

    /// Are sums of a stage in doubt?
    pub fn are_at(&self, stage: StageId) -> bool {
        self.lost.values().any(|doubt| doubt.stage == stage)
    }

    /// Does a peer take sums of others that are lost?
    pub fn wait_for(&self, mate: &PeerName) -> bool {
        self.lost.values().any(|doubt| doubt.mate == *mate)
    }

    /// The peers whose sums a peer takes.
    pub fn with(&self, mate: &PeerName) -> Vec<PeerName> {
        self.lost.iter().filter(|(_, doubt)| doubt.mate == *mate).map(|(lost, _)| lost.clone()).collect()
    }

    /// A mate has the sums of a step. True if they were in doubt, which ends it.
    pub fn taken(&mut self, lost: &PeerName, step: Step, mate: &PeerName) -> bool {
        let same = |doubt: &Doubt| doubt.step == step && doubt.mate == *mate;
        self.lost.get(lost).is_some_and(same) && self.lost.remove(lost).is_some()
    }

    /// A mate has not got the sums of a peer, and does not get them.
    pub fn end(&mut self, lost: &PeerName) -> Option<Doubt> {
        self.lost.remove(lost)
    }
}
