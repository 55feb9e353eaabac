//! Watches of pods, nodes and other objects that fill the caches and say which swarms to look at again. They run on every replica, so that a new leader
//! starts with a full picture.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tracing::warn;

use super::children::{Children, Seen};
use super::index::Pods;
use super::nodes::Nodes;
use super::owner::owned_by;
use super::view::SwarmView;
use crate::key::SwarmKey;
use crate::labels::{MANAGER, SWARM};

/// What the watches have seen.
#[derive(Clone, Default)]
pub struct Caches {
    pods: Arc<RwLock<Pods>>,
    nodes: Arc<RwLock<Nodes>>,
    children: Arc<RwLock<Children>>,
}

impl Caches {
    /// One swarm at this moment. `uid`: of the swarm, which may have had a predecessor of its name; `created`: pods just made that the watch may
    /// not have seen yet.
    #[must_use]
    pub fn view(&self, swarm: &SwarmKey, uid: &str, created: &[Pod]) -> SwarmView {
        // In the order in which `take_node` locks them, too.
        let (pods, nodes) = (read(&self.pods), read(&self.nodes));
        let ours = pods.of(swarm).filter(|pod| owned_by(*pod).is_none_or(|owner| owner.uid == uid));
        let created = created.iter().filter(|pod| !pods.has(&swarm.namespace, &pod.name_any()));
        SwarmView::new(ours.chain(created), &nodes)
    }

    /// Whether the watch has seen this pod, as one of a swarm.
    #[must_use]
    pub fn has_pod(&self, namespace: &str, name: &str) -> bool {
        read(&self.pods).has(namespace, name)
    }

    /// A pod as the watch last saw it.
    #[cfg(test)]
    pub fn pod(&self, swarm: &SwarmKey, name: &str) -> Option<Pod> {
        read(&self.pods).of(swarm).find(|pod| pod.name_any() == name).cloned()
    }

    /// Takes what a watch says about pods; the swarms to look at again.
    pub fn take_pod(&self, event: &watcher::Event<Pod>) -> BTreeSet<SwarmKey> {
        write(&self.pods).take(event)
    }

    /// What is known of the objects of `swarm` that are no pods.
    #[must_use]
    pub fn children(&self, swarm: &SwarmKey) -> Seen {
        read(&self.children).of(swarm)
    }

    /// Does what a watch of `kind` would.
    #[cfg(test)]
    pub fn tell<K: ResourceExt>(&self, kind: &'static str, event: &watcher::Event<K>) {
        write(&self.children).take(kind, event, |_| None);
    }

    /// Objects of `kind` are watched from now on.
    #[cfg(test)]
    pub fn watch(&self, kind: &'static str) {
        let mut children = write(&self.children);
        children.watch(kind);
        children.take::<Pod>(kind, &watcher::Event::InitDone, |_| None);
    }

    /// Takes what a watch says about nodes; the swarms with pods on those for which that changes anything.
    pub fn take_node(&self, event: &watcher::Event<Node>) -> BTreeSet<SwarmKey> {
        let (pods, mut nodes) = (read(&self.pods), write(&self.nodes));
        let changed = nodes.take(event);
        if matches!(event, watcher::Event::Delete(_) | watcher::Event::InitDone) {
            nodes.forget_gone(|name| pods.swarms_on(name).next().is_some());
        }
        changed.iter().flat_map(|name| pods.swarms_on(name)).cloned().collect()
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// What is watched, and where.
#[derive(Clone)]
pub struct Scope {
    /// The only namespace, or empty.
    pub namespace: String,
    /// Nodes, too.
    pub nodes: bool,
    /// Secrets, too: their names, labels and versions.
    pub secrets: bool,
}

impl Scope {
    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        if self.namespace.is_empty() {
            Api::all(client.clone())
        } else {
            Api::namespaced(client.clone(), &self.namespace)
        }
    }
}

/// Keeps what is known of the objects of one kind up to date. `failure`: what one says is wrong with it.
fn follow<K>(
    api: Api<K>,
    caches: &Caches,
    triggers: &broadcast::Sender<SwarmKey>,
    failure: fn(&K) -> Option<String>,
) -> BoxFuture<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    // Of a handful of kinds, each once.
    let kind: &'static str = Box::leak(K::kind(&()).into_owned().into_boxed_str());
    let (children, triggers) = (Arc::clone(&caches.children), triggers.clone());
    write(&children).watch(kind);
    let ours = watcher::Config::default().labels(SWARM);
    each(api, ours, kind, move |event| tell(&triggers, write(&children).take(kind, &event, failure)))
}

