//! What the operator costs the API server that refuses it something, and what becomes of pods that nobody can see.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::bench::{Bench, PEERS, Scenario};
use crate::deploy;
use crate::wait;

/// A status that has not been written for so long tells all that there is.
const SETTLED: Duration = Duration::from_secs(10);
const NAMESPACE: &str = "quota";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "stages-are-evicted-one-at-a-time", run: evicted },
        Scenario { name: "pod-without-its-label-is-deleted-and-replaced", run: unlabelled },
        Scenario { name: "pod-refused-by-a-quota-costs-a-write-a-minute", run: refused },
    ]
}

fn evicted(bench: &Bench<'_>) -> Result<()> {
    let budget = format!("{}-stage", bench.swarm.name);
    let allowed = || {
        let status = bench.cluster.get(&["poddisruptionbudget", &budget])?["status"].clone();
        Ok((status["disruptionsAllowed"] == 1, status.to_string()))
    };
    wait::until_true("one stage may be evicted", Duration::from_secs(30), allowed)?;
    let peers = bench.swarm.peers()?;
    let [first, second, ..] = &peers[..] else { bail!("{} peers", peers.len()) };
    bench.cluster.evict(&first.name)?;
    let refusal = bench.cluster.evict(&second.name).err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(refusal.contains("disruption budget"), "the second of two at once: {refusal:?}");
    bench.swarm.wait_replaced(std::slice::from_ref(first), PEERS)?;
    wait::until_true("the next one may be evicted", Duration::from_secs(30), allowed)?;
    bench.cluster.evict(&second.name)?;
    bench.swarm.wait_replaced(std::slice::from_ref(second), PEERS)
}

fn unlabelled(bench: &Bench<'_>) -> Result<()> {
    let peers = bench.swarm.peers()?;
    let Some(peer) = peers.first() else { bail!("no peers") };
    bench.cluster.kubectl(&["label", "pod", &peer.name, "dunlin.dev/swarm-"])?;
    wait::until_true("the pod is deleted", Duration::from_secs(60), || {
        let there = bench.cluster.kubectl(&["get", "pod", &peer.name, "--ignore-not-found", "-o", "name"])?;
        Ok((there.trim().is_empty(), there))
    })?;
    bench.swarm.wait_whole(PEERS)
}

fn refused(bench: &Bench<'_>) -> Result<()> {
    let result = (|| {
        bench.cluster.kubectl(&["create", "namespace", NAMESPACE])?;
        let namespace = ["-n", NAMESPACE];
        bench.cluster.kubectl(&[&namespace[..], &["create", "quota", "pods", "--hard=pods=1"]].concat())?;
        let example = deploy::example(bench.cluster, "smollm2.yaml")?;
        bench
            .cluster
            .apply(&example.replace("  name: smollm2\n", "  name: smollm2\n  namespace: quota\n"))?;
        let get = |what: &[&str]| bench.cluster.get(&[&namespace[..], what].concat());
        wait::until_true("the swarm says that a quota refuses its pods", Duration::from_secs(120), || {
            let swarm = get(&["inferenceswarm", "smollm2"])?;
            let conditions = swarm["status"]["conditions"].to_string();
            Ok((conditions.contains("PodRefused") && conditions.contains("exceeded quota"), conditions))
        })?;
        let events = get(&["events"])?.to_string();
        ensure!(events.contains("PodRefused"), "no Event: {events}");
        let version = || {
            Ok::<_, anyhow::Error>(
                get(&["inferenceswarm", "smollm2"])?["metadata"]["resourceVersion"].clone(),
            )
        };
        // The one pod that the quota allows starts, and becomes ready: that is news.
        let mut last = (version()?, Instant::now());
        wait::until_true("what there is to tell is told", Duration::from_secs(90), || {
            let now = version()?;
            if now != last.0 {
                last = (now, Instant::now());
            }
            Ok((last.1.elapsed() >= SETTLED, last.0.to_string()))
        })?;
        let secrets = get(&["secrets"])?["items"].as_array().map_or(0, Vec::len);
        // The authority, the gateways' and one for each pod that is there.
        ensure!(secrets <= 3, "{secrets} Secrets");
        let (mut seen, mut writes) = (last.0, 0);
        let minute = Instant::now();
        while minute.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(500));
            let now = version()?;
            writes += usize::from(now != seen);
            seen = now;
        }
        ensure!(writes <= 1, "the status was written {writes} times in a minute in which nothing changed");
        let secrets_now = get(&["secrets"])?["items"].as_array().map_or(0, Vec::len);
        ensure!(secrets_now == secrets, "{secrets} Secrets became {secrets_now}");
        // More room is used within a minute.
        bench.cluster.kubectl(&[&namespace[..], &["delete", "quota", "pods"]].concat())?;
        wait::until_true("the missing peers are made", Duration::from_secs(90), || {
            let peers =
                get(&["pods", "-l", "dunlin.dev/role=stage"])?["items"].as_array().map_or(0, Vec::len);
            Ok((peers == 3, format!("{peers} peers")))
        })
    })();
    bench.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s"])?;
    result
}
