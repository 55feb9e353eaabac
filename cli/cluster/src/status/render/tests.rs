use std::collections::BTreeMap;

use dunlin_crds::{InferenceSwarm, TrainingSwarm};
use dunlin_swarm::{Layers, PeerState, Topology, TopologyPeer};
use dunlin_terminal::print::plain;
use serde_json::{Value, json};

use super::*;
use crate::pages::{ConductorPage, GatewayPage};
use crate::pods::PodFacts;
use crate::status::serving::{self, Said};
use crate::status::training;

fn pod(name: &str, role: &str, node: &str) -> PodFacts {
    PodFacts {
        name: name.into(),
        role: role.into(),
        pool: if role == "stage" || role == "train-peer" { "spot".into() } else { String::new() },
        node: node.into(),
        phase: "Running".into(),
        ready: true,
        ..PodFacts::default()
    }
}

fn pools() -> Value {
    json!([{"name": "spot", "peers": {"min": 3, "max": 6}, "device": {"cpu": {"cores": 1}}, "memory": {"host": "1Gi"}}])
}

fn swarm(ready: bool) -> InferenceSwarm {
    let said = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    serde_json::from_value(json!({
        "apiVersion": "dunlin.dev/v1alpha1", "kind": "InferenceSwarm",
        "metadata": {"name": "m", "namespace": "default"},
        "spec": {"model": {"source": {"http": {"url": "http://m"}}}, "pools": pools()},
        "status": {
            "conditions": if ready {
                json!([said("Ready", "True", "Serving", "all 30 layers are served"), said("Degraded", "True", "BelowPlan", "2 of 3 peers ready")])
            } else {
                json!([said("Ready", "False", "WaitingForPeers", "0 of 3 peers ready")])
            },
            "model": "smol", "epoch": 4, "layers": {"total": 30, "served": 30, "shadowed": 20}, "url": "http://m-gateway.default:8080/v1",
        },
    }))
    .unwrap()
}

fn topology(layers: u32) -> Topology {
    let third = layers / 3;
    let peers = (0..3).map(|i| TopologyPeer {
        name: format!("m-spot-{i}").into(),
        node: format!("n{}", i + 1),
        pool: "spot".into(),
        spot: true,
        span: Layers::new(i * third, (i + 1) * third),
        shadows: vec![Layers::new((i + 1) % 3 * third, (i + 1) % 3 * third + third / 2)],
        state: if i == 2 { PeerState::Draining } else { PeerState::Ready },
        ..TopologyPeer::default()
    });
    Topology { epoch: 5, layers, peers: peers.collect(), ..Topology::default() }
}

#[test]
fn a_swarm_that_serves() {
    let gateway: GatewayPage = serde_json::from_value(json!({
        "sessions": [{"id": "a", "phase": "running", "route": []}, {"id": "b", "phase": "queued: memory on m-spot-1", "route": []}],
        "recoveries": [{"ago_ms": 9000, "reason": "lost", "stall_ms": 120}, {"ago_ms": 4000, "reason": "drained", "stall_ms": 7}],
    }))
    .unwrap();
    let metrics =
        "dunlin_recoveries_total{reason=\"lost\"} 2\ndunlin_recoveries_total{reason=\"drained\"} 1\n";
    let said = Said {
        pages: BTreeMap::from([
            ("m-gateway-1".to_owned(), Ok(gateway)),
            ("m-gateway-2".to_owned(), Err("m-gateway-2 has not answered for 5 s".to_owned())),
        ]),
        metrics: BTreeMap::from([("m-gateway-1".to_owned(), metrics.to_owned())]),
        tokens_per_s: Some(41.27),
    };
    let waiting = PodFacts {
        phase: "Pending".into(),
        ready: false,
        unschedulable: Some("no".into()),
        ..pod("m-spot-new", "stage", "")
    };
    let pods = [
        pod("m-spot-0", "stage", "n1"),
        pod("m-spot-2", "stage", "n3"),
        waiting,
        pod("m-gateway-1", "gateway", "n4"),
        pod("m-gateway-2", "gateway", "n4"),
    ];
    let view = StatusView::Serving(serving::view(&swarm(true), Some(&topology(30)), Some(&pods), &said));
    let expected = "\
inferenceswarm/m in default: Ready, below plan (2 of 3 peers ready)
model smol, plan 5: 30 layers, 30 held, 20 with shadows

PEER        NODE  POOL  KIND  STATE    LAYERS  0         10        20
m-spot-0    n1    spot  spot  ready    0-9     ██████████░░░░░···············
m-spot-1    n2    spot  spot  gone     10-19   ··········██████████░░░░░·····
m-spot-2    n3    spot  spot  leaving  20-29   ░░░░░···············██████████
m-spot-new  -     spot  spot  no node  -       ······························
█ executes   ░ keeps ready for others

2 of 2 gateways ready at http://m-gateway.default:8080/v1
2 sessions, 1 of them waiting, 41.3 tokens/s
3 recoveries since the gateways started: 1 drained, 2 lost; the last 4 s ago (drained), the next token after 7 ms
not asked: m-gateway-2 has not answered for 5 s";
    assert_eq!(plain(&render(&view)), expected);
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(
        (&json["kind"], &json["id"], &json["peers"][0]["span"]["end"]),
        (&json!("InferenceSwarm"), &json!("inferenceswarm/m"), &json!(10))
    );
}