/// Objects of which metadata say all that matters.
type Metadata<K> = PartialObjectMeta<K>;

/// Why a Deployment gets no pods.
fn replica_failure(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let failed = conditions.filter(|c| c.type_ == "ReplicaFailure" && c.status == "True");
    let message = failed.filter_map(|c| c.message.clone()).next()?;
    // Each attempt has a pod name of its own.
    let stem = format!("\"{}-", deployment.name_any());
    let Some((start, rest)) = message.split_once(&stem) else { return Some(message) };
    let end = rest.find('"').map_or("", |at| &rest[at..]);
    Some(format!("{start}{stem}…{end}"))
}

/// The caches, whether they have seen all pods once, and the future that keeps them up to date for ever.
pub fn run(
    client: &Client,
    scope: &Scope,
    triggers: broadcast::Sender<SwarmKey>,
) -> (Caches, watch::Receiver<bool>, impl Future<Output = ()> + Send + 'static) {
    let caches = Caches::default();
    let (sync, synced) = watch::channel(false);
    let mut objects = vec![
        follow::<Metadata<Service>>(scope.api(client), &caches, &triggers, |_| None),
        follow::<Deployment>(scope.api(client), &caches, &triggers, replica_failure),
        follow::<Metadata<ConfigMap>>(scope.api(client), &caches, &triggers, |_| None),
        follow::<Metadata<PodDisruptionBudget>>(scope.api(client), &caches, &triggers, |_| None),
        follow::<Metadata<NetworkPolicy>>(scope.api(client), &caches, &triggers, |_| None),
    ];
    if scope.secrets {
        objects.push(follow::<Metadata<Secret>>(scope.api(client), &caches, &triggers, |_| None));
    }
    let (pod_triggers, pod_caches) = (triggers.clone(), caches.clone());
    // By a label that does not say whose they are: who loses one that does is seen all the same.
    let managed = watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    let pods = each(scope.api::<Pod>(client), managed, "pods", move |event| {
        let concerned = pod_caches.take_pod(&event);
        if matches!(event, watcher::Event::InitDone) {
            sync.send_replace(true);
        }
        tell(&pod_triggers, concerned);
    });
    if scope.nodes {
        let (nodes, caches) = (Api::<Node>::all(client.clone()), caches.clone());
        let everything = watcher::Config::default();
        objects
            .push(each(nodes, everything, "nodes", move |event| tell(&triggers, caches.take_node(&event))));
    }
    objects.push(pods);
    (caches, synced, futures::future::join_all(objects).map(drop))
}

/// Watches for ever and hands `take` each event.
fn each<K>(
    api: Api<K>,
    config: watcher::Config,
    what: &'static str,
    mut take: impl FnMut(watcher::Event<K>) + Send + 'static,
) -> BoxFuture<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    watcher(api, config)
        .default_backoff()
        .inspect_err(move |error| warn!(%error, what, "watching"))
        .filter_map(|event| async move { event.ok() })
        .for_each(move |event| {
            take(event);
            std::future::ready(())
        })
        .boxed()
}

