//! Asks, evicts, waits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use dunlin_crds::names::{ROLE_GATEWAY, ROLE_STAGE, SWARM};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{EvictParams, ListParams};
use kube::{Api, Error, ResourceExt};
use serde::Serialize;
use tokio::time::Instant;

use super::holders::{last_held, outcome, sessions};
use crate::args::{DrainArgs, Format};
use crate::cluster::{Cluster, LIST_MAX, if_there, or_end};
use crate::failure::Call;
use crate::output::{Output, count};
use crate::pods::PodFacts;
use crate::status::ask::{gateway_pages, read_topology};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Drained {
    pod: String,
    node: String,
    sessions_moved: usize,
    sessions_ended: usize,
    seconds: f64,
}

/// Moves a peer away, or all of a node.
///
/// # Errors
/// When it may not go, or does not within the time.
pub async fn drain(args: &DrainArgs, output: &Output) -> Result<bool> {
    let cluster = Cluster::connect(&args.common).await?;
    let end = Instant::now() + Duration::from_secs(args.timeout);
    let mut drained = Vec::new();
    for pod in targets(&cluster, &args.target, output).await? {
        let one =
            one(&cluster.of(&pod.namespace().unwrap_or_default()), &pod, args.force, end, output).await?;
        if args.common.output == Format::Text {
            let moved = match (one.sessions_moved, one.sessions_ended) {
                (0, 0) => String::new(),
                (moved, 0) => format!(", {} went over to others", count(moved, "session")),
                (moved, ended) => {
                    format!(", {} went over to others, {ended} ended meanwhile", count(moved, "session"))
                }
            };
            output
                .print(&format!("pod {} has left {} after {:.1} s{moved}", one.pod, one.node, one.seconds))?;
        }
        drained.push(one);
    }
    if args.common.output == Format::Json {
        output.json(&drained)?;
    }
    Ok(true)
}

/// The pod called `target`, or those of swarms on the node of that name, which takes no new ones from now on.
async fn targets(cluster: &Cluster, target: &str, output: &Output) -> Result<Vec<Pod>> {
    if let Some(namespace) = &cluster.namespace
        && let Some(pod) = or_end(cluster.get::<Pod>(target).await)?
    {
        if !pod.labels().contains_key(SWARM) {
            bail!(
                "pod {target} in {namespace} is of no swarm: use `kubectl drain` or `kubectl delete` for others"
            );
        }
        return Ok(vec![pod]);
    }
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let call = |verb| Call { verb, resource: "nodes", namespace: None };
    let node = if_there(nodes.get(target).await).map_err(|e| anyhow!(call("get").failed(&e)))?;
    if node.is_none() {
        let place = cluster.namespace.as_deref().map_or(String::new(), |n| format!(" in namespace {n}"));
        bail!(
            "there is neither a pod {target}{place} nor a node of that name: `kubectl dunlin status` lists peers and nodes"
        );
    }
    let params =
        ListParams::default().labels(SWARM).fields(&format!("spec.nodeName={target}")).limit(LIST_MAX);
    let pods = cluster.api::<Pod>().list(&params).await;
    let list = Call { verb: "list", resource: "pods", namespace: cluster.namespace.as_deref() };
    let mut pods = pods.map_err(|e| anyhow!(list.failed(&e)))?.items;
    pods.retain(|pod| !PodFacts::of(pod, 0).is_over());
    // Gateways may take minutes to finish their answers: nobody waits for them.
    pods.sort_by_key(|pod| PodFacts::of(pod, 0).role == ROLE_GATEWAY);
    nodes.cordon(target).await.map_err(|e| anyhow!(call("patch").failed(&e)))?;
    output.note(&format!(
        "node {target} takes no new pods (`kubectl uncordon {target}` ends that); {} of swarms to move",
        count(pods.len(), "pod")
    ));
    Ok(pods)
}

/// What is known about the sessions of a pod and the layers that would go with it.
struct Look {
    on_it: BTreeSet<String>,
    all: BTreeMap<String, bool>,
    last: String,
}

