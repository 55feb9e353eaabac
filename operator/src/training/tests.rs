//! Reconciliations against a mocked API server: which calls, in which order.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use kube::Client;
use kube::client::Body;
use kube::runtime::events::Reporter;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::*;
use crate::api::{ApiClient, ApiServer};
use crate::apply::Applier;
use crate::labels::random;
use crate::metrics::OperatorMetrics;
use crate::observe::Caches;
use crate::peers::report::WorkerReport;
use crate::peers::talk::{Answering, Talk, WorkerQuestion};
use crate::peers::{Connect, Monitor, Observation, RunPhase, Target, WorkerState};
use crate::swarm::Controller;
use crate::swarm::context::Context;
use crate::testing::{Seen, Server, config, described, kinds, mock_client, training_swarm};

const SILENCE: Duration = Duration::from_secs(3);

/// Every conductor trains, everybody else is Ready.
struct Workers;

/// Its role, and whether it was told to suspend.
struct Said(Role, bool);

impl Connect for Workers {
    fn connect(&self, target: &Target) -> Result<Box<dyn Talk>, String> {
        Ok(Box::new(Said(target.role, false)))
    }
}

impl Talk for Said {
    fn ask(&mut self, question: WorkerQuestion) -> Answering<'_> {
        self.1 |= question == WorkerQuestion::Suspend;
        let phase = if self.1 { RunPhase::Suspended } else { RunPhase::Training };
        let run = Observation { phase, step: 7, steps: 100, ..Observation::default() };
        let run = (self.0 == Role::Conductor).then_some(run);
        Box::pin(
            async move { Ok(WorkerReport { state: WorkerState::Ready, run, ..WorkerReport::default() }) },
        )
    }
}

/// Answers like an API server that has nothing and accepts everything.
fn serve(mut server: Server, seen: Seen) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some((request, respond)) = server.next_request().await {
            let (call, body) = described(request).await;
            let (code, mut answer) = match call.split(' ').next() {
                Some("GET") => {
                    (404, json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}))
                }
                _ => (201, body.clone()),
            };
            if call.contains("trainingswarms") {
                answer = serde_json::to_value(training_swarm(1)).unwrap();
            } else if code == 201 {
                answer["metadata"]["uid"] = json!("made-here");
            }
            seen.push(call, body);
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            respond.send_response(Response::builder().status(code).body(body).unwrap());
        }
    })
}

/// What a new leader has: what the watches have seen, and nothing that it knows by itself.
fn leader(client: &Client, caches: &Caches) -> Arc<Context> {
    let metrics = Arc::new(OperatorMetrics::default());
    let (triggers, _) = broadcast::channel(16);
    let reporter = Reporter { controller: "test".into(), instance: None };
    let api: Arc<dyn ApiServer> = Arc::new(ApiClient::new(client.clone(), reporter));
    Arc::new(Context {
        applier: Applier::new(Arc::clone(&api), Arc::clone(&metrics), Arc::new(random)),
        monitor: Box::new(Monitor::new(Arc::new(Workers), triggers, SILENCE)),
        api,
        config: config(),
        caches: caches.clone(),
        metrics,
    })
}

/// A conductor, four peers, two trainers.
const PODS: usize = 7;

#[tokio::test(start_paused = true)]
async fn a_run_from_its_first_pass_to_training_against_an_api_server() {
    let (client, server) = mock_client();
    let seen = Seen::default();
    let _server = serve(server, seen.clone());
    let caches = Caches::default();
    let context = leader(&client, &caches);
    let controller = Arc::new(Controller::new(Arc::clone(&context)));
    let reconcile = |swarm| Controller::reconcile(swarm, Arc::clone(&controller));
    let swarm = Arc::new(training_swarm(1));
    reconcile(Arc::clone(&swarm)).await.unwrap();
    let mut expected = vec!["PATCH trainingswarms", "GET secrets", "POST secrets"];
    expected.extend(["PATCH networkpolicies"; 3]);
    expected.extend(["PATCH services", "PATCH poddisruptionbudgets", "PATCH configmaps"]);
    expected.extend(["PATCH pods", "POST secrets"].iter().cycle().take(2 * PODS));
    expected.extend(["POST events"; PODS]);
    assert_eq!(kinds(&seen.calls()), expected, "{:?}", seen.calls());
    let status = &seen.bodies("PATCH trainingswarms/")[0]["status"];
    assert_eq!(
        (status["conditions"].as_array().map(Vec::len), &status["observedGeneration"]),
        (Some(5), &json!(1))
    );
    let authority = &seen.bodies("POST secrets")[0]["metadata"]["name"];
    assert_eq!(authority, "tiny.training-ca", "an InferenceSwarm of that name has its own");

    for (i, mut pod) in seen.bodies("PATCH pods/").into_iter().enumerate() {
        pod["metadata"]["uid"] = json!(format!("uid-{i}"));
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        pod["status"] = json!({"phase": "Running", "podIP": format!("10.0.0.{i}"), "conditions": conditions});
        let pod = serde_json::from_value(pod).unwrap();
        caches.take_pod(&kube::runtime::watcher::Event::Apply(pod));
    }
    reconcile(Arc::clone(&swarm)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    seen.clear();
    reconcile(Arc::clone(&swarm)).await.unwrap();
    let status = seen.bodies("PATCH trainingswarms/").pop().unwrap()["status"].clone();
    assert_eq!((&status["display"]["step"], &status["peers"]["display"]), (&json!("7/100"), &json!("4/4")));
    let told: Vec<Value> = seen.bodies("POST events").iter().map(|e| e["reason"].clone()).collect();
    assert_eq!(told, ["TrainingStarted"]);

    // Nothing is new: nothing is written.
    let mut settled = (*swarm).clone();
    settled.status = Some(serde_json::from_value(status).unwrap());
    seen.clear();
    reconcile(Arc::new(settled.clone())).await.unwrap();
    assert_eq!(seen.calls(), Vec::<String>::new());

    // Another leader has not heard anybody yet, and says nothing until it has.
    let other = Arc::new(Controller::new(leader(&client, &caches)));
    let status = |seen: &Seen| seen.calls().iter().filter(|c| c.contains("trainingswarms")).count();
    Controller::reconcile(Arc::new(settled.clone()), Arc::clone(&other)).await.unwrap();
    assert_eq!((status(&seen), seen.bodies("POST events").len()), (0, 0), "{:?}", seen.calls());
    tokio::time::sleep(Duration::from_secs(1)).await;
    Controller::reconcile(Arc::new(settled.clone()), other).await.unwrap();
    assert_eq!((status(&seen), seen.bodies("POST events").len()), (0, 0), "{:?}", seen.calls());
    seen.clear();

    // Suspended: the conductor is told, and then all pods go.
    settled.spec.suspend = true;
    let suspended = Arc::new(settled);
    reconcile(Arc::clone(&suspended)).await.unwrap();
    assert!(!kinds(&seen.calls()).contains(&"DELETE pods".to_owned()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    reconcile(suspended).await.unwrap();
    assert_eq!(kinds(&seen.calls()).iter().filter(|k| *k == "DELETE pods").count(), PODS);
}
