//! The tool on a real cluster: what it says first of a swarm that cannot start, what it shows of one that serves and of one that trains, peers and
//! nodes that it drains, and what it says to whoever lacks a right.

mod node;
mod program;
mod rights;
mod training;

use std::time::Duration;

use anyhow::{Result, ensure};

use program::{dunlin, json, text};

use super::bench::{Bench, PEERS, Scenario};
use crate::{deploy, wait};

/// Namespace of the swarm that cannot start.
const NAMESPACE: &str = "nowhere";
/// The exit code for what needs mending.
const FOUND: i32 = 3;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "the-doctor-says-first-that-no-node-matches-a-pool", run: doctor },
        Scenario { name: "a-peer-is-shown-and-moved-away-by-the-tool-mid-stream", run: drain },
        Scenario {
            name: "a-node-with-peers-of-two-swarms-is-drained-by-the-tool-mid-stream",
            run: node::drain,
        },
        Scenario {
            name: "without-a-right-the-tool-says-which-one-and-what-still-works",
            run: rights::missing,
        },
        Scenario {
            name: "a-training-run-is-shown-and-a-peer-of-it-is-moved-away-by-the-tool",
            run: training::run,
        },
    ]
}

fn doctor(bench: &Bench<'_>) -> Result<()> {
    let result = (|| {
        bench.cluster.kubectl(&["create", "namespace", NAMESPACE])?;
        let example = deploy::example(bench.cluster, "smollm2.yaml")?;
        let elsewhere = example
            .replace("  name: smollm2\n", "  name: smollm2\n  namespace: nowhere\n")
            .replace("    - name: spot\n", "    - name: spot\n      nodeSelector: {disk: none}\n");
        ensure!(elsewhere.contains("disk: none"), "the example has changed: {elsewhere}");
        bench.cluster.apply(&elsewhere)?;
        let nodes = bench.cluster.nodes().len();
        let expected = format!(
            "inferenceswarm/smollm2 in {NAMESPACE} is not Ready: no node matches pool spot: none of the {nodes} nodes is labelled disk=none"
        );
        wait::until_true("the doctor's first line says so", Duration::from_secs(60), || {
            let output = dunlin(bench, &["doctor", "smollm2", "-n", NAMESPACE])?;
            let said = text(&output);
            let found = output.status.code() == Some(FOUND) && said.lines().next() == Some(expected.as_str());
            Ok((found, format!("{}: {said}", output.status)))
        })?;
        let whole = dunlin(bench, &["doctor", &bench.swarm.name])?;
        ensure!(whole.status.success(), "of the swarm that serves: {}", text(&whole));
        Ok(())
    })();
    bench.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s"])?;
    result
}

fn drain(bench: &Bench<'_>) -> Result<()> {
    let views = json(bench, &["status", &bench.swarm.name])?;
    let layers = views[0]["layers"].as_u64().unwrap_or(0);
    let peers = views[0]["peers"].as_array().cloned().unwrap_or_default();
    let computed: u64 = peers
        .iter()
        .map(|p| p["span"]["end"].as_u64().unwrap_or(0) - p["span"]["start"].as_u64().unwrap_or(0))
        .sum();
    ensure!(layers > 0 && computed == layers && views[0]["sessions"].is_u64(), "{views}");
    let plan = dunlin(bench, &["plan", &bench.swarm.name])?;
    ensure!(plan.status.success() && text(&plan).contains("nobody moves"), "{}", text(&plan));

    let victim = bench.swarm.middle_peer()?;
    let stream = bench.stream_until_loss(&[&victim.node])?;
    let drained = dunlin(bench, &["drain", &victim.name])?;
    let said = text(&drained);
    ensure!(drained.status.success() && said.contains(&format!("pod {} has left", victim.name)), "{said}");
    bench.same_tokens(stream)?;
    bench.swarm.wait_replaced(&[victim], PEERS)
}
