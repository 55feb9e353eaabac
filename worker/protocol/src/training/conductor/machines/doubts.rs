//! Peers that were lost while a mate took their sums over: whether it has them is not known yet.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

use crate::training::ids::{StageId, Step};

/// Lost peers whose sums may be safe.
#[derive(Default)]
pub struct Doubts {
    lost: BTreeMap<PeerName, Doubt>,
}

struct Doubt {
    step: Step,
    stage: StageId,
    /// The peer that may have added them to its own.
    mate: PeerName,
}

impl Doubts {
    /// A peer of a stage is lost while `mate` takes its sums of a step.
    pub fn begin(&mut self, lost: PeerName, step: Step, stage: StageId, mate: PeerName) {
        self.lost.insert(lost, Doubt { step, stage, mate });
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

    /// A mate has the sums of a step that were in doubt. Says of which stage.
    pub fn taken(&mut self, lost: &PeerName, step: Step, mate: &PeerName) -> Option<StageId> {
        self.lost.get(lost).filter(|doubt| doubt.step == step && doubt.mate == *mate)?;
        self.end(lost)
    }

    /// There is no doubt about the sums of a peer any longer. Says of which stage they were.
    pub fn end(&mut self, lost: &PeerName) -> Option<StageId> {
        self.lost.remove(lost).map(|doubt| doubt.stage)
    }
}
