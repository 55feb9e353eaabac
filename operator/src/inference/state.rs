//! What decisions about a swarm that serves hand on to one another, and what it takes to write for one.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::{Epoch, PeerName, Topology};
use tokio::time::Instant;

use crate::turnover::Turnover;

/// What a decision hands on to the next one. All of it can be rebuilt: from the ConfigMap with the topology, or by waiting once more.
#[derive(Clone, Debug, Default)]
pub struct ServingState {
    /// The topology that was decided last; of a new leader, what the one before it published.
    pub topology: Option<Topology>,
    /// The greatest epoch that the status or a worker has told of: what is planned next is newer, also if what was published is gone.
    pub epoch_seen: Epoch,
    /// When the first worker answered before there was a topology.
    pub first_answer: Option<Instant>,
    /// Since when a place of the layout is empty.
    pub gap: Option<Instant>,
    /// Since when newcomers without a place wait for others.
    pub spare: Option<Instant>,
    /// Since when another layout would be much faster.
    pub imbalance: Option<Instant>,
    /// Peers that there was an Event about because they are slow.
    pub slow: BTreeSet<PeerName>,
    /// Since when a gateway cannot reach a peer that answers us.
    pub suspects: BTreeMap<String, Instant>,
    /// Those of them that are taken for lost.
    pub unreachable: BTreeSet<String>,
    /// Losses of peers, and peers that wait for a node.
    pub turnover: Turnover,
}

/// What it takes to write, beside what all swarms need.
#[derive(Debug, Default)]
pub struct ServingResources {
    /// The version of the published topology that our next one replaces; `None` when it must be read first.
    pub published: Option<Published>,
    /// The newest topology that is known to be published: what everybody is handed, whatever has been decided since. A new leader reads it, so no
    /// epoch is ever that of two.
    pub given: Option<Topology>,
    /// When the gateways' certificate was found good; `None` when it must be looked at.
    pub gateway_trusted: Option<Instant>,
}

/// resourceVersion of the published topology, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// There is no ConfigMap yet.
    Nothing,
    /// There is this version.
    Version(String),
}

impl ServingState {
    /// That of the topology, or the one that was told of last; 0 before there is any.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.topology.as_ref().map_or(0, |topology| topology.epoch).max(self.epoch_seen)
    }
}
