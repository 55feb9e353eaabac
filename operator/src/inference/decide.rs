//! The whole decision about a swarm that serves, from what is known to what is done. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use dunlin_crds::InferenceSwarm;
use dunlin_wire::Role;

use super::conditions::ServingFacts;
use super::desired::InferenceDesired;
use super::facts::facts;
use super::layout::{model, placed, plan};
use super::needed::Holdings;
use super::state::ServingState;
use crate::deletion::Deletion;
use crate::observe::{PodPhase, SwarmView, WorkerView};
use crate::peers::WorkerState;
use crate::roster::RoleEvidence;
use crate::swarm::{Evidence, Policy, Rules, Workers};

/// A settled swarm is looked at again after this long, without any trigger.
const SETTLED: Duration = Duration::from_secs(60);
/// An unsettled one after this long.
const UNSETTLED: Duration = Duration::from_secs(5);
/// A peer that a gateway cannot reach for this long is replaced, even though it answers the operator.
const UNREACHABLE_MAX: Duration = Duration::from_secs(10);

/// What to do about a swarm.
pub type InferenceDecision = crate::swarm::Decision<ServingFacts, LayoutSummary>;

/// The layout in words, if there is a new one. The layout itself is in the state: it is published until the next one is decided.
#[derive(Clone, Debug, Default)]
pub struct LayoutSummary {
    /// The layout for people.
    pub summary: Option<String>,
}

impl Policy for InferenceSwarm {
    fn decide(
        desired: &InferenceDesired,
        evidence: &Evidence<'_>,
        mut state: ServingState,
    ) -> Result<(InferenceDecision, ServingState), String> {
        let layers = model(desired, evidence).map(|m| u32::try_from(m.layer_bytes.len()).unwrap_or(u32::MAX));
        let layers = layers.or(state.topology.as_ref().map(|t| t.layers)).unwrap_or(0);
        let unheard = unheard(evidence, &state);
        let (silent, unheard) =
            if evidence.is_late() { (unheard, BTreeSet::new()) } else { (BTreeSet::new(), unheard) };
        let stages = stages(desired, evidence, layers, &silent, &mut state);
        let planned = plan(desired, evidence, &stages.roster, &mut state)?;
        let mut facts = facts(desired, evidence, &stages, layers);
        let shortage = planned.shortage.map(|shortage| ("OutOfMemory".to_owned(), shortage.to_string()));
        facts.trouble = facts.trouble.or(shortage);
        let decision = InferenceDecision {
            ready_by_kind: stages.ready_by_kind(&desired.pools, &evidence.view.workers),
            create: stages.roster.create.into_iter().map(|creation| (Role::Stage, creation)).collect(),
            delete: stages.roster.delete.into_iter().chain(lost_gateways(evidence)).collect(),
            facts,
            unheard: unheard.len(),
            events: stages.events.into_iter().chain(planned.events).collect(),
            plan: LayoutSummary { summary: planned.summary },
        };
        Ok((decision, state))
    }

    fn pause(decision: &InferenceDecision, state: &ServingState) -> Duration {
        if decision.facts.is_whole() && state.suspects.is_empty() { SETTLED } else { UNSETTLED }
    }
}

