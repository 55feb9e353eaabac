//! More and fewer peers, upgrades, deletion.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Bench, PEERS, Scenario, same};
use crate::chat;
use crate::deploy;
use crate::swarm::gateway_url;
use crate::wait;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "peers-3-5-2-under-load-no-request-lost", run: scaled },
        Scenario { name: "chart-upgrade-under-load", run: upgraded },
        Scenario { name: "swarm-deleted-nothing-left", run: deleted },
    ]
}

/// Runs `change` while two clients ask one question after another; every answer must be whole and the same.
fn under_load(bench: &Bench<'_>, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    let gateways: Vec<String> =
        bench.swarm.pods("gateway")?.iter().filter(|p| p.ready).map(gateway_url).collect();
    ensure!(!gateways.is_empty(), "no ready gateway");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|i| {
                let (stop, url) = (&stop, gateways[i % gateways.len()].clone());
                scope.spawn(move || -> Result<u32> {
                    let mut answers = 0;
                    while !stop.load(Ordering::Relaxed) {
                        same(&bench.reference, &chat::ask(&url, &bench.question())?)?;
                        answers += 1;
                    }
                    Ok(answers)
                })
            })
            .collect();
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let answers = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            ensure!(answers > 0, "a client got no answer at all");
        }
        changed
    })
}

fn scaled(bench: &Bench<'_>) -> Result<()> {
    // The example's least is three.
    let example = deploy::example(bench.cluster, "smollm2.yaml")?;
    bench.cluster.apply(&example.replace("min: 3", "min: 2"))?;
    under_load(bench, || {
        for peers in [5, 2] {
            let count = format!("--replicas={peers}");
            bench.cluster.kubectl(&["scale", "inferenceswarm", &bench.swarm.name, &count])?;
            bench.swarm.wait_whole(peers)?;
        }
        Ok(())
    })
}

fn upgraded(bench: &Bench<'_>) -> Result<()> {
    under_load(bench, || {
        deploy::install_chart(bench.cluster, &["--set-string", "operator.podAnnotations.upgraded=yes"])
    })?;
    deploy::install_chart(bench.cluster, &[])
}

fn deleted(bench: &Bench<'_>) -> Result<()> {
    bench.cluster.kubectl(&["delete", "inferenceswarm", &bench.swarm.name, "--timeout=60s"])?;
    let selector = format!("dunlin.dev/swarm={}", bench.swarm.name);
    wait::until_true("nothing of the swarm is left", Duration::from_secs(60), || {
        let kinds = "pods,services,deployments,replicasets,configmaps,secrets,networkpolicies,poddisruptionbudgets,endpointslices";
        let list = bench.cluster.get(&[kinds, "-l", &selector])?;
        let names: Vec<String> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|i| {
                format!(
                    "{}/{}",
                    i["kind"].as_str().unwrap_or(""),
                    i["metadata"]["name"].as_str().unwrap_or("")
                )
            })
            .collect();
        Ok((names.is_empty(), names.join(" ")))
    })?;
    let swarm = deploy::apply_example_swarm(bench.cluster)?;
    swarm.wait_whole(PEERS)
}
