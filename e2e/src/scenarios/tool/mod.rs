//! The tool on a real cluster: what it says first of a swarm that cannot start, what it shows of one that serves, and a peer that it
//! moves away.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

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
    ]
}

/// `dunlin ARGS`, which was built beside this program, as the cluster's administrator.
fn dunlin(bench: &Bench<'_>, args: &[&str]) -> Result<Output> {
    dunlin_as(&bench.cluster.kubeconfig()?, args)
}

/// The same as whoever `kubeconfig` is of.
fn dunlin_as(kubeconfig: &Path, args: &[&str]) -> Result<Output> {
    let program = std::env::current_exe()?.with_file_name("dunlin");
    let mut command = Command::new(&program);
    command.args(args).env("KUBECONFIG", kubeconfig);
    command.output().with_context(|| format!("{}: run `make build` first", program.display()))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The JSON of a command that ends well.
fn json(bench: &Bench<'_>, args: &[&str]) -> Result<Value> {
    let output = dunlin(bench, &[args, &["--output", "json"]].concat())?;
    ensure!(output.status.success(), "{args:?}: {}: {}", output.status, text(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
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
