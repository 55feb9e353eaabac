//! Reconciliations against a mocked API server: which calls, in which order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use dunlin_swarm::ModelSizes;
use http::Response;
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use kube::runtime::controller::Action;
use kube::runtime::events::Reporter;
use kube::runtime::watcher;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::*;
use crate::api::{ApiClient, ApiServer};
use crate::apply::Applier;
use crate::config::Config;
use crate::error::Error;
use crate::key::SwarmKey;
use crate::labels::random;
use crate::metrics::OperatorMetrics;
use crate::observe::Caches;
use crate::peers::report::WorkerReport;
use crate::peers::talk::{Answering, Talk, WorkerQuestion};
use crate::peers::{Connect, Monitor, Target, WorkerState};
use crate::swarm::Controller;
use crate::swarm::context::Context;
use crate::testing::{Seen, Server, described, kinds, mock_client};

/// Every worker answers Ready, holding what it was last told; the model has 30 layers.
struct Workers;

struct Worker(String, Vec<dunlin_swarm::Layers>, u64);

impl Connect for Workers {
    fn connect(&self, target: &Target) -> Result<Box<dyn Talk>, String> {
        Ok(Box::new(Worker(target.name.clone(), vec![], 0)))
    }
}

impl Talk for Worker {
    fn ask(&mut self, question: WorkerQuestion) -> Answering<'_> {
        if let WorkerQuestion::Take(epoch, topology) = question {
            let topology = dunlin_swarm::Topology::parse(&topology).unwrap();
            self.1 = topology.peer(&self.0.as_str().into()).map(|p| p.hold()).unwrap_or_default();
            self.2 = epoch;
        }
        let report = WorkerReport {
            state: WorkerState::Ready,
            epoch: self.2,
            held: self.1.clone(),
            model: Some(ModelSizes { layer_bytes: vec![1 << 20; 30], ..ModelSizes::default() }),
            ..WorkerReport::default()
        };
        Box::pin(async move { Ok(report) })
    }
}

/// The ConfigMap with the topology, as the server has it, and its version.
#[derive(Clone, Default)]
struct Stored(Arc<Mutex<Option<(u64, Value)>>>);

impl Stored {
    /// Somebody else writes.
    fn put(&self, topology: &dunlin_swarm::Topology) {
        let mut slot = self.0.lock().unwrap();
        let (version, map) = slot.as_mut().unwrap();
        *version += 1;
        map["data"]["topology.json"] = json!(serde_json::to_string(topology).unwrap());
    }

