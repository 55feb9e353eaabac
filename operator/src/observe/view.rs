//! One swarm as its pods and their nodes show it. Pure: objects in, a view out.

use std::collections::BTreeMap;

use dunlin_wire::Role;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::nodes::Nodes;
use super::owner::owned_by;
use super::pods::{Blocked, NodeView, PodPhase, WorkerView, blocked, has_role, worker};
use crate::deletion::Deletion;
use crate::labels::{
    KIND, POD_HASH, ROLE, ROLE_CONDUCTOR, ROLE_GATEWAY, ROLE_PEER, ROLE_STAGE, ROLE_TRAINER, SWARM,
};

/// A gateway pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayPod {
    /// Pod name.
    pub name: String,
    /// Pod IP.
    pub ip: Option<String>,
    /// Its container runs; one that is being deleted has answers to give yet.
    pub running: bool,
    /// Ready condition.
    pub ready: bool,
    /// What keeps it from running.
    pub blocked: Option<Blocked>,
    /// Its certificate says its role: without, stages that ask for one do not talk to it.
    pub has_role: bool,
    /// Pod UID.
    pub uid: String,
    /// Its node does not confirm deletions.
    pub node_gone: bool,
    /// Fingerprint of what it was made from.
    pub hash: String,
}

/// One swarm as the cluster shows it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwarmView {
    /// Pods that hold layers, by name: of an InferenceSwarm its stages, of a TrainingSwarm its peers.
    pub workers: BTreeMap<String, WorkerView>,
    /// Gateway pods by name.
    pub gateways: BTreeMap<String, GatewayPod>,
    /// Conductors by name: one, and those that it replaces.
    pub conductors: BTreeMap<String, WorkerView>,
    /// Trainers by name.
    pub trainers: BTreeMap<String, WorkerView>,
    /// Why the gateways' Deployment gets no pods, if it gets none.
    pub gateways_refused: Option<String>,
    /// Pods of the swarm without the labels of such: nobody sees them, so they go.
    pub strays: Vec<Deletion>,
    /// Some node of the cluster carries a spot marker.
    pub spot_nodes_marked: bool,
}

impl SwarmView {
    /// The view made from all pods of a swarm and the nodes.
    #[must_use]
    pub(super) fn new<'a>(pods: impl Iterator<Item = &'a Pod>, nodes: &Nodes) -> Self {
        let mut view = Self { spot_nodes_marked: nodes.is_spot_marked(), ..Self::default() };
        for pod in pods {
            let node = pod.spec.as_ref().and_then(|s| nodes.get(s.node_name.as_deref()?));
            if is_stray(pod) {
                if pod.metadata.deletion_timestamp.is_none() {
                    // Its node does not confirm deletions when it is not ready.
                    let now = node.is_some_and(|n| !n.ready);
                    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
                    view.strays.push(Deletion { name, uid, now });
                }
                continue;
            }
            let pods = match pod.labels().get(ROLE).map(String::as_str) {
                Some(ROLE_STAGE | ROLE_PEER) => &mut view.workers,
                Some(ROLE_CONDUCTOR) => &mut view.conductors,
                Some(ROLE_TRAINER) => &mut view.trainers,
                Some(ROLE_GATEWAY) => {
                    view.gateways.insert(pod.name_any(), gateway(pod, node));
                    continue;
                }
                _ => continue,
            };
            pods.insert(pod.name_any(), worker(pod, node));
        }
        view
    }

    /// Pods with `role` that the operator makes one by one; none of another.
    #[must_use]
    pub fn of(&self, role: Role) -> &BTreeMap<String, WorkerView> {
        const NONE: &BTreeMap<String, WorkerView> = &BTreeMap::new();
        match role {
            Role::Stage | Role::Peer => &self.workers,
            Role::Conductor => &self.conductors,
            Role::Trainer => &self.trainers,
            Role::Gateway | Role::Operator => NONE,
        }
    }

    /// Pods of `pool` that hold layers or will, as a ReplicaSet counts its own: without those that are over or on their way out.
    #[must_use]
    pub fn replicas(&self, pool: &str) -> u32 {
        let there = |w: &&WorkerView| w.pool == pool && !w.deleting && !matches!(w.phase, PodPhase::Lost(_));
        u32::try_from(self.workers.values().filter(there).count()).unwrap_or(u32::MAX)
    }

    /// Gateways that are Ready.
    #[must_use]
    pub fn gateways_ready(&self) -> usize {
        self.gateways.values().filter(|g| g.ready).count()
    }
}

fn gateway(pod: &Pod, node: Option<&NodeView>) -> GatewayPod {
    let status = pod.status.clone().unwrap_or_default();
    let running = status.phase.as_deref() == Some("Running");
    let blocked = blocked(&status);
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    GatewayPod {
        name: pod.name_any(),
        ip: status.pod_ip.filter(|ip| !ip.is_empty()),
        running,
        ready: running && ready && pod.metadata.deletion_timestamp.is_none(),
        blocked,
        has_role: has_role(pod),
        uid: pod.uid().unwrap_or_default(),
        node_gone: node.is_some_and(|n| !n.ready),
        hash: pod.labels().get(POD_HASH).cloned().unwrap_or_default(),
    }
}

/// Whether a pod that a swarm owns says otherwise, or not what it is for.
fn is_stray(pod: &Pod) -> bool {
    owned_by(pod).is_some_and(|owner| {
        let labels = pod.labels();
        let says = |key: &str, value: &str| labels.get(key).is_some_and(|label| label == value);
        !says(SWARM, &owner.name) || !says(KIND, &owner.kind) || !labels.contains_key(ROLE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::worker;

    #[test]
    fn replicas_are_the_pods_of_a_pool_that_stay_ready_or_not() {
        let mut view = SwarmView::default();
        for (name, pool) in [("a", "spot"), ("b", "spot"), ("c", "spot"), ("d", "spot"), ("e", "steady")] {
            view.workers.insert(name.into(), worker(name, pool));
        }
        let mut change = |name: &str, phase: PodPhase, deleting: bool| {
            let worker = view.workers.get_mut(name).unwrap();
            (worker.phase, worker.deleting) = (phase, deleting);
        };
        change("b", PodPhase::Pending(Some("no node".into())), false);
        change("c", PodPhase::Draining("it is being deleted"), true);
        change("d", PodPhase::Lost("its container failed"), false);
        assert_eq!((view.replicas("spot"), view.replicas("steady"), view.replicas("none")), (2, 1, 0));
    }
}
