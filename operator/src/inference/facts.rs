//! What is told about a swarm, from what is known and what was decided about its pods. Pure.

use super::conditions::ServingFacts;
use super::desired::InferenceDesired;
use super::needed::{Holdings, held};
use crate::observe::SwarmView;
use crate::pools::scaled;
use crate::roster::{Readiness, Roster};
use crate::status::facts::InferenceFacts;
use crate::swarm::{Evidence, Workers};

/// What the conditions are made from. `layers`: of the model, 0 while unknown.
pub(super) fn facts(
    desired: &InferenceDesired,
    evidence: &Evidence<'_>,
    stages: &Workers,
    layers: u32,
) -> InferenceFacts<ServingFacts> {
    let (view, roster, roll) = (evidence.view, &stages.roster, &stages.roll);
    let alive =
        |name: &str| matches!(roster.readiness.get(name), Some(Readiness::Ready | Readiness::Leaving));
    let holders = held(evidence, alive);
    // A swarm of two cannot have three holders of a layer.
    let copies = 1 + desired.shadows.min(desired.peers().saturating_sub(1));
    let layers_held = |at_least: u32| count(holders.values().filter(|n| **n >= at_least).count());
    let gateways_ready = count(view.gateways_ready());
    // A pod that is missing while the swarm serves degrades it.
    let serves = layers > 0 && layers_held(1) == layers && gateways_ready > 0;
    let gateways_outdated = view.gateways.values().filter(|g| g.hash != desired.gateway_hash).count();
    let outdated = if desired.suspended { 0 } else { roll.outdated.len() + gateways_outdated };
    let obstacles = Obstacles::of(view, stages);
    // A change that cannot be carried out is to be mended, although what was before it serves.
    let goes_on = serves && outdated == 0;
    let hopeless = obstacles.hopeless.filter(|_| !goes_on && !desired.suspended);
    // Who serves until another one has taken its place is not missing.
    let is_ready = |(name, readiness): &(&String, &Readiness)| match readiness {
        Readiness::Ready => true,
        Readiness::Leaving => roll.going.contains(*name) && evidence.was_ready(name),
        _ => false,
    };
    let ready = roster.readiness.iter().filter(is_ready).count().min(desired.peers() as usize);
    InferenceFacts {
        generation: desired.generation,
        suspended: desired.suspended,
        peers_desired: desired.peers(),
        peers_ready: count(ready),
        replicas: scaled(&desired.pools).map_or(0, |pool| view.replicas(pool)),
        pods: count(view.workers.len() + view.gateways.len()),
        outdated: count(outdated),
        trouble: reported(evidence, roster).or(hopeless),
        waiting: stages
            .held
            .clone()
            .or(obstacles.pending)
            .or_else(|| ending(desired, evidence, stages, layers)),
        kind: ServingFacts {
            layers,
            served: layers_held(1),
            shadowed: layers_held(copies),
            shadows_wanted: if desired.shadows == 0 { 0 } else { layers },
            gateways_desired: desired.gateways,
            gateways_ready,
        },
    }
}

/// That older peers stay only for the answers that they end, in words.
fn ending(
    desired: &InferenceDesired,
    evidence: &Evidence<'_>,
    stages: &Workers,
    layers: u32,
) -> Option<String> {
    let roll = &stages.roll;
    let going = roll.going.iter().map(String::as_str).collect();
    let waits = !roll.going.is_empty() && roll.awaited.is_empty();
    let is_bound = waits && Holdings { desired, evidence, layers }.is_bound_to(&going);
    is_bound.then(|| "older peers end answers that have begun: newer ones have another arithmetic".to_owned())
}

/// What a worker says that a user must mend; what only a gateway refuses nobody else tells.
fn reported(evidence: &Evidence<'_>, roster: &Roster) -> Option<(String, String)> {
    let said = |name: &String| evidence.report(name)?.error.clone();
    let current =
        |name: &&String| matches!(roster.readiness.get(*name), Some(Readiness::Ready | Readiness::Coming));
    let view = evidence.view;
    view.workers.keys().filter(current).chain(view.gateways.keys()).find_map(said)
}

/// What keeps pods from running.
struct Obstacles {
    /// A user must mend it: (CamelCase reason, what to do).
    hopeless: Option<(String, String)>,
    /// What is being waited for.
    pending: Option<String>,
}

impl Obstacles {
    fn of(view: &SwarmView, stages: &Workers) -> Self {
        let workers = view.workers.values().filter_map(|w| Some(("peer", w.blocked.as_ref()?)));
        let gateways = view.gateways.values().filter_map(|g| Some(("gateway", g.blocked.as_ref()?)));
        let blocked: Vec<_> = workers.chain(gateways).collect();
        let of_pods = blocked
            .iter()
            .find_map(|(who, b)| Some((b.reason?.to_owned(), format!("a {who} cannot start: {}", b.why))));
        let refused = view.gateways_refused.as_ref().map(|why| format!("cannot create gateways: {why}"));
        let pending = blocked.first().map(|(who, b)| format!("a {who} waits: {}", b.why));
        Self {
            hopeless: of_pods
                .or(stages.to_mend.clone())
                .or(refused.clone().map(|why| ("PodRefused".to_owned(), why))),
            pending: pending.or(refused),
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