#[test]
fn a_swarm_before_its_first_plan() {
    let object = InferenceSwarm {
        status: swarm(false)
            .status
            .map(|s| dunlin_crds::InferenceSwarmStatus { layers: Default::default(), ..s }),
        ..swarm(false)
    };
    let pods = [PodFacts { ready: false, ..pod("m-spot-0", "stage", "n1") }];
    let view = StatusView::Serving(serving::view(&object, None, Some(&pods), &Said::default()));
    let expected = "\
inferenceswarm/m in default: not Ready (WaitingForPeers, 0 of 3 peers ready)
model smol, plan 4: layers not known yet

PEER      NODE  POOL  KIND  STATE      LAYERS
m-spot-0  n1    spot  spot  not ready  -

0 of 0 gateways ready at http://m-gateway.default:8080/v1";
    assert_eq!(plain(&render(&view)), expected);
}

#[test]
fn without_the_right_to_pods_the_object_and_the_plan_are_shown() {
    let mut view =
        StatusView::Serving(serving::view(&swarm(true), Some(&topology(30)), None, &Said::default()));
    let why = "you may not list pods in namespace default: you need a Role or ClusterRole with the verb list on pods";
    view.head_mut().unread = vec![why.to_owned()];
    let text = plain(&render(&view));
    assert!(
        text.contains("30 layers, 30 held") && text.contains("m-spot-0  n1    spot  spot  not known"),
        "{text}"
    );
    assert!(!text.contains("0 of 0 gateways") && !text.contains("gone"), "{text}");
    assert!(text.ends_with(&format!("\n\nnot looked at:\n    {why}")), "{text}");
}

#[test]
fn with_many_layers_a_character_stands_for_several() {
    let view = StatusView::Serving(serving::view(
        &swarm(true),
        Some(&topology(120)),
        Some(&[pod("m-spot-0", "stage", "n1")]),
        &Said::default(),
    ));
    let text = plain(&render(&view));
    let line = text.lines().find(|l| l.starts_with("m-spot-0")).unwrap();
    assert!(
        line.ends_with(&format!("0-39    {}{}{}", "█".repeat(20), "░".repeat(10), "·".repeat(30))),
        "{line}"
    );
    assert!(
        text.contains("STATE  LAYERS  0         20        40        60        80        100\n"),
        "{text}"
    );
    assert!(text.contains("keeps ready for others   (2 layers a place)"), "{text}");
}

#[test]
fn a_swarm_that_trains() {
    let object: TrainingSwarm = serde_json::from_value(json!({
        "apiVersion": "dunlin.dev/v1alpha1", "kind": "TrainingSwarm",
        "metadata": {"name": "t", "namespace": "lab"},
        "spec": training_spec(),
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "Training", "message": "updates are being made", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "step": 40, "steps": 100, "loss": 2.34567, "tokensPerSecond": 1234.5, "redone": 3, "lost": 1, "moves": 2,
            "stages": [{"stage": 0, "layers": "0-3", "peers": 2}, {"stage": 1, "layers": "4-7", "peers": 1}],
            "lastCheckpoint": {"step": 30, "path": "run/step-30"},
        },
    }))
    .unwrap();
    let page: ConductorPage = serde_json::from_value(json!({
        "stages": [{"stage": 0, "layers": "0-3", "members": [
            {"name": "t-spot-a", "host": "n1", "rowsPerSecond": 12.34}, {"name": "t-spot-b", "host": "n2", "rowsPerSecond": 11.0}]}],
        "notes": ["one", "two", "three", "four"],
    }))
    .unwrap();
    let pods = [
        pod("t-spot-a", "train-peer", "n1"),
        pod("t-spot-c", "train-peer", "n3"),
        pod("t-conductor", "conductor", "n4"),
    ];
    let view = StatusView::Training(training::view(&object, &pods, Some(Ok(page))));
    let expected = "\
trainingswarm/t in lab: Ready (Training, updates are being made)
step 40 of 100, loss 2.3457, tokens/s 1234
last checkpoint: step 30, run/step-30
3 microbatches computed again, 1 peer lost without notice, 2 moves

STAGE       LAYERS  PEER         NODE  POOL  KIND  STATE  ROWS/S
0           0-3     t-spot-a     n1    spot  spot  ready  12.3
                    t-spot-b     n2    -     -     gone   11.0
1           4-7     1 peer
train-peer          t-spot-c     n3    spot  spot  ready  -
conductor           t-conductor  n4    -     -     ready  -

two
three
four";
    assert_eq!(plain(&render(&view)), expected);
}

fn training_spec() -> Value {
    let mut spec: Value = serde_json::to_value(dunlin_crds::TrainingSwarmSpec::default()).unwrap();
    spec["pools"] = pools();
    spec
}
