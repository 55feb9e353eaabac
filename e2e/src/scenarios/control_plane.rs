//! The control plane is disturbed while a swarm serves: what is taken away comes back, nothing else happens, and the API server does not pay for
//! it. Writes are counted by its own metrics.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::bench::{Bench, PEERS, Scenario};
use super::edits::under_load;
use crate::chat::Stream;
use crate::cluster::{Cluster, repository};
use crate::deploy::OPERATOR_NAMESPACE;
use crate::wait;

/// What somebody deletes or scales is back within this long.
const BACK: Duration = Duration::from_secs(5);
/// How long nothing may happen after a disturbance that is none.
const QUIET: Duration = Duration::from_secs(10);
/// How long the API server is slow.
const SLOW: Duration = Duration::from_secs(20);
/// What a call of it takes then.
const CALL: Duration = Duration::from_secs(2);
/// Kinds of which the operator writes objects, beside its lease and Events.
const WRITTEN: [&str; 9] = [
    "pods",
    "secrets",
    "services",
    "configmaps",
    "deployments",
    "networkpolicies",
    "poddisruptionbudgets",
    "inferenceswarms",
    "trainingswarms",
];

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "what-is-deleted-or-scaled-is-back-within-5-s", run: put_back },
        Scenario {
            name: "lease-crds-and-the-leader-are-taken-away-and-the-swarm-stays-as-it-is",
            run: replaced,
        },
        Scenario { name: "etcd-restarts-and-the-swarm-stays-as-it-is", run: etcd },
        Scenario { name: "a-slow-api-server-costs-no-pod-and-no-leader", run: slow },
    ]
}

fn put_back(bench: &Bench<'_>) -> Result<()> {
    let swarm = &bench.swarm.name;
    let objects = [
        ("service", format!("{swarm}-gateway")),
        ("poddisruptionbudget", format!("{swarm}-gateway")),
        ("poddisruptionbudget", format!("{swarm}-stage")),
        ("networkpolicy", format!("{swarm}-stage")),
        ("configmap", format!("{swarm}-topology")),
        ("secret", format!("{swarm}-gateway-tls")),
        ("secret", format!("{swarm}-ca")),
    ];
    for (kind, name) in &objects {
        let uid = bench.cluster.get(&[kind, name])?["metadata"]["uid"].clone();
        let row = Row::begin(bench.cluster, &format!("{kind} {name} deleted"))?;
        bench.cluster.kubectl(&["delete", kind, name, "--wait=false"])?;
        wait::until_true(&format!("{kind} {name} is back"), BACK, || {
            let there = bench.cluster.get(&[kind, name])?["metadata"]["uid"].clone();
            Ok((there != uid, there.to_string()))
        })?;
        // Our deletion is one of them.
        row.end(3)?;
    }
    let gateways = format!("{swarm}-gateway");
    let row = Row::begin(bench.cluster, "gateways' Deployment scaled to 0")?;
    bench.cluster.kubectl(&["scale", "deployment", &gateways, "--replicas=0"])?;
    wait::until_true("the gateways are scaled back", BACK, || {
        let replicas = bench.cluster.get(&["deployment", &gateways])?["spec"]["replicas"].clone();
        Ok((replicas == 2, replicas.to_string()))
    })?;
    bench.swarm.wait_whole(PEERS)?;
    // The controller manager makes and deletes pods, and updates Deployment and ReplicaSet.
    row.end(60)
}

fn replaced(bench: &Bench<'_>) -> Result<()> {
    let pods = stages(bench)?;
    let namespace = ["-n", OPERATOR_NAMESPACE];
    let (lease, _) = leader(bench.cluster)?;
    let said = conditions(bench)?;
    let row = Row::begin(bench.cluster, &format!("lease {lease} deleted"))?;
    bench.cluster.kubectl(&[&namespace[..], &["delete", "lease", &lease]].concat())?;
    wait::until_true("somebody leads", BACK, || {
        let now = leader(bench.cluster)?;
        Ok((!now.1.is_empty(), format!("{now:?}")))
    })?;
    // Whoever leads next writes each object once, as it remembers none.
    bench.swarm.wait_whole(PEERS)?;
    row.end(20)?;

    let row = Row::begin(bench.cluster, "CRDs applied again")?;
    for kind in ["inferenceswarms", "trainingswarms"] {
        let crd = repository().join(format!("charts/dunlin/files/crds/{kind}.yaml"));
        bench.cluster.apply(&std::fs::read_to_string(&crd).with_context(|| crd.display().to_string())?)?;
    }
    std::thread::sleep(QUIET);
    row.end(0)?;
    let now = conditions(bench)?;
    ensure!(
        now == said,
        "a new leader has changed what is said of a swarm that served all the time: {said} became {now}"
    );
    ensure!(stages(bench)? == pods, "stages were replaced");

    // A peer is lost, and before its replacement is there so is who makes it.
    let (_, leader) = leader(bench.cluster)?;
    let victim = bench.swarm.middle_peer()?;
    let stream = bench.stream_until_loss(&[])?;
    let row = Row::begin(bench.cluster, "the operator that leads deleted in the middle of a replacement")?;
    bench.cluster.kubectl(&["delete", "pod", &victim.name, "--grace-period=0", "--force"])?;
    bench.cluster.kubectl(
        &[&namespace[..], &["delete", "pod", pod_of(&leader)?, "--grace-period=0", "--force"]].concat(),
    )?;
    bench.same_tokens(stream)?;
    bench.swarm.wait_replaced(std::slice::from_ref(&victim), PEERS)?;
    row.end(60)?;
    let now = stages(bench)?;
    let stayed = pods.iter().filter(|(name, _)| *name != victim.name).all(|pod| now.contains(pod));
    ensure!(stayed && now.len() == pods.len(), "{pods:?} became {now:?}");
    Ok(())
}

