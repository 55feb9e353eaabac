//! Watches of pods and nodes that fill the caches and say which swarms to look at again. They run on every replica, so that a new leader
//! starts with a full picture.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, RwLock};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::broadcast;
use tracing::warn;

use super::{NodeView, SwarmView, node, swarm_of};
use crate::labels::{Kind, SWARM};

/// A swarm to look at again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trigger {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What the watches have seen.
#[derive(Clone)]
pub struct Caches {
    pods: Store<Pod>,
    nodes: Arc<RwLock<BTreeMap<String, NodeView>>>,
}

impl Caches {
    /// Caches over a filled store and known nodes.
    #[must_use]
    pub fn new(pods: Store<Pod>, nodes: BTreeMap<String, NodeView>) -> Self {
        Self { pods, nodes: Arc::new(RwLock::new(nodes)) }
    }

    /// One swarm at this moment. `created`: pods just made that the watch may not have seen yet.
    #[must_use]
    pub fn view(&self, swarm: &Trigger, created: &[Pod]) -> SwarmView {
        let ours = |pod: &Pod| swarm_of(pod).as_ref() == Some(swarm);
        let seen = self.pods.state_filter(ours);
        let known = |pod: &&Pod| !seen.iter().any(|s| s.name_any() == pod.name_any());
        SwarmView::new(seen.iter().map(AsRef::as_ref).chain(created.iter().filter(known)), &self.nodes())
    }

    /// Whether the watch has seen this pod.
    #[must_use]
    pub fn has_pod(&self, namespace: &str, name: &str) -> bool {
        self.pods.get(&ObjectRef::new(name).within(namespace)).is_some()
    }

    /// A pod as the watch last saw it.
    #[cfg(test)]
    pub fn pod(&self, reference: &ObjectRef<Pod>) -> Option<Pod> {
        self.pods.get(reference).map(|pod| (*pod).clone())
    }

    /// Waits until pods have been listed once.
    pub async fn synced(&self) {
        // An error means that the watch ended: the process is going down.
        let _ = self.pods.wait_until_ready().await;
    }

    fn nodes(&self) -> BTreeMap<String, NodeView> {
        self.nodes.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Takes what a watch says about a node; the swarms with pods on it, if that changes anything for them.
    fn take_node(&self, seen: &watcher::Event<Node>) -> Vec<Trigger> {
        let mut nodes = self.nodes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (name, changed) = match seen {
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                let new = node(object);
                let name = new.name.clone();
                let changed = nodes.insert(name.clone(), new.clone()).is_none_or(|old| old != new);
                (name, changed)
            }
            // The pods of a deleted node are collected by Kubernetes; until then they are on a node that is not ready.
            watcher::Event::Delete(object) => {
                let name = object.name_any();
                let gone = NodeView { name: name.clone(), ready: false, ..NodeView::default() };
                (name.clone(), nodes.insert(name, gone).is_none_or(|old| old.ready))
            }
            watcher::Event::Init | watcher::Event::InitDone => return Vec::new(),
        };
        drop(nodes);
        let on_it = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&name);
        let mut swarms: Vec<Trigger> =
            self.pods.state_filter(on_it).iter().filter_map(|p| swarm_of(p.as_ref())).collect();
        swarms.sort();
        swarms.dedup();
        if matches!(seen, watcher::Event::Delete(_)) && swarms.is_empty() {
            self.nodes.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&name);
        }
        if changed { swarms } else { Vec::new() }
    }
}

/// The caches, and the future that keeps them up to date for ever. `namespace`: the only one to watch, or empty.
pub fn run(
    client: &Client,
    namespace: &str,
    watch_nodes: bool,
    triggers: broadcast::Sender<Trigger>,
) -> (Caches, impl Future<Output = ()> + Send + 'static) {
    let (pods, writer) = store::<Pod>();
    let caches = Caches::new(pods, BTreeMap::new());
    let api: Api<Pod> = if namespace.is_empty() {
        Api::all(client.clone())
    } else {
        Api::namespaced(client.clone(), namespace)
    };
    let pod_triggers = triggers.clone();
    let pods = watcher(api, watcher::Config::default().labels(SWARM))
        .default_backoff()
        .reflect(writer)
        .inspect_err(|error| warn!(%error, "watching pods"))
        .touched_objects()
        .filter_map(|pod| async move { pod.ok() })
        .for_each(move |pod| {
            if let Some(swarm) = swarm_of(&pod) {
                // Nobody listens on a replica that is not the leader.
                let _ = pod_triggers.send(swarm);
            }
            std::future::ready(())
        });
    let nodes_client = client.clone();
    let node_caches = caches.clone();
    let nodes = async move {
        if !watch_nodes {
            return;
        }
        watcher(Api::<Node>::all(nodes_client), watcher::Config::default())
            .default_backoff()
            .inspect_err(|error| warn!(%error, "watching nodes"))
            .filter_map(|event| async move { event.ok() })
            .for_each(move |event| {
                for swarm in node_caches.take_node(&event) {
                    let _ = triggers.send(swarm);
                }
                std::future::ready(())
            })
            .await;
    };
    (caches, async move {
        futures::join!(pods, nodes);
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn swarm() -> Trigger {
        Trigger { kind: Kind::Inference, namespace: "default".into(), name: "smollm2".into() }
    }

    fn pod(name: &str, node: &str) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {
                SWARM: "smollm2", "dunlin.dev/kind": "InferenceSwarm", "dunlin.dev/role": "stage"
            }},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    fn node_object(name: &str, ready: &str) -> Node {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_triggers_the_swarms_on_it_once_per_change() {
        let (reader, mut writer) = store::<Pod>();
        writer.apply_watcher_event(&watcher::Event::Apply(pod("a", "n1")));
        let caches = Caches::new(reader, BTreeMap::new());
        let swarm = vec![swarm()];
        assert_eq!(caches.take_node(&watcher::Event::Apply(node_object("n1", "True"))), swarm);
        assert!(caches.take_node(&watcher::Event::Apply(node_object("n1", "True"))).is_empty());
        assert!(caches.take_node(&watcher::Event::Apply(node_object("n2", "True"))).is_empty());
        assert_eq!(caches.take_node(&watcher::Event::Delete(node_object("n1", "True"))), swarm);
        assert!(matches!(caches.view(&swarm[0], &[]).workers["a"].phase, super::super::Phase::Lost(_)));
    }

    #[test]
    fn pods_just_created_are_in_the_view_before_the_watch_sees_them() {
        let (reader, mut writer) = store::<Pod>();
        writer.apply_watcher_event(&watcher::Event::Apply(pod("a", "n1")));
        let caches = Caches::new(reader, BTreeMap::new());
        let view = caches.view(&swarm(), &[pod("a", "n1"), pod("b", "n1")]);
        assert_eq!(view.workers.keys().collect::<Vec<_>>(), ["a", "b"]);
        for other in
            [Trigger { namespace: "other".into(), ..swarm() }, Trigger { kind: Kind::Training, ..swarm() }]
        {
            assert!(caches.view(&other, &[]).workers.is_empty());
        }
        assert!(caches.has_pod("default", "a") && !caches.has_pod("default", "b"));
    }
}
