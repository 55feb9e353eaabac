//! Evicts, and waits.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use dunlin_crds::names::{ROLE_GATEWAY, ROLE_STAGE};
use dunlin_terminal::print::{Form, line, note};
use dunlin_terminal::words::count;
use k8s_openapi::api::core::v1::Pod;
use kube::api::EvictParams;
use kube::{Error, ResourceExt};
use serde::Serialize;
use tokio::time::Instant;

use super::holders::outcome;
use super::look::{Look, look};
use super::targets::{Targets, targets};
use crate::args::DrainArgs;
use crate::cluster::Cluster;
use crate::failure::ApiCall;
use crate::pods::PodFacts;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Drained {
    pod: String,
    node: String,
    /// `None` when no gateway could be asked.
    sessions_moved: Option<usize>,
    sessions_ended: Option<usize>,
    seconds: f64,
}

impl Drained {
    fn text(&self) -> String {
        let moved = match (self.sessions_moved, self.sessions_ended) {
            (Some(0), Some(0)) => String::new(),
            (Some(moved), Some(0)) => format!(", {} went over to others", count(moved, "session")),
            (Some(moved), Some(ended)) => {
                format!(", {} went over to others, {ended} ended meanwhile", count(moved, "session"))
            }
            _ => ", what became of its sessions is not known".to_owned(),
        };
        format!("pod {} has left {} after {:.1} s{moved}", self.pod, self.node, self.seconds)
    }
}

/// How a pod may be moved.
#[derive(Clone, Copy)]
struct Terms {
    /// Until then.
    end: Instant,
    /// Also as the last holder of a layer.
    force: bool,
    /// The last holder of a layer waits until another one holds it, instead of staying.
    patient: bool,
}

/// Moves a peer away, or all of a node.
///
/// # Errors
/// When it may not go, or does not within the time.
pub async fn drain(args: &DrainArgs) -> Result<bool> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let end = Instant::now() + Duration::from_secs(args.timeout);
    let (pods, patient) = match targets(&cluster, &args.target).await? {
        Targets::One(pod) => (vec![*pod], false),
        Targets::Node(pods) => (pods, true),
    };
    let terms = Terms { end, force: args.force, patient };
    let mut drained = Vec::new();
    for pod in &pods {
        let moved = one(&cluster.of(&pod.namespace().unwrap_or_default()), pod, terms).await;
        let moved = if patient {
            let left = count(pods.len() - drained.len(), "pod");
            moved.with_context(|| {
                format!("{left} of swarms still on node {}, which stays cordoned", args.target)
            })?
        } else {
            moved?
        };
        if args.output.output == Form::Text {
            // Who reads no longer has seen enough; the drain goes on.
            let _ = line(moved.text())?;
        }
        drained.push(moved);
    }
    if args.output.output == Form::Json {
        args.output.print(&drained, String::new)?;
    }
    Ok(true)
}

async fn one(here: &Cluster, pod: &Pod, terms: Terms) -> Result<Drained> {
    let (name, began) = (pod.name_any(), Instant::now());
    let facts = PodFacts::of(pod, 0);
    let before = may_go(here, pod, terms).await?;
    evict(here, &name, terms.end).await?;
    note(format!("pod {name} on {} has notice{}", facts.node, of_notice(&facts, &before)));
    let mut unheard = before.unheard.is_some();
    let (mut were, mut told, mut all) = (before.on_it.clone(), before.on_it.len(), before.all);
    loop {
        let there = here.get::<Pod>(&name).await?.filter(|now| now.uid() == pod.uid());
        let gone = there.is_none_or(|now| PodFacts::of(&now, 0).is_over());
        let now = look(here, pod, true).await?;
        if now.on_it.len() != told && now.unheard.is_none() {
            told = now.on_it.len();
            note(format!("{} on it", count(told, "session")));
        }
        unheard |= now.unheard.is_some();
        were.extend(now.on_it);
        all = if now.unheard.is_none() { now.all } else { all };
        // Who has lost its peer goes on elsewhere a moment later.
        if gone && (told == 0 || unheard) {
            break;
        }
        if Instant::now() >= terms.end {
            let still = if gone { "is gone" } else { "is still there" };
            bail!(
                "pod {name} has notice and {still}, with {} on it: see `dunlin doctor` and `kubectl describe pod {name}`, or give more --timeout",
                count(told, "session")
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
    let (moved, ended) = outcome(&were, &all);
    Ok(Drained {
        pod: name,
        node: facts.node,
        sessions_moved: (!unheard).then_some(moved),
        sessions_ended: (!unheard).then_some(ended),
        seconds: began.elapsed().as_secs_f64(),
    })
}

fn of_notice(facts: &PodFacts, before: &Look) -> String {
    match (facts.role.as_str(), &before.unheard) {
        (ROLE_STAGE, None) => format!("; {} on it", count(before.on_it.len(), "session")),
        (ROLE_STAGE, Some(why)) => format!("; its sessions are not known: {why}"),
        (ROLE_GATEWAY, _) => {
            "; it finishes the answers that it has begun, for as long as gateway.drainSeconds allows"
                .to_owned()
        }
        _ => String::new(),
    }
}

/// Looks at the pod before it is evicted: the last holder of a layer stays, or waits for another one.
async fn may_go(here: &Cluster, pod: &Pod, terms: Terms) -> Result<Look> {
    let (name, mut told) = (pod.name_any(), false);
    loop {
        let now = look(here, pod, terms.force).await?;
        if now.last.is_empty() {
            return Ok(now);
        }
        if !terms.patient || Instant::now() >= terms.end {
            bail!(
                "pod {name} is the last that holds layers {}: without it nobody is answered. Wait until another one holds them (`dunlin \
                 status`; it takes redundancy.shadows of 1 or more), or use --force",
                now.last
            );
        }
        if !told {
            note(format!("pod {name} waits: nobody else holds layers {} yet", now.last));
            told = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Evicts `pod` as soon as its disruption budget allows.
async fn evict(here: &Cluster, pod: &str, end: Instant) -> Result<()> {
    let call = ApiCall { verb: "create", resource: "pods/eviction", namespace: here.namespace.as_deref() };
    let mut told = false;
    loop {
        match here.api::<Pod>().evict(pod, &EvictParams::default()).await {
            Ok(_) => return Ok(()),
            Err(Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(Error::Api(status)) if status.code == 429 && Instant::now() < end => {
                if !told {
                    note(format!("pod {pod} waits: {}", status.message.trim_end_matches('.')));
                    told = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(Error::Api(status)) if status.code == 429 => bail!(
                "pod {pod} may not go yet ({}): another peer of the swarm is missing. `dunlin doctor` says why; then try again, or give more \
                 --timeout",
                status.message.trim_end_matches('.')
            ),
            Err(error) => return Err(call.failed(&error).into()),
        }
    }
}
