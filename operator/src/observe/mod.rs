//! What the cluster looks like: caches fed by watches, and one immutable [`SwarmView`] per swarm made from them.

mod nodes;
mod pods;
mod watches;

pub use pods::{NodeView, Phase, WorkerView, node, worker};
pub use watches::{Caches, Trigger, run};

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::labels::{
    KIND, Kind, ROLE, ROLE_CONDUCTOR, ROLE_GATEWAY, ROLE_PEER, ROLE_STAGE, ROLE_TRAINER, SWARM,
};

/// A gateway pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayView {
    /// Pod name.
    pub name: String,
    /// Pod IP.
    pub ip: Option<String>,
    /// Its container runs and it is not being deleted.
    pub running: bool,
    /// Ready condition.
    pub ready: bool,
    /// Its certificate says its role: without, stages that ask for one do not talk to it.
    pub has_role: bool,
}

/// One swarm as the cluster shows it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwarmView {
    /// Pods that hold layers, by name: of an InferenceSwarm its stages, of a TrainingSwarm its peers.
    pub workers: BTreeMap<String, WorkerView>,
    /// Gateway pods by name.
    pub gateways: BTreeMap<String, GatewayView>,
    /// Conductors by name: one, and those that it replaces.
    pub conductors: BTreeMap<String, WorkerView>,
    /// Trainers by name.
    pub trainers: BTreeMap<String, WorkerView>,
    /// Some node of the cluster carries a spot marker.
    pub spot_nodes_marked: bool,
}

impl SwarmView {
    /// The view made from all pods with the swarm's label and the nodes, by name.
    #[must_use]
    pub fn new<'a>(pods: impl Iterator<Item = &'a Pod>, nodes: &BTreeMap<String, NodeView>) -> Self {
        let mut view = Self { spot_nodes_marked: nodes.values().any(|n| n.spot), ..Self::default() };
        for pod in pods {
            let node = pod.spec.as_ref().and_then(|s| nodes.get(s.node_name.as_deref()?));
            let crew = match pod.labels().get(ROLE).map(String::as_str) {
                Some(ROLE_STAGE | ROLE_PEER) => &mut view.workers,
                Some(ROLE_CONDUCTOR) => &mut view.conductors,
                Some(ROLE_TRAINER) => &mut view.trainers,
                Some(ROLE_GATEWAY) => {
                    view.gateways.insert(pod.name_any(), gateway(pod));
                    continue;
                }
                _ => continue,
            };
            crew.insert(pod.name_any(), worker(pod, node));
        }
        view
    }

    /// Gateways that are Ready.
    #[must_use]
    pub fn gateways_ready(&self) -> usize {
        self.gateways.values().filter(|g| g.ready).count()
    }
}

fn gateway(pod: &Pod) -> GatewayView {
    let status = pod.status.clone().unwrap_or_default();
    let running = status.phase.as_deref() == Some("Running") && pod.metadata.deletion_timestamp.is_none();
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    GatewayView {
        name: pod.name_any(),
        ip: status.pod_ip.filter(|ip| !ip.is_empty()),
        running,
        ready: running && ready,
        has_role: pods::has_role(pod),
    }
}

/// The swarm that an object with our labels belongs to.
#[must_use]
pub fn swarm_of<K: ResourceExt>(object: &K) -> Option<Trigger> {
    let labels = object.labels();
    let kind = Kind::parse(labels.get(KIND)?)?;
    Some(Trigger { kind, namespace: object.namespace()?, name: labels.get(SWARM)?.clone() })
}
