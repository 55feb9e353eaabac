//! What the leader remembers about a swarm between reconciliations. All of it can be rebuilt: from the cluster, the ConfigMap with the
//! topology and the workers' own reports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dunlin_planner::Topology;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::apply::Applied;
use crate::apply::certificates::Authority;
use crate::observe::Caches;
use crate::peers::Identity;

/// A pod that the watch has not shown for this long after its creation is gone.
const UNSEEN_MAX: Duration = Duration::from_secs(30);

/// Memory of one swarm.
#[derive(Default)]
pub struct Memory {
    /// Certificates, once the authority is there.
    pub trust: Option<Trust>,
    /// When what an earlier operator published was read for the first time.
    pub restored: Option<Instant>,
    /// The version of the published topology that our next one replaces; `None` when it must be read first.
    pub published: Option<Published>,
    /// The gateways' certificate has been checked.
    pub gateway_trusted: bool,
    /// The topology published last.
    pub topology: Option<Topology>,
    /// When the first worker answered before there was a topology.
    pub first_answer: Option<Instant>,
    /// Since when a place of the layout is empty.
    pub gap: Option<Instant>,
    /// Since when newcomers without a place wait for others.
    pub spare: Option<Instant>,
    /// Since when a pod that has not served yet was seen without a node.
    pub unplaced: BTreeMap<String, Instant>,
    /// Since when another layout would be much faster.
    pub imbalance: Option<Instant>,
    /// How many workers in a row ended before they served, and when the last did.
    pub crashed: Option<(u32, Instant)>,
    /// Objects written.
    pub applied: Applied,
    /// Pods created that the watch may not have seen.
    pub created: Vec<(Pod, Instant)>,
    /// Lost pods that were told about already.
    pub lost: BTreeSet<String>,
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

/// The authority of a swarm and our own certificate from it.
pub struct Trust {
    /// Signs leaves.
    pub authority: Authority,
    /// Who we are to workers.
    pub identity: Arc<Identity>,
}

impl Memory {
    /// Pods created that the watch has not shown yet; the others are forgotten.
    pub fn unseen(&mut self, caches: &Caches, namespace: &str, now: Instant) -> Vec<Pod> {
        self.created.retain(|(pod, at)| {
            !caches.has_pod(namespace, &pod.name_any()) && now.duration_since(*at) < UNSEEN_MAX
        });
        self.created.iter().map(|(pod, _)| pod.clone()).collect()
    }
}