fn etcd(bench: &Bench<'_>) -> Result<()> {
    let pods = stages(bench)?;
    let stream = Stream::start(&bench.swarm.gateway(&[])?, &bench.question());
    let row = Row::begin(bench.cluster, "etcd restarted")?;
    bench.cluster.verb(&["exec", "cp", "pkill", "-KILL", "-f", "[k]ubes etcd"])?;
    bench.same_tokens(stream)?;
    wait::until("the API server is ready", Duration::from_secs(60), || {
        bench.cluster.kubectl(&["get", "--raw", "/readyz"]).map(Some)
    })?;
    let service = format!("{}-gateway", bench.swarm.name);
    bench.cluster.kubectl(&["delete", "service", &service, "--wait=false"])?;
    wait::until("the Service is back", BACK, || bench.cluster.get(&["service", &service]).map(Some))?;
    bench.swarm.wait_whole(PEERS)?;
    row.end(10)?;
    ensure!(stages(bench)? == pods, "stages were replaced");
    Ok(())
}

/// The API server is stopped for two seconds again and again, so that every call waits for it.
fn slow(bench: &Bench<'_>) -> Result<()> {
    let (pods, before) = (stages(bench)?, leader(bench.cluster)?);
    let row = Row::begin(bench.cluster, "API server at 2 s a call")?;
    let signal =
        |name: &str| bench.cluster.verb(&["exec", "cp", "pkill", name, "-f", "[k]ubes kube-apiserver"]);
    let disturbed = under_load(&bench.swarm, &bench.reference, || {
        let started = Instant::now();
        while started.elapsed() < SLOW {
            signal("-STOP")?;
            std::thread::sleep(CALL);
            signal("-CONT")?;
            std::thread::sleep(CALL / 20);
        }
        Ok(())
    });
    signal("-CONT")?;
    disturbed?;
    bench.swarm.wait_whole(PEERS)?;
    row.end(10)?;
    ensure!(stages(bench)? == pods, "stages were replaced: {pods:?} became {:?}", stages(bench)?);
    ensure!(leader(bench.cluster)? == before, "another operator leads");
    Ok(())
}

/// A disturbance: how long until the swarm is as it was, and the writes that it cost.
struct Row<'a> {
    cluster: &'a Cluster,
    what: String,
    writes: u64,
    begun: Instant,
}

impl<'a> Row<'a> {
    fn begin(cluster: &'a Cluster, what: &str) -> Result<Self> {
        Ok(Self { cluster, what: what.to_owned(), writes: writes(cluster)?, begun: Instant::now() })
    }

    /// It is over. `at_most`: writes that it may have cost, with those of Kubernetes itself.
    fn end(self, at_most: u64) -> Result<()> {
        let took = self.begun.elapsed().as_secs_f64();
        let writes = writes(self.cluster)?.saturating_sub(self.writes);
        println!("    {}: as before after {took:.1} s, {writes} writes", self.what);
        ensure!(writes <= at_most, "{}: {writes} writes, {at_most} are enough", self.what);
        Ok(())
    }
}

/// Requests that the API server has taken that write objects of the kinds that the operator writes; without those about the status of pods and
/// Deployments, which are Kubernetes' own.
fn writes(cluster: &Cluster) -> Result<u64> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{"));
    let label = |labels: &str, name: &str| -> String {
        let value = labels.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
        value.map_or_else(String::new, |(value, _)| value.to_owned())
    };
    let mut count = 0;
    for (labels, value) in lines.filter_map(|line| line.rsplit_once("} ")) {
        let (verb, resource) = (label(labels, "verb"), label(labels, "resource"));
        let ours = WRITTEN.contains(&resource.as_str());
        let status = label(labels, "subresource") == "status" && !resource.ends_with("swarms");
        if ours && !status && ["APPLY", "POST", "PUT", "PATCH", "DELETE"].contains(&verb.as_str()) {
            count += value.parse::<f64>().with_context(|| format!("{labels} {value}"))? as u64;
        }
    }
    Ok(count)
}

/// Name and UID of every stage.
fn stages(bench: &Bench<'_>) -> Result<Vec<(String, String)>> {
    let selector = format!("dunlin.dev/swarm={},dunlin.dev/role=stage", bench.swarm.name);
    let list = bench.cluster.get(&["pods", "-l", &selector])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().into_iter().flatten();
    Ok(pods.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]))).collect())
}

/// The conditions of the swarm, with the times of their changes.
fn conditions(bench: &Bench<'_>) -> Result<Value> {
    Ok(bench.cluster.get(&["inferenceswarm", &bench.swarm.name])?["status"]["conditions"].clone())
}

/// The operator's lease, and who holds it.
fn leader(cluster: &Cluster) -> Result<(String, String)> {
    let leases = cluster.get(&["leases", "-n", OPERATOR_NAMESPACE])?;
    let Some(lease) = leases["items"].get(0) else { bail!("no lease in {OPERATOR_NAMESPACE}") };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&lease["metadata"]["name"]), text(&lease["spec"]["holderIdentity"])))
}

/// The pod in an identity.
fn pod_of(identity: &str) -> Result<&str> {
    identity.split('_').next().filter(|name| !name.is_empty()).context("nobody leads")
}