    fn topology(&self) -> dunlin_swarm::Topology {
        let slot = self.0.lock().unwrap();
        let text = slot.as_ref().unwrap().1["data"]["topology.json"].as_str().unwrap().to_owned();
        dunlin_swarm::Topology::parse(&text).unwrap()
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
                    json!({
                        "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden",
                        "message": format!("{} is forbidden: exceeded quota", body["metadata"]["name"]),
                    }),
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
    controller: Arc<Controller<InferenceSwarm>>,
    context: Arc<Context>,
    seen: Seen,
    published: Stored,
    _server: JoinHandle<()>,
}

fn world(refuse: &'static str) -> World {
    let (client, server) = mock_client();
    let seen = Seen::default();
    let published = Stored::default();
    let server = serve(server, seen.clone(), published.clone(), refuse);
    let metrics = Arc::new(OperatorMetrics::default());
    let (triggers, _) = broadcast::channel(16);
    let reporter = Reporter { controller: "test".into(), instance: None };
    let api: Arc<dyn ApiServer> = Arc::new(ApiClient::new(client, reporter));
    let context = Arc::new(Context {
        applier: Applier::new(Arc::clone(&api), Arc::clone(&metrics), Arc::new(random)),
        monitor: Box::new(Monitor::new(Arc::new(Workers), triggers, Duration::from_secs(3))),
        api,
        config: Config::try_parse_from(["dunlin-operator", "--worker-image", "w:1"]).unwrap(),
        caches: Caches::default(),
        metrics,
    });
    let controller = Arc::new(Controller::new(Arc::clone(&context)));
    World { controller, context, seen, published, _server: server }
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

fn key() -> SwarmKey {
    SwarmKey { kind: Kind::Inference, namespace: "default".into(), name: "smollm2".into() }
}

impl World {
    async fn reconcile(&self, swarm: &Arc<InferenceSwarm>) -> Result<Action, Error> {
        Controller::reconcile(Arc::clone(swarm), Arc::clone(&self.controller)).await
    }

    /// The kubelets run every pod that was created since the last call.
    fn run_pods(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        for (i, mut pod) in self.seen.bodies("PATCH pods/").into_iter().enumerate() {
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            pod["metadata"]["uid"] = json!(format!("uid-{name}"));
            pod["spec"]["nodeName"] = json!(format!("n{i}"));
            pod["status"] = json!({"phase": "Running", "podIP": format!("10.0.0.{i}")});
            self.context.caches.take_pod(&watcher::Event::Apply(serde_json::from_value(pod).unwrap()));
            names.push(name);
        }
        self.seen.clear();
        names
    }

    /// The container of a worker fails; what was seen before is forgotten.
    fn fail(&mut self, name: &dunlin_swarm::PeerName) {
        let mut pod = self.context.caches.pod(&key(), name.as_str()).unwrap();
        pod.status.as_mut().unwrap().phase = Some("Failed".into());
        self.context.caches.take_pod(&watcher::Event::Apply(pod));
        self.seen.clear();
    }

    /// Reconciles until the topology no longer changes, in virtual time.
    async fn settle(&self, swarm: &Arc<InferenceSwarm>) {
        for _ in 0..6 {
            self.reconcile(swarm).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
    }

    fn topology(&self) -> dunlin_swarm::Topology {
        self.controller.memories.ask(&key(), |memory| memory.state.topology.clone()).flatten().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_pass_reports_at_once_and_makes_trust_policies_gateways_and_pods() {
    let world = world("");
    world.reconcile(&swarm(1, false)).await.unwrap();
    let calls = world.seen.calls();
    let mut expected = vec!["PATCH inferenceswarms", "GET secrets", "POST secrets", "GET configmaps"];
    expected.extend(["PATCH networkpolicies"; 2]);
    expected.push("PATCH poddisruptionbudgets");
    expected.extend(["GET secrets", "PATCH secrets", "PATCH services", "PATCH poddisruptionbudgets"]);
    expected.push("PATCH deployments");
    expected.extend(["PATCH pods", "POST secrets"].iter().cycle().take(6));
    // One Event per created peer.
    expected.extend(["POST events"; 3]);
    assert_eq!(kinds(&calls), expected, "{calls:?}");
    let status = &world.seen.bodies("PATCH inferenceswarms/")[0]["status"];
    assert_eq!(status["conditions"].as_array().map(Vec::len), Some(5));
    assert_eq!(status["observedGeneration"], 1);
    // The certificate of a pod goes with the pod.
    let certificates = world.seen.bodies("POST secrets");
    assert_eq!(certificates[1]["metadata"]["ownerReferences"][0]["kind"], "Pod");
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
async fn stages_and_gateways_get_what_their_templates_give_and_stay_what_they_are() {
    let world = world("");
    let mut swarm = swarm(1, false).as_ref().clone();
    let template = |team: &str| {
        let template = json!({
            "labels": {"team": team}, "priorityClassName": team, "runtimeClassName": team,
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "volumes": [{"name": "extra", "emptyDir": {}}],
            "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
        });
        Some(serde_json::from_value(template).unwrap())
    };
    swarm.spec.pools[0].pod_template = template("peers");
    swarm.spec.gateway.pod_template = template("fronts");
    world.reconcile(&Arc::new(swarm)).await.unwrap();
    let pod = world.seen.bodies("PATCH pods/")[0].clone();
    let deployment = world.seen.bodies("PATCH deployments/")[0].clone();
    crate::testing::assert_typed::<Pod>(&pod);
    crate::testing::assert_typed::<k8s_openapi::api::apps::v1::Deployment>(&deployment);
    for (team, role, pod) in
        [("peers", "stage", &pod), ("fronts", "gateway", &deployment["spec"]["template"])]
    {
        crate::testing::assert_restricted(&pod["spec"]);
        let labels = &pod["metadata"]["labels"];
        assert_eq!((&labels["team"], &labels["dunlin.dev/role"]), (&json!(team), &json!(role)));
        assert_eq!(pod["spec"]["priorityClassName"], team);
        let of = |list: &str, name: &str| {
            pod["spec"][list].as_array().unwrap().iter().filter(|v| v["name"] == name).count()
        };
        assert_eq!((of("volumes", "extra"), of("volumes", "tls")), (1, 1));
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
    let theirs = dunlin_swarm::Topology { epoch: ours.epoch + 5, ..ours.clone() };
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
    let late = dunlin_swarm::Topology { epoch: 1, ..theirs };
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
async fn a_topology_that_was_deleted_while_no_operator_ran_is_followed_by_a_newer_one() {
    let mut world = world("");
    let manifest = swarm(1, false);
    world.reconcile(&manifest).await.unwrap();
    world.run_pods();
    world.settle(&manifest).await;
    let before = world.topology();
    let status = world.seen.bodies("PATCH inferenceswarms/").pop().unwrap()["status"].clone();
    let told = InferenceSwarm { status: serde_json::from_value(status).unwrap(), ..(*manifest).clone() };
    assert_eq!(told.status.as_ref().unwrap().epoch, before.epoch);
    *world.published.0.lock().unwrap() = None;
    world.controller = Arc::new(Controller::new(Arc::clone(&world.context)));
    world.settle(&Arc::new(told)).await;
    assert!(world.published.topology().epoch > before.epoch, "workers would not obey it");
    assert_eq!(world.published.topology(), world.topology());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_published_is_handed_to_nobody() {
    // The first one can, and no other.
    let mut world = world("PATCH configmaps");
    let manifest = swarm(1, false);
    world.reconcile(&manifest).await.unwrap();
    world.run_pods();
    let reconciled = async |world: &World| {
        for _ in 0..4 {
            let _ = world.reconcile(&manifest).await;
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
    };
    reconciled(&world).await;
    let published = world.published.topology();
    world.fail(&published.peers[0].name);
    reconciled(&world).await;
    assert!(world.topology().epoch > published.epoch, "there is something newer");
    assert_eq!(world.published.topology(), published);
    // Who leads next reads that and goes on from there: nobody may be ahead of it.
    let answers = world.context.monitor.answers(&key());
    let known: Vec<u64> = answers.values().map(|answer| answer.report.as_ref().unwrap().epoch).collect();
    assert_eq!(known, [published.epoch; 2]);
}

#[tokio::test(start_paused = true)]
async fn evictions_leave_all_stages_but_one_and_a_suspended_swarm_holds_up_no_drain() {
    let mut world = world("");
    world.reconcile(&swarm(1, false)).await.unwrap();
    let kept = |world: &World| {
        let budgets = world.seen.bodies("PATCH poddisruptionbudgets/smollm2-stage");
        budgets.iter().map(|budget| budget["spec"]["minAvailable"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(kept(&world), [2]);
    world.run_pods();
    world.settle(&swarm(1, false)).await;
    assert!(kept(&world).is_empty(), "the plan has as many as are wanted");
    world.reconcile(&swarm(2, true)).await.unwrap();
    assert_eq!(kept(&world), [0]);
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
    let status = world.seen.bodies("PATCH inferenceswarms/").pop().unwrap()["status"].clone();
    assert!(status["conditions"][0]["message"].to_string().contains("exceeded quota"), "{status}");
    assert!(Controller::retry(manifest, &error, Arc::clone(&world.controller)) != Action::await_change());
    assert!(world.context.metrics.text().unwrap().contains("category=\"forbidden\"} 1"));
}

/// Reconciles `swarm` every second for `seconds`, as if somebody woke us all the time; each pass sees the status that the last one wrote.
async fn woken(world: &World, swarm: &mut Arc<InferenceSwarm>, seconds: u64) {
    for _ in 0..seconds {
        let _ = world.reconcile(swarm).await;
        if let Some(body) = world.seen.bodies("PATCH inferenceswarms/").pop() {
            Arc::make_mut(swarm).status = Some(serde_json::from_value(body["status"].clone()).unwrap());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_pod_costs_a_write_a_minute_and_leaves_nothing_behind() {
    let world = world("PATCH pods");
    let mut manifest = swarm(1, false);
    woken(&world, &mut manifest, 60).await;
    let kinds_of = |world: &World| kinds(&world.seen.calls());
    let first = kinds_of(&world);
    let count = |kinds: &[String], kind: &str| kinds.iter().filter(|k| *k == kind).count();
    assert_eq!(count(&first, "PATCH pods"), 1, "{first:?}");
    assert_eq!(count(&first, "POST secrets"), 1, "the authority's alone: {first:?}");
    assert_eq!(count(&first, "PATCH deployments"), 1, "gateways do not wait for pods: {first:?}");
    let events = world.seen.bodies("POST events");
    assert_eq!(events.iter().map(|e| &e["reason"]).collect::<Vec<_>>(), ["PodRefused"]);
    let name = world.seen.bodies("PATCH pods")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    world.seen.clear();
    woken(&world, &mut manifest, 180).await;
    // It lasts, so that a user must know: one more status and the Event again, and then nothing but the attempts.
    let expected = ["PATCH pods", "PATCH inferenceswarms", "PATCH events", "PATCH pods", "PATCH pods"];
    assert_eq!(kinds_of(&world), expected);
    assert!(world.seen.bodies("PATCH pods").iter().all(|pod| pod["metadata"]["name"] == name.as_str()));
    let conditions = manifest.status.clone().unwrap().conditions;
    let stalled = conditions.iter().find(|c| c.type_ == "Stalled").unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "PodRefused"));
    let sentence = "cannot create a pod of pool spot: \"smollm2-spot-…\" is forbidden: exceeded quota";
    assert!(conditions.iter().any(|c| c.message.contains(sentence)), "{conditions:?}");
    assert!(conditions.iter().all(|c| !c.message.contains(&name)));
    // A changed manifest is tried at once.
    world.seen.clear();
    Arc::make_mut(&mut manifest).metadata.generation = Some(2);
    woken(&world, &mut manifest, 1).await;
    assert_eq!(count(&kinds_of(&world), "PATCH pods"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_certificate_is_made_later_for_the_pod_that_waits_for_it() {
    let world = world("POST secrets/smollm2-spot");
    let mut manifest = swarm(1, false);
    woken(&world, &mut manifest, 59).await;
    let calls = kinds(&world.seen.calls());
    // The authority's, and one attempt; pods that would wait in vain are not made.
    assert_eq!(calls.iter().filter(|k| *k == "POST secrets").count(), 2, "{calls:?}");
    assert_eq!(calls.iter().filter(|k| *k == "PATCH pods").count(), 1, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn what_fails_before_anything_is_known_is_in_the_status() {
    let world = world("POST secrets");
    let mut manifest = swarm(1, false);
    woken(&world, &mut manifest, 61).await;
    let conditions = manifest.status.clone().unwrap().conditions;
    let told: Vec<_> = conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
    let expected = [
        ("Ready", "False"),
        ("Reconciling", "False"),
        ("Stalled", "True"),
        ("Degraded", "False"),
        ("ModelLoaded", "False"),
    ];
    assert_eq!(told, expected, "{conditions:?}");
    assert_eq!(conditions[0].reason, "Refused");
    assert!(conditions[2].message.ends_with("is forbidden: exceeded quota"), "{}", conditions[2].message);
    let writes = world.seen.calls().into_iter().filter(|c| !c.starts_with("GET")).collect::<Vec<_>>();
    assert_eq!(kinds(&writes).iter().filter(|k| *k == "POST secrets").count(), 2, "{writes:?}");
    assert!(writes.len() <= 5, "{writes:?}");
}

/// `name` of a settled swarm, as a watch of its kind tells of it.
fn child(kind: &str, name: &str, uid: &str) -> kube::api::DynamicObject {
    let value = json!({
        "apiVersion": "v1", "kind": kind,
        "metadata": {"name": name, "namespace": "default", "uid": uid, "labels": {
            "dunlin.dev/swarm": "smollm2", "dunlin.dev/kind": "InferenceSwarm",
        }},
    });
    serde_json::from_value(value).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_somebody_deletes_or_changes_is_written_again_in_the_next_pass() {
    let mut world = world("");
    let manifest = swarm(1, false);
    for kind in ["Service", "Deployment", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy", "Secret"] {
        world.context.caches.watch(kind);
    }
    world.reconcile(&manifest).await.unwrap();
    world.run_pods();
    world.settle(&manifest).await;
    for (kind, name, expected) in [
        ("Service", "smollm2-gateway", vec!["PATCH services/smollm2-gateway"]),
        ("Deployment", "smollm2-gateway", vec!["PATCH deployments/smollm2-gateway"]),
        ("PodDisruptionBudget", "smollm2-gateway", vec!["PATCH poddisruptionbudgets/smollm2-gateway"]),
        ("PodDisruptionBudget", "smollm2-stage", vec!["PATCH poddisruptionbudgets/smollm2-stage"]),
        ("NetworkPolicy", "smollm2-stage", vec!["PATCH networkpolicies/smollm2-stage"]),
        // It is read first: another operator may have published.
        (
            "ConfigMap",
            "smollm2-topology",
            vec!["GET configmaps/smollm2-topology", "PATCH configmaps/smollm2-topology"],
        ),
        ("Secret", "smollm2-ca", vec!["PATCH secrets/smollm2-ca"]),
        (
            "Secret",
            "smollm2-gateway-tls",
            vec!["GET secrets/smollm2-gateway-tls", "PATCH secrets/smollm2-gateway-tls"],
        ),
    ] {
        for event in [
            watcher::Event::Apply(child(kind, name, "somebody")),
            watcher::Event::Delete(child(kind, name, "somebody")),
        ] {
            // All of them while the watches may still be late with what was written at first.
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.context.caches.tell(kind, &event);
            world.seen.clear();
            world.reconcile(&manifest).await.unwrap();
            let calls = world.seen.calls();
            let about: Vec<&String> =
                calls.iter().filter(|c| !c.contains("inferenceswarms") && !c.contains("events")).collect();
            assert_eq!(about, expected.iter().collect::<Vec<_>>(), "{kind} {name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_lost_its_label_is_deleted_and_replaced() {
    let mut world = world("");
    let manifest = swarm(1, false);
    world.reconcile(&manifest).await.unwrap();
    let names = world.run_pods();
    world.settle(&manifest).await;
    let mut pod = world.context.caches.pod(&key(), &names[0]).unwrap();
    pod.metadata.labels.as_mut().unwrap().remove("dunlin.dev/swarm");
    world.context.caches.take_pod(&watcher::Event::Apply(pod));
    world.seen.clear();
    world.reconcile(&manifest).await.unwrap();
    let calls = world.seen.calls();
    assert!(calls.contains(&format!("DELETE pods/{}", names[0])), "{calls:?}");
    assert_eq!(kinds(&calls).iter().filter(|k| *k == "PATCH pods").count(), 1, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_swarm_made_again_under_the_name_of_another_is_not_that_one() {
    let mut world = world("");
    let manifest = swarm(1, false);
    world.reconcile(&manifest).await.unwrap();
    world.run_pods();
    world.settle(&manifest).await;
    world.seen.clear();
    let mut other = swarm(1, false);
    Arc::make_mut(&mut other).metadata.uid = Some("4-5-6".into());
    world.reconcile(&other).await.unwrap();
    let kinds = kinds(&world.seen.calls());
    let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
    // Its own authority and pods; those of the other go with it.
    assert_eq!((count("POST secrets"), count("PATCH pods")), (4, 3), "{kinds:?}");
    assert_eq!(world.seen.bodies("PATCH pods")[0]["metadata"]["ownerReferences"][0]["uid"], "4-5-6");
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
