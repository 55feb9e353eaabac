//! What the leader remembers about a swarm between reconciliations. All of it can be rebuilt: from the cluster, the ConfigMap with the
//! topology and the workers' own reports.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::{PeerName, Topology};
use tokio::time::Instant;

use crate::apply::Applied;
use crate::making::Making;
use crate::trust::Trust;
use crate::turnover::Turnover;

/// Memory of one swarm.
#[derive(Default)]
pub struct Memory {
    /// Certificates, once the authority is there.
    pub trust: Option<Trust>,
    /// The Secret with the authority is as it was.
    pub kept: bool,
    /// When what an earlier operator published was read for the first time.
    pub restored: Option<Instant>,
    /// The version of the published topology that our next one replaces; `None` when it must be read first.
    pub published: Option<Published>,
    /// When the gateways' certificate was found good; `None` when it must be looked at.
    pub gateway_trusted: Option<Instant>,
    /// The topology published last.
    pub topology: Option<Topology>,
    /// When the first worker answered before there was a topology.
    pub first_answer: Option<Instant>,
    /// Since when a place of the layout is empty.
    pub gap: Option<Instant>,
    /// Since when newcomers without a place wait for others.
    pub spare: Option<Instant>,
    /// Losses of peers, and peers that wait for a node.
    pub turnover: Turnover,
    /// Since when another layout would be much faster.
    pub imbalance: Option<Instant>,
    /// Peers that were told of as slow.
    pub slow: BTreeSet<PeerName>,
    /// Objects written.
    pub applied: Applied,
    /// Pods in the making.
    pub making: Making,
    /// Since when a gateway cannot reach a peer that answers us.
    pub suspects: BTreeMap<String, Instant>,
    /// Reconciliations that failed in a row.
    pub failures: u32,
}

/// resourceVersion of the published topology, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// There is no ConfigMap yet.
    Nothing,
    /// There is this version.
    Version(String),
}