/// What becomes of the stages. `layers`: of the model; `silent`: those that have not answered this leader in time.
fn stages(
    desired: &InferenceDesired,
    evidence: &Evidence<'_>,
    layers: u32,
    silent: &BTreeSet<String>,
    state: &mut ServingState,
) -> Workers {
    let view = evidence.view;
    let unreachable = unreachable(desired, evidence, state);
    // Who has nothing to hold, because others have all layers, takes the place of one in another pool as soon as that may go.
    let topology = state.topology.as_ref();
    let is_spare =
        |name: &str| topology.and_then(|t| t.peer(&name.into())).is_some_and(|p| p.hold().is_empty());
    let served = |name: &str| evidence.was_ready(name) || is_spare(name);
    let unplaced = state.turnover.unplaced(&view.workers, &served, evidence.now);
    // Those whose certificates say no role cannot reach the peers that take the places of theirs; so they go after all gateways like them.
    let superseded: BTreeSet<String> =
        view.workers.values().filter(|w| !w.has_role).map(|w| w.name.clone()).collect();
    let gateways_renewed = view.gateways.values().all(|g| g.has_role);
    let holdings = Holdings { desired, evidence, layers };
    let dispensable = |leaving: &BTreeSet<&str>| {
        (gateways_renewed || superseded.is_empty()) && holdings.suffice_without(leaving)
    };
    // No answer may go from one arithmetic to another, so no pipeline has peers of both.
    let mix = |older: &BTreeSet<&str>, newer: &BTreeSet<&str>| {
        let [older, newer] = [older, newer].map(|names| holdings.classes_of(names.iter().copied()));
        older.is_empty() || newer.is_empty() || older == newer
    };
    let rules = Rules {
        role: Role::Stage,
        wanted: desired.wanted(),
        evidence: RoleEvidence {
            unreachable: &unreachable,
            silent,
            superseded: &superseded,
            unplaced: &unplaced,
            dispensable: &dispensable,
            ..evidence.of(&view.workers)
        },
        edition: &desired.edition,
        edition_of: &|worker: &WorkerView| desired.edition_of(worker),
        served: &|name| evidence.was_ready(name),
        is_ready: &|name| evidence.report(name).is_some_and(|r| r.state == WorkerState::Ready),
        mix: &mix,
        // No gateway may ask for what new peers do not have, a removed adapter say; and a manifest with which gateways do not get Ready ends
        // with them, unless it is their stages that keep them from it.
        may_roll: !desired.suspended
            && gateways_are_new(desired, view)
            && (view.gateways_ready() > 0 || !holdings.serve()),
    };
    Workers::of(rules, &mut state.turnover)
}

/// There are gateways of the manifest, and no others.
fn gateways_are_new(desired: &InferenceDesired, view: &SwarmView) -> bool {
    !view.gateways.is_empty() && view.gateways.values().all(|gateway| gateway.hash == desired.gateway_hash)
}

/// Gateways that are silent on nodes that are: their Deployment replaces them when they are deleted, and not before Kubernetes gives up the node.
fn lost_gateways<'a>(evidence: &'a Evidence<'_>) -> impl Iterator<Item = Deletion> + 'a {
    let (now, silence) = (evidence.now, evidence.silence);
    let silent = move |name: &str| {
        evidence.answers.get(name).is_none_or(|a| a.at.is_none() || a.is_silent(now, silence))
    };
    let lost = evidence.view.gateways.values().filter(move |g| g.node_gone && silent(&g.name));
    lost.map(|g| Deletion { name: g.name.clone(), uid: g.uid.clone(), now: true })
}

/// Peers that answer us and that some gateway has not reached for long. At most one at a time, and none while others are missing: a gateway
/// that is cut off itself must not have the whole swarm replaced. One that was found so is so until gateways reach it, whatever becomes of others:
/// its replacement is one that is missing.
fn unreachable(
    desired: &InferenceDesired,
    evidence: &Evidence<'_>,
    state: &mut ServingState,
) -> BTreeSet<String> {
    let (view, now) = (evidence.view, evidence.now);
    let reports = view.gateways.keys().filter_map(|name| evidence.report(name));
    // Gateways of a model from before lack stages of it, which go.
    let ours = |name: &&String| view.workers.get(*name).is_some_and(|w| w.template == desired.digest);
    let reported: BTreeSet<&String> = reports.flat_map(|r| r.lost.iter()).filter(ours).collect();
    state.suspects.retain(|name, _| reported.contains(name));
    state.unreachable.retain(|name| reported.contains(name));
    for name in reported {
        state.suspects.entry(name.clone()).or_insert(now);
    }
    if state.suspects.len() == 1 && view.workers.values().all(|w| w.phase == PodPhase::Running) {
        let late = state.suspects.iter().filter(|(_, since)| now.duration_since(**since) >= UNREACHABLE_MAX);
        state.unreachable.extend(late.map(|(name, _)| name.clone()));
    }
    state.unreachable.clone()
}

/// Peers of the topology that run and have not answered us since we took over.
fn unheard(evidence: &Evidence<'_>, state: &ServingState) -> BTreeSet<String> {
    let running = evidence.view.workers.values().filter(|w| w.phase == PodPhase::Running);
    running
        .filter(|w| placed(state.topology.as_ref(), &w.name).is_some() && !evidence.is_heard(&w.name))
        .map(|w| w.name.clone())
        .collect()
}

#[cfg(test)]
mod tests;
