//! What the API server has, and what the scheduler, the kubelets and the platform make of it: nodes that come and go, pods that find one, start,
//! end and are deleted. Every change is told to watches.

use std::collections::{BTreeMap, VecDeque};

use dunlin_operator::labels::POOL;
use dunlin_swarm::Topology;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Node, NodeCondition, NodeSpec, NodeStatus,
    Pod, PodCondition, PodSpec, Taint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use crate::objects::Objects;

/// What a watch tells.
#[derive(Clone, Debug)]
pub(crate) enum News {
    Pod(Box<Event<Pod>>),
    Node(Box<Event<Node>>),
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for a node.
    Unplaced,
    /// Its container will run at this time.
    Starting(u64),
    /// Its container runs or has ended.
    Started,
}

/// A pod, and what Kubernetes has still to do about it.
#[derive(Clone, Debug)]
pub(crate) struct PodCell {
    pub pod: Pod,
    pub step: Step,
    /// When somebody wanted it to go.
    pub deleted_ms: Option<u64>,
}

impl PodCell {
    pub fn node(&self) -> Option<&str> {
        self.pod.spec.as_ref()?.node_name.as_deref()
    }

    pub fn pool(&self) -> &str {
        self.pod.labels().get(POOL).map_or("", String::as_str)
    }

    pub fn runs(&self) -> bool {
        self.phase() == "Running"
    }

    pub fn phase(&self) -> &str {
        self.pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }
}

/// A node. Its platform may take it back.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub pool: String,
    /// When it stopped; Kubernetes learns that later.
    pub died_ms: Option<u64>,
    /// Kubernetes has noticed.
    pub noticed: bool,
    /// Its platform has said that it will take it.
    pub notice: bool,
    pub object: Node,
}

/// The cluster around one swarm.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub pods: BTreeMap<String, PodCell>,
    pub nodes: BTreeMap<String, Machine>,
    /// What is neither pod nor node.
    pub objects: Objects,
    /// The topology in the ConfigMap among them.
    pub published: Option<Topology>,
    /// Replicas and template of the gateways' Deployment.
    pub gateways: Option<(u32, Pod)>,
    /// What watches have not been told yet.
    pub news: VecDeque<News>,
    made: u64,
}

impl Cluster {
    /// Everything that a watch begins with.
    pub fn list(&self) -> Vec<News> {
        let pods = self.pods.values().map(|cell| Event::InitApply(cell.pod.clone()));
        let pods = [Event::Init].into_iter().chain(pods).chain([Event::InitDone]);
        let nodes = self.nodes.values().map(|machine| Event::InitApply(machine.object.clone()));
        let nodes = [Event::Init].into_iter().chain(nodes).chain([Event::InitDone]);
        let nodes = nodes.map(|event| News::Node(Box::new(event)));
        nodes.chain(pods.map(|event| News::Pod(Box::new(event)))).collect()
    }

    /// A number that nothing else has.
    pub fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// A pod as it is sent to the API server; as it is kept. The same name is the same pod.
    pub fn make(&mut self, mut pod: Pod) -> Pod {
        let name = pod.name_any();
        if let Some(there) = self.pods.get(&name) {
            return there.pod.clone();
        }
        pod.metadata.uid = Some(format!("uid-{}", self.number()));
        pod.status.get_or_insert_default().phase = Some("Pending".into());
        let cell = PodCell { pod: pod.clone(), step: Step::Unplaced, deleted_ms: None };
        self.pods.insert(name.clone(), cell);
        self.tell(&name);
        pod
    }

    /// Somebody deletes the pod `name`, if it has this UID. `now`: without waiting for its node.
    pub fn delete(&mut self, name: &str, uid: &str, at_once: bool, now: u64) {
        let Some(cell) = self.pods.get_mut(name).filter(|cell| cell.pod.uid().as_deref() == Some(uid)) else {
            return;
        };
        if at_once {
            return self.remove(name);
        }
        if cell.deleted_ms.is_none() {
            cell.deleted_ms = Some(now);
            cell.pod.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            self.tell(name);
        }
    }

    /// The pod `name` is gone.
    pub fn remove(&mut self, name: &str) {
        if let Some(cell) = self.pods.remove(name) {
            self.news.push_back(News::Pod(Box::new(Event::Delete(cell.pod))));
        }
    }

