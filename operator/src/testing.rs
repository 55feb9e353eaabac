//! What tests of several modules share.

use std::sync::{Arc, Mutex};

use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tower_test::mock;

use crate::apply::parts::Image;
use crate::apply::pods::PoolTemplate;
use crate::inference::ServingFacts;
use crate::key::Kind;
use crate::labels::Owner;
use crate::status::facts::InferenceFacts;

/// The server's end of a mocked connection.
pub type Server = mock::Handle<http::Request<Body>, http::Response<Body>>;

/// A client whose requests the returned handle receives.
pub fn mock_client() -> (Client, Server) {
    let (service, handle) = mock::pair::<http::Request<Body>, http::Response<Body>>();
    (Client::new(service, "default"), handle)
}

pub fn owner() -> Owner {
    Owner {
        kind: Kind::Inference,
        namespace: "default".into(),
        name: "smollm2".into(),
        uid: "1-2-3".into(),
        inherited: Default::default(),
    }
}

pub fn image() -> Image {
    Image {
        reference: "registry.local/dunlin-worker:dev".into(),
        pull_policy: "IfNotPresent".into(),
        pull_secrets: vec![],
        fixed_user: true,
    }
}

pub fn pool(name: &str, spot: bool) -> PoolTemplate {
    PoolTemplate {
        name: name.into(),
        spot,
        node_selector: Default::default(),
        cpu_millis: 200,
        cpu_millis_max: None,
        threads: 1,
        nvidia: None,
        memory_bytes: 512 << 20,
        disk_bytes: 1 << 30,
        disk_request_bytes: 0,
        extra: Default::default(),
    }
}

/// Asserts that the API type `T` knows every field of `value`.
pub fn assert_typed<T: DeserializeOwned + Serialize>(value: &Value) {
    let typed: T = serde_json::from_value(value.clone()).unwrap();
    let back = serde_json::to_value(typed).unwrap();
    assert_contains(&back, value, "");
}

fn assert_contains(whole: &Value, part: &Value, path: &str) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                let path = format!("{path}.{key}");
                assert_contains(
                    whole.get(key).unwrap_or_else(|| panic!("{path} is no such field")),
                    value,
                    &path,
                );
            }
        }
        (Value::Array(whole), Value::Array(part)) => {
            assert_eq!(whole.len(), part.len(), "{path}");
            for (i, (a, b)) in whole.iter().zip(part).enumerate() {
                assert_contains(a, b, &format!("{path}[{i}]"));
            }
        }
        _ => assert_eq!(whole, part, "{path}"),
    }
}

/// Asserts what Pod Security `restricted` demands of a pod spec.
pub fn assert_restricted(spec: &Value) {
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for absent in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(spec.get(absent).is_none(), "{absent}");
    }
    let volumes = spec["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|v| v.get("hostPath").is_none()));
    for container in spec["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"]["drop"][0], "ALL");
        assert!(container["ports"].as_array().unwrap().iter().all(|p| p.get("hostPort").is_none()));
    }
}

/// `peers` peers in the one pool `spot`.
pub fn desired(peers: u32) -> crate::inference::desired::InferenceDesired {
    crate::inference::desired::InferenceDesired {
        generation: 1,
        model: "m".into(),
        digest: "t".into(),
        model_args: vec![],
        mounts: vec![],
        outside: vec![],
        edition: "e".into(),
        image: image(),
        pools: vec![crate::pools::PoolDesired { peers, peers_max: peers, ..pool_desired("spot", true) }],
        shadows: 1,
        gateways: 2,
        drain_s: 120,
        gateway_cache_bytes: 1 << 30,
        gateway_resources: serde_json::json!({}),
        gateway_extra: Default::default(),
        gateway_hash: "g".into(),
        suspended: false,
    }
}

/// A pool without peers.
pub fn pool_desired(name: &str, spot: bool) -> crate::pools::PoolDesired {
    crate::pools::PoolDesired { template: pool(name, spot), hash: "h".into(), peers: 0, peers_max: 0 }
}

/// A running worker made from the current template.
pub fn worker(name: &str, pool: &str) -> crate::observe::WorkerView {
    crate::observe::WorkerView {
        name: name.into(),
        uid: format!("uid-{name}"),
        pool: pool.into(),
        template: "t".into(),
        hash: "h".into(),
        has_role: true,
        made: None,
        node: format!("n-{name}"),
        zone: String::new(),
        ip: Some("10.0.0.1".into()),
        phase: crate::observe::PodPhase::Running,
        blocked: None,
        ready: false,
        unplaced: false,
        deleting: false,
        node_gone: false,
        last_error: None,
        needs_user: false,
    }
}