/// Has swarms looked at again. Nobody listens on a replica that is not the leader.
fn tell(triggers: &broadcast::Sender<SwarmKey>, swarms: BTreeSet<SwarmKey>) {
    for swarm in swarms {
        let _ = triggers.send(swarm);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::key::Kind;
    use crate::observe::PodPhase;
    use crate::testing::{Server, mock_client};

    fn swarm() -> SwarmKey {
        SwarmKey { kind: Kind::Inference, namespace: "default".into(), name: "smollm2".into() }
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
        let caches = Caches::default();
        caches.take_pod(&watcher::Event::Apply(pod("a", "n1")));
        let ours = BTreeSet::from([swarm()]);
        assert_eq!(caches.take_node(&watcher::Event::Apply(node_object("n1", "True"))), ours);
        assert!(caches.take_node(&watcher::Event::Apply(node_object("n1", "True"))).is_empty());
        assert!(caches.take_node(&watcher::Event::Apply(node_object("n2", "True"))).is_empty());
        assert_eq!(caches.take_node(&watcher::Event::Delete(node_object("n1", "True"))), ours);
        assert!(matches!(caches.view(&swarm(), "", &[]).workers["a"].phase, PodPhase::Lost(_)));
    }

    /// An API server that lists `lists` of pods and nodes one after the other, and ends each watch but the last as too old.
    fn serve(mut server: Server, pods: Vec<Vec<Pod>>, nodes: Vec<Vec<Node>>) -> JoinHandle<()> {
        let mut lists = BTreeMap::from([("pods", json!(pods)), ("nodes", json!(nodes))]);
        let expired = json!({"type": "ERROR", "object": {
            "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"
        }});
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Some((request, respond)) = server.next_request().await {
                let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or(""));
                let Some(of) = ["pods", "nodes"].into_iter().find(|kind| path.ends_with(kind)) else {
                    // Of the others there are none.
                    open.push(respond);
                    continue;
                };
                let left = lists.get_mut(of).and_then(Value::as_array_mut).unwrap();
                let body = if query.contains("watch=true") {
                    if left.is_empty() {
                        open.push(respond);
                        continue;
                    }
                    expired.clone()
                } else {
                    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": left.remove(0)})
                };
                respond.send_response(http::Response::new(Body::from(format!("{body}\n").into_bytes())));
            }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_deleted_while_the_watch_was_interrupted_is_gone_and_its_swarm_is_told() {
        let (client, server) = mock_client();
        let both = || vec![node_object("n1", "True"), node_object("n2", "True")];
        let pods =
            vec![vec![pod("a", "n1"), pod("b", "n2"), pod("c", "n1")], vec![pod("a", "n1"), pod("b", "n2")]];
        let server = serve(server, pods, vec![both(), vec![node_object("n1", "True")]]);
        let (triggers, mut triggered) = broadcast::channel(64);
        let everything = Scope { namespace: String::new(), nodes: true, secrets: true };
        let (caches, synced, watches) = run(&client, &everything, triggers);
        let watches = tokio::spawn(watches);
        // Virtual time passes only when everything else waits: both lists have been read by then.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(*synced.borrow());
        let view = caches.view(&swarm(), "", &[]);
        assert_eq!(view.workers.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(view.workers["a"].phase, PodPhase::Running);
        assert!(matches!(view.workers["b"].phase, PodPhase::Lost(_)), "{:?}", view.workers["b"].phase);
        assert_eq!(triggered.try_recv().unwrap(), swarm());
        watches.abort();
        server.abort();
    }

    #[test]
    fn a_deployment_that_gets_no_pods_says_why_in_words_that_stay() {
        let deployment = |message: &str| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"name": "m-gateway"},
                "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": message}]},
            }))
            .unwrap()
        };
        let refused =
            |pod: &str| replica_failure(&deployment(&format!("pods \"{pod}\" is forbidden: quota")));
        assert_eq!(refused("m-gateway-7d-x1"), refused("m-gateway-7d-y2"));
        assert_eq!(refused("m-gateway-7d-x1").as_deref(), Some("pods \"m-gateway-…\" is forbidden: quota"));
        assert_eq!(replica_failure(&deployment("no room")).as_deref(), Some("no room"));
        assert_eq!(replica_failure(&Deployment::default()), None);
    }

    #[test]
    fn pods_just_created_are_in_the_view_before_the_watch_sees_them() {
        let caches = Caches::default();
        caches.take_pod(&watcher::Event::Apply(pod("a", "n1")));
        let view = caches.view(&swarm(), "", &[pod("a", "n1"), pod("b", "n1")]);
        assert_eq!(view.workers.keys().collect::<Vec<_>>(), ["a", "b"]);
        for other in
            [SwarmKey { namespace: "other".into(), ..swarm() }, SwarmKey { kind: Kind::Training, ..swarm() }]
        {
            assert!(caches.view(&other, "", &[]).workers.is_empty());
        }
        assert!(caches.has_pod("default", "a") && !caches.has_pod("default", "b"));
    }
}