async fn look(here: &Cluster, pod: &Pod) -> Result<Look> {
    let name = pod.name_any();
    let swarm = pod.labels().get(SWARM).cloned().unwrap_or_default();
    let pods = or_end(here.list::<Pod>(&format!("{SWARM}={swarm}")).await)?;
    let pods: Vec<PodFacts> = pods.iter().map(|p| PodFacts::of(p, Timestamp::now().as_second())).collect();
    let pages = gateway_pages(here, &pods).await;
    let all = sessions(&pages, &name);
    let facts = PodFacts::of(pod, 0);
    let mut last = String::new();
    if facts.role == ROLE_STAGE
        && let Some(topology) = or_end(read_topology(here, &swarm).await)?
    {
        let heard: Vec<_> = pages.into_values().flatten().collect();
        let ranges = last_held(&name, &topology, &pods, &heard);
        last = ranges.iter().map(|l| format!("{} to {}", l.start, l.end - 1)).collect::<Vec<_>>().join(", ");
    }
    let on_it = all.iter().filter(|(_, on_it)| **on_it).map(|(id, _)| id.clone()).collect();
    Ok(Look { on_it, all, last })
}

async fn one(here: &Cluster, pod: &Pod, force: bool, end: Instant, output: &Output) -> Result<Drained> {
    let (name, began) = (pod.name_any(), Instant::now());
    let facts = PodFacts::of(pod, 0);
    let before = look(here, pod).await?;
    if !before.last.is_empty() && !force {
        bail!(
            "pod {name} is the last that holds layers {}: without it nobody is answered. Wait until another one holds them (`kubectl \
             dunlin status`; it takes redundancy.shadows of 1 or more), or use --force",
            before.last
        );
    }
    evict(here, &name, end, output).await?;
    let sessions = before.on_it.len();
    let more = match facts.role.as_str() {
        ROLE_STAGE => format!("; {} on it", count(sessions, "session")),
        ROLE_GATEWAY => {
            "; it finishes the answers that it has begun, for as long as gateway.drainSeconds allows".into()
        }
        _ => String::new(),
    };
    output.note(&format!("pod {name} on {} has notice{more}", facts.node));
    let (mut were, mut told) = (before.on_it, if facts.role == ROLE_STAGE { sessions } else { 0 });
    let mut all = before.all;
    loop {
        let there = or_end(here.get::<Pod>(&name).await)?.filter(|now| now.uid() == pod.uid());
        let gone = there.is_none_or(|now| PodFacts::of(&now, 0).is_over());
        if facts.role == ROLE_STAGE {
            let now = look(here, pod).await?;
            if now.on_it.len() != told {
                told = now.on_it.len();
                output.note(&format!("{} on it", count(told, "session")));
            }
            were.extend(now.on_it);
            all = now.all;
        }
        // Who has lost its peer goes on elsewhere a moment later.
        if gone && told == 0 {
            break;
        }
        if Instant::now() >= end {
            let still = if gone { "is gone" } else { "is still there" };
            bail!(
                "pod {name} has notice and {still}, with {} on it: see `kubectl dunlin doctor` and `kubectl describe pod {name}`, or give more --timeout",
                count(told, "session")
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
    let (sessions_moved, sessions_ended) = outcome(&were, &all);
    Ok(Drained {
        pod: name,
        node: facts.node,
        sessions_moved,
        sessions_ended,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Evicts `pod` as soon as its disruption budget allows.
async fn evict(here: &Cluster, pod: &str, end: Instant, output: &Output) -> Result<()> {
    let call = Call { verb: "create", resource: "pods/eviction", namespace: here.namespace.as_deref() };
    let mut told = false;
    loop {
        match here.api::<Pod>().evict(pod, &EvictParams::default()).await {
            Ok(_) => return Ok(()),
            Err(Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(Error::Api(status)) if status.code == 429 && Instant::now() < end => {
                if !told {
                    output.note(&format!("pod {pod} waits: {}", status.message.trim_end_matches('.')));
                    told = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(Error::Api(status)) if status.code == 429 => bail!(
                "pod {pod} may not go yet ({}): another peer of the swarm is missing. `kubectl dunlin doctor` says why; then try again, or give more \
                 --timeout",
                status.message.trim_end_matches('.')
            ),
            Err(error) => bail!(call.failed(&error)),
        }
    }
}
