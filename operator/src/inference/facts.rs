//! What is told about a swarm, from what is known and what was decided about its pods. Pure.

use std::collections::BTreeMap;

use dunlin_swarm::layer_set;

use super::desired::Desired;
use crate::observe::SwarmView;
use crate::peers::{Answer, WorkerState};
use crate::pools::scaled;
use crate::roll::Roll;
use crate::roster::{Readiness, Roster};
use crate::status::conditions::Facts;

/// Who can execute each layer now, by reports of workers: what is read already serves while more is being read.
pub(super) fn held(
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    counts: impl Fn(&str) -> bool,
) -> BTreeMap<u32, u32> {
    let mut holders = BTreeMap::new();
    for name in view.workers.keys().filter(|name| counts(name)) {
        let Some(report) = answers.get(name).and_then(|a| a.report.as_ref()) else { continue };
        if matches!(report.state, WorkerState::Ready | WorkerState::Loading | WorkerState::Draining) {
            for layer in layer_set(&report.held) {
                *holders.entry(layer).or_insert(0) += 1;
            }
        }
    }
    holders
}

/// Ready peers on preemptible nodes' pools and on others.
pub(super) fn ready_by_kind(desired: &Desired, view: &SwarmView, roster: &Roster) -> (u32, u32) {
    let spot = |pool: &str| desired.pools.iter().any(|p| p.template.name == pool && p.template.spot);
    let mut counts = (0, 0);
    for (name, readiness) in &roster.readiness {
        if *readiness == Readiness::Ready {
            if spot(&view.workers[name].pool) { counts.0 += 1 } else { counts.1 += 1 }
        }
    }
    counts
}

/// What the conditions are made from.
pub(super) fn facts(
    desired: &Desired,
    generation: i64,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    roster: &Roster,
    roll: &Roll,
    layers: u32,
    crashing: Option<String>,
) -> Facts {
    let alive =
        |name: &str| matches!(roster.readiness.get(name), Some(Readiness::Ready | Readiness::Leaving));
    let holders = held(view, answers, alive);
    // A swarm of two cannot have three holders of a layer.
    let copies = 1 + desired.shadows.min(desired.peers().saturating_sub(1));
    let count =
        |at_least: u32| u32::try_from(holders.values().filter(|n| **n >= at_least).count()).unwrap_or(0);
    let current =
        |name: &&String| matches!(roster.readiness.get(*name), Some(Readiness::Ready | Readiness::Coming));
    let said = |name: &String| answers.get(name)?.report.as_ref()?.error.clone();
    let trouble = view.workers.keys().filter(current).find_map(said);
    // What only a gateway refuses nobody else tells.
    let trouble = trouble.or_else(|| view.gateways.keys().find_map(said));
    let workers = view.workers.values().filter_map(|w| w.blocked.as_ref().map(|b| ("peer", b)));
    let gateways = view.gateways.values().filter_map(|g| g.blocked.as_ref().map(|b| ("gateway", b)));
    let blocked: Vec<_> = workers.chain(gateways).collect();
    // A pod that is missing while the swarm serves degrades it.
    let serves = layers > 0 && count(1) == layers && view.gateways_ready() > 0;
    let hopeless = || {
        let of_pods = blocked
            .iter()
            .find_map(|(who, b)| Some((b.reason?.to_owned(), format!("a {who} cannot start: {}", b.why))));
        let refused = view.gateways_refused.as_ref();
        of_pods.or(refused.map(|why| ("PodRefused".to_owned(), format!("cannot create gateways: {why}"))))
    };
    let gateways_outdated = view.gateways.values().filter(|g| g.hash != desired.gateway_hash).count();
    let outdated = if desired.suspended { 0 } else { roll.outdated.len() + gateways_outdated };
    // A change that cannot be carried out is to be mended, although what was before it serves.
    let goes_on = serves && outdated == 0;
    let trouble = trouble.or_else(|| if goes_on || desired.suspended { None } else { hopeless() });
    let pending = blocked.first().map(|(who, b)| format!("a {who} waits: {}", b.why));
    let refused = view.gateways_refused.as_ref().map(|why| format!("cannot create gateways: {why}"));
    // Who serves until another one has taken its place is not missing.
    let serves_on =
        |name: &String| roll.going.contains(name) && answers.get(name).is_some_and(|a| a.was_ready);
    let is_ready = |(name, s): &(&String, &Readiness)| {
        **s == Readiness::Ready || (**s == Readiness::Leaving && serves_on(name))
    };
    let ready = roster.readiness.iter().filter(is_ready).count().min(desired.peers() as usize);
    Facts {
        generation,
        suspended: desired.suspended,
        layers,
        served: count(1),
        shadowed: count(copies),
        shadows_wanted: if desired.shadows == 0 { 0 } else { layers },
        peers_desired: desired.peers(),
        peers_ready: u32::try_from(ready).unwrap_or(u32::MAX),
        replicas: scaled(&desired.pools).map_or(0, |pool| view.replicas(pool)),
        pods: u32::try_from(view.workers.len() + view.gateways.len()).unwrap_or(u32::MAX),
        gateways_desired: desired.gateways,
        gateways_ready: u32::try_from(view.gateways_ready()).unwrap_or(u32::MAX),
        outdated: u32::try_from(outdated).unwrap_or(u32::MAX),
        trouble,
        waiting: crashing.or(pending).or(refused),
    }
}
