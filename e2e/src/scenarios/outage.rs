//! The control plane is not on the path of an answer: operator, API server or a gateway may be gone.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::bench::{Bench, LOSS_AT, Scenario};
use crate::chat::{self, Stream};
use crate::deploy::OPERATOR_NAMESPACE;
use crate::swarm::{gateway_url, is_over};
use crate::wait;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "node-killed-while-the-operator-is-down", run: operator_down },
        Scenario { name: "node-killed-while-the-api-server-is-down", run: api_server_down },
        Scenario { name: "gateway-deleted-others-serve-and-its-sessions-are-freed", run: gateway_deleted },
    ]
}

fn operator_down(bench: &Bench<'_>) -> Result<()> {
    let result = (|| {
        scale_operator(bench, 0)?;
        let victim = bench.swarm.middle_peer()?;
        let stream = bench.stream_until_loss(&[&victim.node])?;
        bench.cluster.verb(&["kill", &victim.node])?;
        bench.same_tokens(stream)?;
        // And a new question is answered, too, with nobody there to replace the peer.
        bench.same_tokens(Stream::start(&bench.swarm.gateway(&[&victim.node])?, &bench.question()))
    })();
    scale_operator(bench, 2)?;
    result.map(drop)
}

/// Waits until the operator has so many pods.
pub(super) fn scale_operator(bench: &Bench<'_>, replicas: u64) -> Result<()> {
    let namespace = ["-n", OPERATOR_NAMESPACE];
    let count = format!("--replicas={replicas}");
    bench.cluster.kubectl(&[namespace[0], namespace[1], "scale", "deployment", "dunlin-operator", &count])?;
    wait::until_true("the operator is scaled", Duration::from_secs(60), || {
        let pods = bench.cluster.get(&[
            "pods",
            "-n",
            OPERATOR_NAMESPACE,
            "-l",
            "app.kubernetes.io/component=operator",
        ])?;
        let pods = pods["items"].as_array().into_iter().flatten();
        let there = pods.filter(|pod| !is_over(pod)).count() as u64;
        Ok((if replicas == 0 { there == 0 } else { there >= replicas }, format!("{there} operator pods")))
    })
}

fn api_server_down(bench: &Bench<'_>) -> Result<()> {
    let victim = bench.swarm.middle_peer()?;
    let url = bench.swarm.gateway(&[&victim.node])?;
    let mut stream = Stream::start(&url, &bench.question());
    stream.read_tokens(LOSS_AT / 2)?;
    bench.cluster.verb(&["kill", "cp"])?;
    let result = (|| {
        stream.read_tokens(LOSS_AT)?;
        bench.cluster.verb(&["kill", &victim.node])?;
        bench.same_tokens(stream)?;
        bench.same_tokens(Stream::start(&url, &bench.question()))
    })();
    bench.cluster.verb(&["start", "cp"])?;
    wait::until("the API server is back", Duration::from_secs(60), || {
        bench.cluster.kubectl(&["get", "--raw", "/readyz"]).map(Some)
    })?;
    result.map(drop)
}

/// Stages keep a session for at most its 10 s lease after its gateway is gone.
fn gateway_deleted(bench: &Bench<'_>) -> Result<()> {
    let victim = bench.swarm.gateway_pod(&[])?;
    let other = bench
        .swarm
        .pods("gateway")?
        .into_iter()
        .find(|p| p.ready && p.name != victim.name)
        .ok_or_else(|| anyhow::anyhow!("two gateways expected"))?;
    let mut doomed = Stream::start(&gateway_url(&victim), &bench.question());
    let mut safe = Stream::start(&gateway_url(&other), &bench.question());
    doomed.read_tokens(10)?;
    safe.read_tokens(10)?;
    bench.cluster.kubectl(&["delete", "pod", &victim.name, "--grace-period=0", "--force"])?;
    bench.same_tokens(safe)?;
    drop(doomed);
    wait::until_true("the sessions of the deleted gateway are freed", Duration::from_secs(30), || {
        let (status, body) = chat::get(&format!("{}/swarm", gateway_url(&other)))?;
        ensure!(status == 200, "/swarm answers {status}: {body}");
        let swarm: serde_json::Value = serde_json::from_str(&body)?;
        let peers = swarm["peers"].as_array().cloned().unwrap_or_default();
        let free = !peers.is_empty() && peers.iter().all(|p| p["free_pages"] == p["total_pages"]);
        Ok((free, swarm["peers"].to_string()))
    })
}