    /// Changes a pod and tells it.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut PodCell)) {
        if let Some(cell) = self.pods.get_mut(name) {
            change(cell);
            self.tell(name);
        }
    }

    /// The scheduler finds a node.
    pub fn place(&mut self, name: &str, node: &str, starts_ms: u64) {
        self.change(name, |cell| {
            cell.pod.spec.get_or_insert_with(PodSpec::default).node_name = Some(node.to_owned());
            cell.pod.status.get_or_insert_default().conditions = None;
            cell.step = Step::Starting(starts_ms);
        });
    }

    /// It finds none.
    pub fn unschedulable(&mut self, name: &str) {
        let known = self.pods.get(name).and_then(|cell| cell.pod.status.as_ref()?.conditions.as_ref());
        if known.is_some() {
            return;
        }
        let condition = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some("no node has room".into()),
            ..PodCondition::default()
        };
        self.change(name, |cell| {
            cell.pod.status.get_or_insert_default().conditions = Some(vec![condition]);
        });
    }

    /// Its container runs.
    pub fn start(&mut self, name: &str) {
        let ip = format!("10.0.{}.{}", self.number() / 250, self.made % 250);
        self.change(name, |cell| {
            let status = cell.pod.status.get_or_insert_default();
            status.phase = Some("Running".into());
            status.pod_ip.get_or_insert(ip);
            cell.step = Step::Started;
        });
    }

    /// Its container has ended, with this exit code.
    pub fn ended(&mut self, name: &str, exit_code: i32) {
        self.change(name, |cell| {
            let status = cell.pod.status.get_or_insert_default();
            status.phase = Some(if exit_code == 0 { "Succeeded" } else { "Failed" }.into());
            let terminated = ContainerStateTerminated { exit_code, ..ContainerStateTerminated::default() };
            let state = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
            status.container_statuses =
                Some(vec![ContainerStatus { state: Some(state), ..ContainerStatus::default() }]);
        });
    }

    /// Its readiness probe succeeds, or does not.
    pub fn probe(&mut self, name: &str, is_ready: bool) {
        let status = if is_ready { "True" } else { "False" };
        let conditions = |cell: &PodCell| cell.pod.status.as_ref()?.conditions.clone();
        let known =
            self.pods.get(name).and_then(conditions).and_then(|all| Some(all.first()?.status.clone()));
        if known.as_deref() == Some(status) {
            return;
        }
        let condition =
            PodCondition { type_: "Ready".into(), status: status.into(), ..PodCondition::default() };
        self.change(name, |cell| {
            cell.pod.status.get_or_insert_default().conditions = Some(vec![condition]);
        });
    }

    /// A node joins `pool`. `spot`: with a marker.
    pub fn join(&mut self, pool: &str, spot: bool) -> String {
        let name = format!("{pool}-n{}", self.number());
        self.join_as(&name, pool, spot);
        name
    }

    /// The same with a name.
    pub fn join_as(&mut self, name: &str, pool: &str, spot: bool) {
        let mut object = Node::default();
        object.metadata.name = Some(name.to_owned());
        if spot {
            let marker = ("karpenter.sh/capacity-type".to_owned(), "spot".to_owned());
            object.metadata.labels = Some(BTreeMap::from([marker]));
        }
        let (pool, died_ms, noticed, notice) = (pool.to_owned(), None, false, false);
        self.nodes.insert(name.to_owned(), Machine { pool, died_ms, noticed, notice, object });
        self.node_changed(name, |_| {});
    }

    /// The platform says that it will take a node.
    pub fn notice(&mut self, name: &str) {
        self.node_changed(name, |machine| {
            machine.notice = true;
            let taint = Taint {
                key: "karpenter.sh/disrupted".into(),
                effect: "NoSchedule".into(),
                ..Taint::default()
            };
            machine.object.spec = Some(NodeSpec { taints: Some(vec![taint]), ..NodeSpec::default() });
        });
    }

    /// Kubernetes has not heard of a node for long.
    pub fn node_unknown(&mut self, name: &str) {
        self.node_changed(name, |machine| {
            machine.noticed = true;
            let condition =
                NodeCondition { type_: "Ready".into(), status: "Unknown".into(), ..NodeCondition::default() };
            machine.object.status =
                Some(NodeStatus { conditions: Some(vec![condition]), ..NodeStatus::default() });
        });
    }

    /// The platform says that a node is no more.
    pub fn forget_node(&mut self, name: &str) {
        if let Some(machine) = self.nodes.remove(name) {
            self.news.push_back(News::Node(Box::new(Event::Delete(machine.object))));
        }
    }

    /// The node that a pod runs on works.
    pub fn is_alive(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|machine| machine.died_ms.is_none())
    }

    /// A node of `pool` without a pod that is not about to go.
    pub fn free_node(&self, pool: &str) -> Option<String> {
        let taken = |name: &str| self.pods.values().any(|cell| cell.node() == Some(name));
        let mut free = self.nodes.iter().filter(|(name, machine)| {
            machine.pool == pool && !machine.notice && !machine.noticed && !taken(name)
        });
        free.next().map(|(name, _)| name.clone())
    }

    fn node_changed(&mut self, name: &str, change: impl FnOnce(&mut Machine)) {
        if let Some(machine) = self.nodes.get_mut(name) {
            change(machine);
            self.news.push_back(News::Node(Box::new(Event::Apply(machine.object.clone()))));
        }
    }

    fn tell(&mut self, name: &str) {
        if let Some(cell) = self.pods.get(name) {
            self.news.push_back(News::Pod(Box::new(Event::Apply(cell.pod.clone()))));
        }
    }
}
