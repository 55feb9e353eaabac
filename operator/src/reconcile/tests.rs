//! Reconciliations against a mocked API server: which calls, in which order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use http::Response;
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::store;
use kube::runtime::watcher;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::*;
use crate::apply::Applier;
use crate::config::Config;
use crate::context::Memories;
use crate::metrics::Metrics;
use crate::observe::Caches;
use crate::peers::{Answering, Connect, ModelFacts, Monitor, Question, Report, Talk, Target, WorkerState};
use crate::testing::{Seen, Server, described, kinds, mock_client};

/// Every worker answers Ready, holding what it was last told; the model has 30 layers.
struct Workers;

struct Worker(String, Vec<dunlin_planner::Layers>, u64);

impl Connect for Workers {
    fn connect(&self, target: &Target) -> Result<Box<dyn Talk>, String> {
        Ok(Box::new(Worker(target.name.clone(), vec![], 0)))
    }
}

impl Talk for Worker {
    fn ask(&mut self, question: Question) -> Answering<'_> {
        if let Question::Take(epoch, topology) = question {
            let topology = dunlin_planner::Topology::parse(&topology).unwrap();
            self.1 = topology.peer(&self.0.as_str().into()).map(|p| p.hold()).unwrap_or_default();
            self.2 = epoch;
        }
        let report = Report {
            state: WorkerState::Ready,
            epoch: self.2,
            held: self.1.clone(),
            model: Some(ModelFacts { layer_bytes: vec![1 << 20; 30], ..ModelFacts::default() }),
            ..Report::default()
        };
        Box::pin(async move { Ok(report) })
    }
}

/// The ConfigMap with the topology, as the server has it, and its version.
#[derive(Clone, Default)]
struct Stored(Arc<Mutex<Option<(u64, Value)>>>);

impl Stored {
    /// Somebody else writes.
    fn put(&self, topology: &dunlin_planner::Topology) {
        let mut slot = self.0.lock().unwrap();
        let (version, map) = slot.as_mut().unwrap();
        *version += 1;
        map["data"]["topology.json"] = json!(serde_json::to_string(topology).unwrap());
    }

    fn topology(&self) -> dunlin_planner::Topology {
        let slot = self.0.lock().unwrap();
        let text = slot.as_ref().unwrap().1["data"]["topology.json"].as_str().unwrap().to_owned();
        dunlin_planner::Topology::parse(&text).unwrap()
    }

    /// The server's answer to a call about it.
    fn answer(&self, call: &str, body: &Value) -> (u16, Value) {
        let mut slot = self.0.lock().unwrap();
        let known = slot.as_ref().map(|(version, _)| json!(version.to_string()));
        let accepted = match call.split(' ').next() {
            Some("GET") => known.is_some(),
            Some("POST") => known.is_none(),
            _ => known.as_ref() == Some(&body["metadata"]["resourceVersion"]),
        };
        if !accepted {
            let (code, reason) = if call.starts_with("GET") { (404, "NotFound") } else { (409, "Conflict") };
            return (
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "message": "", "reason": reason}),
            );
        }
        if !call.starts_with("GET") {
            let version = slot.as_ref().map_or(1, |(version, _)| version + 1);
            *slot = Some((version, body.clone()));
        }
        let (version, mut map) = slot.clone().unwrap();
        map["metadata"]["resourceVersion"] = json!(version.to_string());
        (200, map)
    }
}

/// Answers like an API server that has nothing but the topology and accepts everything but calls that start with `refuse`.
fn serve(mut server: Server, seen: Seen, published: Stored, refuse: &'static str) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some((request, respond)) = server.next_request().await {
            let (call, body) = described(request).await;
            let (code, answer) = if !refuse.is_empty() && call.starts_with(refuse) {
                (
                    403,
                    json!({"kind": "Status", "status": "Failure", "code": 403, "message": "no quota", "reason": "Forbidden"}),
                )
            } else if call.contains("configmaps") {
                published.answer(&call, &body)
            } else if call.starts_with("GET") {
                (
                    404,
                    json!({"kind": "Status", "status": "Failure", "code": 404, "message": "", "reason": "NotFound"}),
                )
            } else {
                let mut object = body.clone();
                if call.contains("inferenceswarms") {
                    object = serde_json::to_value(swarm(1, false).as_ref()).unwrap();
                }
                if object["metadata"]["uid"].is_null() {
                    object["metadata"]["uid"] = json!("made-here");
                }
                (201, object)
            };
            seen.push(call, body);
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            respond.send_response(Response::builder().status(code).body(body).unwrap());
        }
    })
}

