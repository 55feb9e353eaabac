//! The rules of docs/architecture.md that a dependency graph can show.
//!
//! Pure crates decide; they may not reach a runtime, a socket, Kubernetes, a clock crate or a random source, at any depth.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crates that only compute.
const PURE: &[&str] = &["dunlin-swarm", "dunlin-planner", "dunlin-protocol", "dunlin-schedule", "dunlin-sim"];
/// What they must not reach, at any depth.
const IMPURE: &[&str] = &[
    "tokio",
    "tonic",
    "kube",
    "kube-client",
    "k8s-openapi",
    "hyper",
    "reqwest",
    "ureq",
    "candle-core",
    "rand",
    "getrandom",
    "axum",
    "libc",
    "memmap2",
    "chrono",
    "time",
    "jiff",
    "rayon",
];
/// (crate, what it must not reach, why)
const FENCES: &[(&str, &[&str], &str)] = &[
    ("dunlin-swarm", &["dunlin-planner", "dunlin-protocol"], "words depend on nothing that uses them"),
    ("dunlin-worker", &["kube", "k8s-openapi"], "workers never talk to the Kubernetes API"),
    ("dunlin-gateway", &["kube", "k8s-openapi"], "gateways never talk to the Kubernetes API"),
    ("dunlin-operator", &["dunlin-kernels", "candle-core", "tokenizers"], "the operator does not compute"),
    ("dunlin-kernels", &["tokio", "tonic", "kube"], "kernels are plain functions"),
    ("dunlin-model", &["tokio", "tonic", "kube"], "models are plain functions"),
    ("dunlin-train", &["tokio", "tonic", "kube"], "training's arithmetic and files are plain functions"),
];

/// Normal (not dev, not build) dependencies of each package, by name.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["id"].as_str().unwrap(), p["name"].as_str().unwrap()))
        .collect();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let normal = node["deps"].as_array().unwrap().iter().filter(|dependency| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
        });
        let names = normal.map(|dependency| name_of[dependency["pkg"].as_str().unwrap()].to_owned());
        graph.entry(name_of[node["id"].as_str().unwrap()].to_owned()).or_default().extend(names);
    }
    graph
}

/// A path from `from` to `to`, if there is one.
fn path(graph: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::from([from.to_owned()]);
    let mut paths = vec![vec![from.to_owned()]];
    while let Some(path) = paths.pop() {
        let here = path.last()?;
        if here == to {
            return Some(path);
        }
        for next in graph.get(here).into_iter().flatten() {
            if seen.insert(next.clone()) {
                paths.push(path.iter().cloned().chain([next.clone()]).collect());
            }
        }
    }
    None
}

#[test]
fn pure_crates_reach_nothing_impure() {
    let graph = graph();
    for pure in PURE {
        assert!(graph.contains_key(*pure), "{pure} is not in the workspace");
        for impure in IMPURE {
            let found = path(&graph, pure, impure);
            assert!(found.is_none(), "{pure} reaches {impure}: {found:?}");
        }
    }
}

#[test]
fn fences_between_rooms_hold() {
    let graph = graph();
    for (room, forbidden, why) in FENCES {
        assert!(graph.contains_key(*room), "{room} is not in the workspace");
        for package in *forbidden {
            let found = path(&graph, room, package);
            assert!(found.is_none(), "{why}: {found:?}");
        }
    }
}

#[test]
fn the_graph_is_read_right() {
    assert!(path(&graph(), "dunlin-protocol", "dunlin-planner").is_some());
}
