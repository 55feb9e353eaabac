//! More and fewer peers, upgrades, deletion.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::bench::{Bench, PEERS, Scenario};
use super::edits::under_load;
use crate::cluster::{Cluster, repository};
use crate::deploy;
use crate::swarm::is_over;
use crate::wait;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "peers-3-5-2-under-load-no-request-lost", run: scaled },
        Scenario { name: "a-swarm-without-replicas-is-scaled-by-an-autoscaler", run: autoscaled },
        Scenario { name: "chart-upgrade-under-load", run: upgraded },
        Scenario { name: "swarm-deleted-nothing-left", run: deleted },
    ]
}

fn scaled(bench: &Bench<'_>) -> Result<()> {
    // The example's least is three.
    let example = deploy::example(bench.cluster, "smollm2.yaml")?;
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

fn autoscaled(bench: &Bench<'_>) -> Result<()> {
    let cluster = bench.cluster;
    let example = deploy::example(bench.cluster, "smollm2.yaml")?;
    let result = (|| {
        // One that nobody has ever scaled.
        let fresh = example.replace("  name: smollm2\n", "  name: unscaled\n");
        cluster.apply(&fresh.replace("  pools:\n", "  suspend: true\n  pools:\n"))?;
        let fresh = scale(cluster, "unscaled")?;
        ensure!(fresh["spec"]["replicas"] == 1, "what a manifest leaves out: {fresh}");

        wait::until_true("/scale counts and selects the peers", Duration::from_secs(30), || {
            let status = scale(cluster, &bench.swarm.name)?["status"].clone();
            let selector = status["selector"].as_str().unwrap_or_default();
            let pods = cluster.get(&["pods", "-l", selector])?;
            let pods = pods["items"].as_array().into_iter().flatten().filter(|pod| !is_over(pod)).count();
            Ok((status["replicas"] == PEERS && pods as u64 == PEERS, format!("{status}, {pods} pods")))
        })?;

        // It needs no metrics to bring a swarm to its own least.
        let autoscaler = std::fs::read_to_string(repository().join("examples/hpa.yaml"))?;
        let more = PEERS + 1;
        cluster.apply(&autoscaler.replace("minReplicas: 3", &format!("minReplicas: {more}")))?;
        bench.swarm.wait_whole(more)?;
        let found = cluster.get(&["horizontalpodautoscaler", &bench.swarm.name])?;
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let able = conditions.iter().any(|c| c["type"] == "AbleToScale" && c["status"] == "True");
        ensure!(able, "{}", found["status"]);

        // Whoever applies the manifest again does not take it back.
        cluster.apply(&example)?;
        let after = scale(cluster, &bench.swarm.name)?;
        ensure!(after["spec"]["replicas"] == more && after["status"]["replicas"] == more, "{after}");
        Ok(())
    })();
    for object in
        [format!("horizontalpodautoscaler/{}", bench.swarm.name), "inferenceswarm/unscaled".to_owned()]
    {
        cluster.kubectl(&["delete", &object, "--ignore-not-found", "--timeout=60s"])?;
    }
    result
}

/// What autoscalers see of the swarm `name`.
fn scale(cluster: &Cluster, name: &str) -> Result<Value> {
    let path = format!("/apis/dunlin.dev/v1alpha1/namespaces/default/inferenceswarms/{name}/scale");
    Ok(serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path])?)?)
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