struct World {
    context: Arc<Context>,
    pods: kube::runtime::reflector::store::Writer<Pod>,
    seen: Seen,
    published: Stored,
    _server: JoinHandle<()>,
}

fn world(refuse: &'static str) -> World {
    let (client, server) = mock_client();
    let seen = Seen::default();
    let published = Stored::default();
    let server = serve(server, seen.clone(), published.clone(), refuse);
    let metrics = Arc::new(Metrics::default());
    let (triggers, _) = broadcast::channel(16);
    let (reader, pods) = store::<Pod>();
    let context = Arc::new(Context {
        applier: Applier::new(client.clone(), Arc::clone(&metrics)),
        monitor: Monitor::new(Arc::new(Workers), triggers, Duration::from_secs(3)),
        recorder: Recorder::new(client.clone(), Reporter { controller: "test".into(), instance: None }),
        client,
        config: Config::try_parse_from(["dunlin-operator", "--worker-image", "w:1"]).unwrap(),
        caches: Caches::new(reader, BTreeMap::new()),
        metrics,
        serving: Memories::default(),
        training: Memories::default(),
    });
    World { context, pods, seen, published, _server: server }
}

fn swarm(generation: i64, suspend: bool) -> Arc<InferenceSwarm> {
    let value = json!({
        "apiVersion": "dunlin.dev/v1alpha1",
        "kind": "InferenceSwarm",
        "metadata": {"name": "smollm2", "namespace": "default", "uid": "1-2-3", "generation": generation},
        "spec": {
            "model": {"source": {"http": {"url": "http://models/m.gguf"}}},
            "pools": [{
                "name": "spot",
                "peers": {"min": 3, "max": 3},
                "device": {"cpu": {"cores": 1}},
                "memory": {"host": "512Mi"},
            }],
            "redundancy": {"shadows": 1},
            "gateway": {"replicas": 2},
            "suspend": suspend,
        },
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

impl World {
    async fn reconcile(&self, swarm: &Arc<InferenceSwarm>) -> Result<Action, Error> {
        reconcile(Arc::clone(swarm), Arc::clone(&self.context)).await
    }

    /// The kubelets run every pod that was created since the last call.
    fn run_pods(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        for (i, mut pod) in self.seen.bodies("PATCH pods/").into_iter().enumerate() {
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            pod["metadata"]["uid"] = json!(format!("uid-{name}"));
            pod["spec"]["nodeName"] = json!(format!("n{i}"));
            pod["status"] = json!({"phase": "Running", "podIP": format!("10.0.0.{i}")});
            self.pods.apply_watcher_event(&watcher::Event::Apply(serde_json::from_value(pod).unwrap()));
            names.push(name);
        }
        self.seen.clear();
        names
    }

    /// The container of a worker fails; what was seen before is forgotten.
    fn fail(&mut self, name: &dunlin_planner::PeerName) {
        let reference = ObjectRefOf::new(name.as_str()).within("default");
        let mut pod = self.context.caches.pod(&reference).unwrap();
        pod.status.as_mut().unwrap().phase = Some("Failed".into());
        self.pods.apply_watcher_event(&watcher::Event::Apply(pod));
        self.seen.clear();
    }

    /// Reconciles until the topology no longer changes, in virtual time.
    async fn settle(&self, swarm: &Arc<InferenceSwarm>) {
        for _ in 0..6 {
            self.reconcile(swarm).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
    }

    fn topology(&self) -> dunlin_planner::Topology {
        let memory = self.context.serving.of(&key(&swarm(1, false)));
        memory.try_lock().unwrap().topology.clone().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_pass_makes_trust_then_policies_pods_and_gateways_and_reports_at_once() {
    let world = world("");
    world.reconcile(&swarm(1, false)).await.unwrap();
    let calls = world.seen.calls();
    let pod = ["PATCH secrets", "PATCH pods", "PATCH secrets"];
    let mut expected = vec!["GET secrets", "POST secrets", "GET configmaps"];
    expected.extend(["PATCH networkpolicies"; 2]);
    expected.extend(pod.iter().cycle().take(9));
    expected.extend(["GET secrets", "PATCH secrets", "PATCH services", "PATCH poddisruptionbudgets"]);
    expected.extend(["PATCH deployments", "PATCH inferenceswarms"]);
    // One Event per created peer.
    expected.extend(["POST events"; 3]);
    assert_eq!(kinds(&calls), expected, "{calls:?}");
    let status = &world.seen.bodies("PATCH inferenceswarms/")[0]["status"];
    assert_eq!(status["conditions"].as_array().map(Vec::len), Some(5));
    assert_eq!(status["observedGeneration"], 1);
    // The certificate of a pod goes with the pod.
    let last = world.seen.bodies("PATCH secrets/smollm2-spot");
    assert_eq!(last[1]["metadata"]["ownerReferences"][0]["kind"], "Pod");
}

#[tokio::test(start_paused = true)]
async fn stages_and_gateways_are_told_of_adapters_and_see_them() {
    let world = world("");
    let mut swarm = swarm(1, false).as_ref().clone();
    let adapter = json!({"name": "a", "source": {"volume": {"claimName": "adapters", "path": "a"}}});
    swarm.spec.adapters = vec![serde_json::from_value(adapter).unwrap()];
    world.reconcile(&Arc::new(swarm)).await.unwrap();
    let deployment = &world.seen.bodies("PATCH deployments/")[0]["spec"]["template"]["spec"];
    for spec in [&world.seen.bodies("PATCH pods/")[0]["spec"], deployment] {
        let args = spec["containers"][0]["args"].as_array().unwrap();
        assert_eq!(args[args.len() - 2..], ["--adapter", "a=/adapters/adapters/a"]);
        let volumes = spec["volumes"].as_array().unwrap().iter();
        assert_eq!(volumes.filter(|v| v["persistentVolumeClaim"]["claimName"] == "adapters").count(), 1);
        let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap().iter();
        assert_eq!(mounts.filter(|m| m["mountPath"] == "/adapters/adapters").count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_in_which_nothing_changed_writes_nothing() {
    let mut world = world("");
    let manifest = swarm(1, false);
    world.reconcile(&manifest).await.unwrap();
    world.run_pods();
    world.settle(&manifest).await;
    let mut settled = (*manifest).clone();
    let status = world.seen.bodies("PATCH inferenceswarms/").pop().unwrap()["status"].clone();
    settled.status = Some(serde_json::from_value(status).unwrap());
    world.seen.clear();
    world.reconcile(&Arc::new(settled)).await.unwrap();
    assert_eq!(world.seen.calls(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_failed_pod_is_replaced_in_the_same_pass_and_its_place_is_taken() {
    let mut world = world("");
    let manifest = swarm(1, false);
    world.reconcile(&manifest).await.unwrap();
    let names = world.run_pods();
    world.settle(&manifest).await;
    let before = world.topology();
    assert_eq!(before.peers.iter().map(|p| p.span.len()).sum::<u32>(), 30);
    let victim = before.peers.iter().find(|p| p.span.start == 10).unwrap().clone();
    assert!(names.contains(&victim.name.0));

    world.fail(&victim.name);
    world.reconcile(&manifest).await.unwrap();
    let kinds = kinds(&world.seen.calls());
    let at =
        |kind: &str| kinds.iter().position(|k| k == kind).unwrap_or_else(|| panic!("{kind} in {kinds:?}"));
    assert!(at("PATCH configmaps") < at("PATCH pods"), "gateways that start now must not use the lost peer");
    assert!(at("PATCH pods") < at("DELETE pods"), "{kinds:?}");
    let reasons: Vec<Value> = world.seen.bodies("POST events").iter().map(|e| e["reason"].clone()).collect();
    assert!(reasons.contains(&json!("PeerLost")) && reasons.contains(&json!("PeerReplaced")), "{reasons:?}");

    let replacement = world.run_pods();
    assert_eq!(replacement.len(), 1);
    world.settle(&manifest).await;
    let after = world.topology();
    assert_eq!(after.peer(&replacement[0].as_str().into()).unwrap().span, victim.span);
    assert!(after.epoch > before.epoch);
}

#[tokio::test(start_paused = true)]
async fn a_topology_that_another_operator_published_is_not_overwritten() {
    let mut world = world("");
    let manifest = swarm(1, false);
    world.reconcile(&manifest).await.unwrap();
    world.run_pods();
    world.settle(&manifest).await;
    let ours = world.topology();
    assert_eq!(world.published.topology(), ours);
    // Another leader has published a newer one; a peer is lost, so we want to publish, too.
    let theirs = dunlin_planner::Topology { epoch: ours.epoch + 5, ..ours.clone() };
    world.published.put(&theirs);
    world.fail(&ours.peers[0].name);
    let error = world.reconcile(&manifest).await.err().unwrap();
    assert_eq!(error.category(), "conflict");
    assert_eq!(world.published.topology(), theirs);
    let calls = world.seen.calls();
    assert!(!calls.iter().any(|c| c.contains("pods/")), "nothing is done on an outdated plan: {calls:?}");
    let reasons: Vec<Value> = world.seen.bodies("POST events").iter().map(|e| e["reason"].clone()).collect();
    assert!(reasons.contains(&json!("PeerLost")), "what happened is told all the same: {reasons:?}");
    // It is read, and what we publish then is newer than theirs.
    world.reconcile(&manifest).await.unwrap();
    assert!(world.published.topology().epoch > theirs.epoch);
    assert_eq!(world.published.topology(), world.topology());
    // A write of long ago that arrives only now brings back an old one: the next one is newer than ours, too.
    let late = dunlin_planner::Topology { epoch: 1, ..theirs };
    world.published.put(&late);
    world.run_pods();
    let before = world.topology().epoch;
    let mut failures = Vec::new();
    for _ in 0..6 {
        failures.extend(world.reconcile(&manifest).await.err().map(|e| e.category()));
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    assert_eq!(failures, ["conflict"]);
    assert!(world.published.topology().epoch > before);
    assert_eq!(world.published.topology(), world.topology());
}

#[tokio::test(start_paused = true)]
async fn suspend_lets_pods_go_and_scales_gateways_to_zero() {
    let mut world = world("");
    world.reconcile(&swarm(1, false)).await.unwrap();
    world.run_pods();
    world.reconcile(&swarm(2, true)).await.unwrap();
    let kinds = kinds(&world.seen.calls());
    assert_eq!(kinds.iter().filter(|k| *k == "DELETE pods").count(), 3, "{kinds:?}");
    assert!(!kinds.contains(&"PATCH pods".to_owned()));
    assert_eq!(world.seen.bodies("PATCH deployments/")[0]["spec"]["replicas"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_error_with_back_off_and_is_in_the_status() {
    let world = world("PATCH pods");
    let manifest = swarm(1, false);
    let error = world.reconcile(&manifest).await.err().unwrap();
    assert_eq!(error.category(), "forbidden");
    let status = world.seen.bodies("PATCH inferenceswarms/")[0]["status"].clone();
    assert!(status["conditions"][0]["message"].to_string().contains("no quota"), "{status}");
    assert!(retry(manifest, &error, Arc::clone(&world.context)) != Action::await_change());
    assert!(world.context.metrics.text().unwrap().contains("category=\"forbidden\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn a_swarm_that_is_being_deleted_is_left_alone() {
    let world = world("");
    let mut deleted = (*swarm(1, false)).clone();
    deleted.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
    world.reconcile(&Arc::new(deleted)).await.unwrap();
    assert!(world.seen.calls().is_empty());
}

type ObjectRefOf = kube::runtime::reflector::ObjectRef<Pod>;
