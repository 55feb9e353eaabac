//! More and fewer peers, upgrades, deletion.

use std::time::Duration;

use anyhow::Result;

use super::edits::under_load;
use super::{Bench, PEERS, Scenario};
use crate::cluster::repository;
use crate::deploy;
use crate::wait;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "peers-3-5-2-under-load-no-request-lost", run: scaled },
        Scenario { name: "chart-upgrade-under-load", run: upgraded },
        Scenario { name: "swarm-deleted-nothing-left", run: deleted },
    ]
}

fn scaled(bench: &Bench<'_>) -> Result<()> {
    // The example's least is three.
    let example = std::fs::read_to_string(repository().join("examples/smollm2.yaml"))?;
    bench.cluster.apply(&example.replace("min: 3", "min: 2"))?;
    under_load(&bench.swarm, &bench.reference, || {
        for peers in [5, 2] {
            let count = format!("--replicas={peers}");
            bench.cluster.kubectl(&["scale", "inferenceswarm", &bench.swarm.name, &count])?;
            bench.swarm.wait_whole(peers)?;
        }
        Ok(())
    })
}

fn upgraded(bench: &Bench<'_>) -> Result<()> {
    under_load(&bench.swarm, &bench.reference, || {
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