/// The command line of an operator with nothing set.
pub fn config() -> crate::config::Config {
    clap::Parser::parse_from(["dunlin-operator", "--worker-image", "w:1"])
}

/// A run of two stages with two peers each and one trainer.
pub fn training_swarm(generation: i64) -> dunlin_crds::TrainingSwarm {
    let value = serde_json::json!({
        "apiVersion": "dunlin.dev/v1alpha1",
        "kind": "TrainingSwarm",
        "metadata": {"name": "tiny", "namespace": "default", "uid": "1-2-3", "generation": generation},
        "spec": {
            "model": {"config": {
                "hiddenSize": 64, "layers": 4, "heads": 4, "kvHeads": 2, "ffn": 128, "contextLength": 128, "tied": true,
            }},
            "data": {"source": {"http": {"url": "http://models/bible.txt"}}},
            "sequenceLength": 64,
            "globalBatch": 16,
            "microbatch": 4,
            "steps": 100,
            "seed": 1,
            "optimizer": {"learningRate": 0.001, "schedule": {"kind": "Cosine", "warmupSteps": 10}},
            "stages": 2,
            "pools": [{
                "name": "spot",
                "peers": {"min": 4, "max": 6},
                "device": {"cpu": {"cores": 1}},
                "memory": {"host": "256Mi"},
            }],
            "checkpoint": {"destination": {"volume": {"claimName": "checkpoints", "path": "tiny"}}},
        },
    });
    serde_json::from_value(value).unwrap()
}

/// A swarm that has all that it is meant to have.
pub fn whole() -> InferenceFacts<ServingFacts> {
    InferenceFacts {
        generation: 1,
        peers_desired: 3,
        peers_ready: 3,
        pods: 5,
        kind: ServingFacts {
            layers: 30,
            served: 30,
            shadowed: 30,
            shadows_wanted: 30,
            gateways_desired: 2,
            gateways_ready: 2,
        },
        ..InferenceFacts::default()
    }
}

/// What the mocked server saw: `METHOD kind/name`, with ` grace=0` and the like where it matters.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<(String, Value)>>>);

impl Seen {
    pub fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(call, _)| call.clone()).collect()
    }

    pub fn bodies(&self, call: &str) -> Vec<Value> {
        let seen = self.0.lock().unwrap();
        seen.iter().filter(|(c, _)| c.starts_with(call)).map(|(_, body)| body.clone()).collect()
    }

    pub fn push(&self, call: String, body: Value) {
        self.0.lock().unwrap().push((call, body));
    }

    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// A request as [`Seen`] writes it, and its body.
pub async fn described(request: http::Request<Body>) -> (String, Value) {
    let path: Vec<String> = request.uri().path().split('/').map(str::to_owned).collect();
    let at = path.iter().position(|p| p == "namespaces").map_or(0, |i| i + 2);
    let method = request.method().clone();
    let bytes = request.into_body().collect_bytes().await.unwrap();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let mut path = path[at..].join("/");
    if method == http::Method::POST {
        path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
    }
    (format!("{method} {path}"), body)
}

/// Calls without names.
pub fn kinds(calls: &[String]) -> Vec<String> {
    let kind = |call: &String| {
        let (method, path) = call.split_once(' ').unwrap();
        format!("{method} {}", path.split('/').next().unwrap())
    };
    calls.iter().map(kind).collect()
}

/// What the library of Helm and Flux makes of `object`: the first word of what the program of e2e/kstatus prints, such as `InProgress`.
pub fn kstatus(object: &Value) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};

    let program =
        std::env::var_os("DUNLIN_KSTATUS").expect("run `make test-kstatus`, which builds the program");
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{object}");
    String::from_utf8(output.stdout).unwrap().split('\t').next().unwrap().to_owned()
}

/// An object of `kind` that has this status, at `generation`; being deleted if `deleting`.
pub fn object(kind: Kind, generation: i64, deleting: bool, status: &impl Serialize) -> Value {
    let mut object = serde_json::json!({
        "apiVersion": "dunlin.dev/v1alpha1",
        "kind": kind.name(),
        "metadata": {"name": "s", "namespace": "default", "generation": generation},
        "status": status,
    });
    if deleting {
        object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        object["metadata"]["finalizers"] = serde_json::json!(["foregroundDeletion"]);
    }
    object
}

/// The status that the API server gives an object that no operator has seen.
pub fn unseen(kind: Kind) -> Value {
    let kind = match kind {
        Kind::Inference => dunlin_crds::generated::ResourceKind::Inference,
        Kind::Training => dunlin_crds::generated::ResourceKind::Training,
    };
    let crd = dunlin_crds::generated::definition(kind).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"].clone()
}
