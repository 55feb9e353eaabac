//! The whole decision about a swarm, from what is known to what is done. Pure but for the memory it keeps of what it saw.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dunlin_planner::cut::unusual;
use dunlin_planner::{Finding, Layout, May, Member, Reason, Shortage, Wanted, layout, lint, report};
use dunlin_swarm::{Layers, ModelId, ModelSizes, PeerName, PeerState, Topology, TopologyPeer, layer_set};
use tokio::time::Instant;
use tracing::debug;

use super::desired::Desired;
use super::facts::{facts, held, ready_by_kind};
use super::memory::Memory;
use crate::deletion::Deletion;
use crate::observe::{Phase, SwarmView, WorkerView};
use crate::peers::{Answer, WorkerState};
use crate::roll::{Crew, Roll};
use crate::roster::{Creation, Evidence, LOADING_PATIENCE, Readiness, Roster, roster};
use crate::status::conditions::Facts;
use crate::status::events::SwarmEvent;
use crate::targets::address;

/// The first plan waits this long for peers that are still on their way, so that nobody loads layers only to hand them on.
const FIRST_PLAN_PATIENCE: Duration = Duration::from_secs(10);
/// A peer that a gateway cannot reach for this long is replaced, even though it answers the operator.
const UNREACHABLE_MAX: Duration = Duration::from_secs(10);
/// A lost peer's place waits this long for a replacement, its layers run from shadows meanwhile; then those that are left share its
/// layers. Long enough for Kubernetes to notice a dead node (40 s) on which the first replacement was placed, and for a new node.
const GAP_PATIENCE: Duration = Duration::from_secs(120);
/// Newcomers without a place wait this long for others that are still on their way, so that layers move once.
const GROWTH_PATIENCE: Duration = Duration::from_secs(10);
/// A layout that would be much faster by measured speed must be so for this long.
const REBALANCE_PATIENCE: Duration = Duration::from_secs(90);

/// What to do about a swarm.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// The layout to publish, once the model's sizes are known.
    pub layout: Option<Layout>,
    /// The layout for people.
    pub summary: Option<String>,
    /// Pods to make.
    pub create: Vec<Creation>,
    /// Pods to delete.
    pub delete: Vec<Deletion>,
    /// For the status.
    pub facts: Facts,
    /// Peers that serve by what an earlier operator published, and that have not been heard yet: the status knows more than [`Self::facts`].
    pub unheard: usize,
    /// What happened.
    pub events: Vec<SwarmEvent>,
    /// Ready peers on preemptible nodes' pools and on others.
    pub ready_by_kind: (u32, u32),
}

/// Decides. `generation`: of the manifest.
///
/// # Errors
/// The finding of the layout's own check: a bug, nothing may be applied.
pub fn decide(
    desired: &Desired,
    generation: i64,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    memory: &mut Memory,
    now: Instant,
    silence: Duration,
) -> Result<Decision, String> {
    let unreachable = unreachable(view, answers, memory, now);
    let unheard = unheard(view, answers, memory);
    let late = memory.restored.is_some_and(|at| now.duration_since(at) >= silence * LOADING_PATIENCE);
    let (silent, unheard) = if late { (unheard, BTreeSet::new()) } else { (BTreeSet::new(), unheard) };
    let unplaced = memory.turnover.unplaced(&view.workers, answers, now);
    let layers =
        model(view, answers, desired).map(|m| u32::try_from(m.layer_bytes.len()).unwrap_or(u32::MAX));
    let layers = layers.or(memory.topology.as_ref().map(|t| t.layers)).unwrap_or(0);
    // Those whose certificates say no role cannot reach the peers that take the places of theirs; so they go after all gateways like them.
    let superseded: BTreeSet<String> =
        view.workers.values().filter(|w| !w.has_role).map(|w| w.name.clone()).collect();
    let gateways_renewed = view.gateways.values().all(|g| g.has_role);
    let held_without = |leaving: &BTreeSet<&str>| {
        (gateways_renewed || superseded.is_empty())
            && layers > 0
            && held(view, answers, |name| !leaving.contains(name)).len() == layers as usize
    };
    let edition_of = |worker: &WorkerView| desired.edition_of(worker);
    let hold_creation = memory.turnover.holds_creation(&desired.edition, &edition_of, &view.workers, now);
    let evidence = Evidence {
        workers: &view.workers,
        answers,
        unreachable: &unreachable,
        silent: &silent,
        superseded: &superseded,
        awaited: &BTreeSet::new(),
        unplaced: &unplaced,
        by_probe: false,
        dispensable: &held_without,
        hold_creation,
        now,
        silence,
    };
    let unchanged = roster(desired.wanted(), &evidence);
    let roll = rolled(desired, view, answers, &unchanged, &unplaced);
    let leaving = superseded.union(&roll.going).cloned().collect();
    let roster = if roll.going.is_empty() {
        unchanged
    } else {
        roster(desired.wanted(), &Evidence { superseded: &leaving, awaited: &roll.awaited, ..evidence })
    };
    let served = |name: &str| answers.get(name).is_some_and(|a| a.was_ready);
    let losses = memory.turnover.losses(&roster, &view.workers, &served, &edition_of, now);
    let events = losses.iter().map(|loss| SwarmEvent::lost("Peer", &loss.name, &loss.why)).collect();
    let mut decision = Decision {
        events,
        create: roster.create.clone(),
        delete: roster.delete.clone(),
        unheard: unheard.len(),
        ..Decision::default()
    };
    let mut shortage = None;
    if let Some(planned) = plan(desired, view, answers, &roster, memory, now)? {
        decision.events.extend(planned.events);
        (decision.layout, decision.summary) = (planned.layout, planned.summary);
        shortage = planned.shortage;
    }
    decision.delete.extend(lost_gateways(view, answers, now, silence));
    decision.ready_by_kind = ready_by_kind(desired, view, &roster);
    let turns = decision.delete.iter().filter(|deletion| roll.going.contains(&deletion.name));
    decision.events.extend(turns.map(|deletion| SwarmEvent::rolled("Peer", &deletion.name)));
    let crashing = memory.turnover.held("workers", &desired.edition, now);
    decision.facts = facts(desired, generation, view, answers, &roster, &roll, layers, crashing);
    if decision.facts.trouble.is_none() {
        decision.facts.trouble = shortage.map(|told| ("OutOfMemory".to_owned(), told.to_string()));
    }
    Ok(decision)
}

/// Peers from before a change, and whose turn it is to go.
fn rolled(
    desired: &Desired,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    roster: &Roster,
    unplaced: &BTreeSet<String>,
) -> Roll {
    let reported = |name: &str| answers.get(name)?.report.as_ref();
    let is_ready = |name: &str| reported(name).is_some_and(|r| r.state == WorkerState::Ready);
    // No answer may go from one arithmetic to another, so no pipeline has peers of both.
    let arithmetic = |names: &BTreeSet<&str>| -> BTreeSet<u32> {
        names.iter().filter_map(|name| Some(reported(name)?.arithmetic)).collect()
    };
    let mix = |older: &BTreeSet<&str>, newer: &BTreeSet<&str>| {
        let (older, newer) = (arithmetic(older), arithmetic(newer));
        older.is_empty() || newer.is_subset(&older)
    };
    let (pools, workers, is_ready, mix) = (&desired.pools[..], &view.workers, &is_ready, &mix);
    let crew = Crew { pools, workers, roster, unplaced, is_ready, mix };
    // No gateway may ask for what new peers do not have, a removed adapter say.
    Roll::of(crew, !desired.suspended && gateways_are_new(desired, view))
}

/// Gateways of the manifest answer, and no others.
fn gateways_are_new(desired: &Desired, view: &SwarmView) -> bool {
    view.gateways_ready() > 0 && view.gateways.values().all(|gateway| gateway.hash == desired.gateway_hash)
}

/// Gateways that are silent on nodes that are: their Deployment replaces them when they are deleted, and not before Kubernetes gives up the node.
fn lost_gateways<'a>(
    view: &'a SwarmView,
    answers: &'a BTreeMap<String, Answer>,
    now: Instant,
    silence: Duration,
) -> impl Iterator<Item = Deletion> + 'a {
    let silent =
        move |name: &str| answers.get(name).is_none_or(|a| a.at.is_none() || a.is_silent(now, silence));
    let lost = view.gateways.values().filter(move |g| g.node_gone && silent(&g.name));
    lost.map(|g| Deletion { name: g.name.clone(), uid: g.uid.clone(), now: true })
}

/// Sizes of the model, from any worker that was made for it.
fn model(view: &SwarmView, answers: &BTreeMap<String, Answer>, desired: &Desired) -> Option<ModelSizes> {
    let ours = view.workers.values().filter(|w| w.template == desired.digest);
    ours.filter_map(|w| answers.get(&w.name)?.report.as_ref()?.model.clone())
        .find(|m| !m.layer_bytes.is_empty())
}

/// Peers that answer us and that some gateway has not reached for long. At most one at a time, and none while others are missing: a gateway
/// that is cut off itself must not have the whole swarm replaced.
fn unreachable(
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    memory: &mut Memory,
    now: Instant,
) -> BTreeSet<String> {
    let reports = view.gateways.keys().filter_map(|name| answers.get(name)?.report.as_ref());
    let reported: BTreeSet<&String> = reports.flat_map(|r| r.lost.iter()).collect();
    memory.suspects.retain(|name, _| reported.contains(name) && view.workers.contains_key(name));
    for name in reported.into_iter().filter(|name| view.workers.contains_key(*name)) {
        memory.suspects.entry(name.clone()).or_insert(now);
    }
    let others_fine = memory.suspects.len() == 1 && view.workers.values().all(|w| w.phase == Phase::Running);
    let late = memory.suspects.iter().filter(|(_, since)| now.duration_since(**since) >= UNREACHABLE_MAX);
    late.filter(|_| others_fine).map(|(name, _)| name.clone()).collect()
}

/// Peers of the topology that an earlier operator published, that run and have not answered us since we took over.
fn unheard(view: &SwarmView, answers: &BTreeMap<String, Answer>, memory: &Memory) -> BTreeSet<String> {
    let running = view.workers.values().filter(|w| memory.restored.is_some() && w.phase == Phase::Running);
    running
        .filter(|w| placed(memory.topology.as_ref(), &w.name).is_some())
        .filter(|w| answers.get(&w.name).is_none_or(|a| a.at.is_none()))
        .map(|w| w.name.clone())
        .collect()
}

/// The peer `name` of `topology` if it executes layers in it.
fn placed<'a>(topology: Option<&'a Topology>, name: &str) -> Option<&'a TopologyPeer> {
    topology?.peer(&PeerName::from(name)).filter(|p| !p.span.is_empty())
}

/// The layout and the words for it; only what is lacking when the model does not fit at all.
#[derive(Default)]
struct Planned {
    layout: Option<Layout>,
    summary: Option<String>,
    shortage: Option<Shortage>,
    events: Vec<SwarmEvent>,
}

fn plan(
    desired: &Desired,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    roster: &Roster,
    memory: &mut Memory,
    now: Instant,
) -> Result<Option<Planned>, String> {
    if desired.suspended {
        return Ok(None);
    }
    let Some(model) = model(view, answers, desired) else { return Ok(None) };
    let id = ModelId { name: desired.model.clone(), digest: desired.digest.clone() };
    let wanted = Wanted::of(id, model, desired.peers() as usize, desired.shadows as usize);
    let previous = memory.topology.as_ref().filter(|t| t.model.digest == desired.digest);
    let members: Vec<Member> = roster
        .readiness
        .iter()
        .filter_map(|(name, readiness)| member(desired, view, answers, previous, name, readiness))
        .collect();
    let joining = members.iter().filter(|m| m.state != PeerState::Draining).count();
    let first = members.iter().all(|m| placed(previous, m.name.as_str()).is_none());
    if first && joining < wanted.peers {
        let since = *memory.first_answer.get_or_insert(now);
        if now.duration_since(since) < FIRST_PLAN_PATIENCE {
            return Ok(None);
        }
    }
    memory.first_answer = None;
    if joining == 0 {
        // Nobody to plan with: what is published stays, those that leave still serve.
        return Ok(None);
    }
    let for_long =
        |since: Option<Instant>, patience| since.is_some_and(|at| now.duration_since(at) >= patience);
    let may = May {
        fill_gaps: for_long(memory.gap, GAP_PATIENCE),
        grow: for_long(memory.spare, GROWTH_PATIENCE),
        rebalance: for_long(memory.imbalance, REBALANCE_PATIENCE),
    };
    let layout = layout(&wanted, &members, memory.topology.as_ref(), may).map_err(|e| e.to_string())?;
    if layout.reason == Reason::First
        && let Some(shortage @ Shortage::Span { .. }) = layout.shortage
    {
        // Workers would refuse what they have no memory for, one after the other.
        return Ok(Some(Planned { shortage: Some(shortage), ..Planned::default() }));
    }
    let findings = lint(&layout.topology, &wanted, &members);
    if let Some(error) = findings.iter().find(|f| f.is_error()) {
        return Err(error.to_string());
    }
    debug!(reason = %layout.reason, findings = ?findings.iter().map(Finding::to_string).collect::<Vec<_>>(), "planned");
    let keep = |holds: bool, since: Option<Instant>| holds.then(|| since.unwrap_or(now));
    memory.gap = keep(!layout.covered, memory.gap);
    memory.spare = keep(layout.spare > 0, memory.spare);
    memory.imbalance = keep(layout.gain_percent > 0 && layout.settled, memory.imbalance);
    let summary = report(&layout, &wanted, &members);
    let events = speeds(&layout, &members, memory);
    let shortage = layout.shortage.clone();
    Ok(Some(Planned { layout: Some(layout), summary: Some(summary), shortage, events }))
}

/// What there is to tell about the speed of peers: who has become slow, and that layers move for it.
fn speeds(layout: &Layout, members: &[Member], memory: &mut Memory) -> Vec<SwarmEvent> {
    let slow: Vec<(&PeerName, u32)> =
        unusual(members).into_iter().filter(|(_, percent)| *percent < 100).collect();
    let new = slow.iter().filter(|(name, _)| !memory.slow.contains(*name));
    let mut events: Vec<SwarmEvent> =
        new.map(|(name, percent)| SwarmEvent::slow(name.as_str(), *percent)).collect();
    memory.slow = slow.iter().map(|(name, _)| (*name).clone()).collect();
    if let Reason::Rebalanced(_) = layout.reason {
        events.push(SwarmEvent::rebalanced(&layout.reason.to_string()));
    }
    events
}

/// A worker as the planner sees it; `None` for one that cannot be planned with.
fn member(
    desired: &Desired,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    previous: Option<&Topology>,
    name: &str,
    readiness: &Readiness,
) -> Option<Member> {
    let worker = &view.workers[name];
    let before = placed(previous, name);
    let report = answers.get(name).and_then(|a| a.report.as_ref());
    // A new leader knows the published topology before it has heard everybody: nobody loses its place for that.
    let held: Vec<Layers> = match (report, before) {
        (Some(report), _) if report.state == WorkerState::Failed => return None,
        (Some(report), _) => report.held.clone(),
        (None, Some(before)) if worker.phase == Phase::Running => before.hold(),
        (None, _) => return None,
    };
    // Unlike the last leader, this one has not seen it Ready; but it can do what it did.
    let as_before = before
        .is_some_and(|p| p.state == PeerState::Ready && layer_set(&[p.span]).is_subset(&layer_set(&held)));
    let state = match readiness {
        Readiness::Ready => PeerState::Ready,
        Readiness::Coming if as_before => PeerState::Ready,
        Readiness::Leaving => PeerState::Draining,
        Readiness::Coming => PeerState::Loading,
        Readiness::Outdated | Readiness::Lost(_) => return None,
    };
    let pool = desired.pools.iter().find(|p| p.template.name == worker.pool)?;
    Some(Member {
        name: name.into(),
        addr: address(worker.ip.as_deref()?, crate::apply::network::GRPC_PORT),
        pool: worker.pool.clone(),
        node: worker.node.clone(),
        zone: worker.zone.clone(),
        spot: pool.template.spot,
        state,
        room_bytes: room_bytes(view, answers, name),
        speed: answers.get(name).and_then(|a| a.speed).unwrap_or(0.0),
        held,
    })
}

/// Room for layers that a worker has, by its own word or by that of others of its pool; unlimited while nobody has said any.
fn room_bytes(view: &SwarmView, answers: &BTreeMap<String, Answer>, name: &str) -> u64 {
    let said = |name: &str| answers.get(name)?.report.as_ref()?.room_bytes;
    let pool = &view.workers[name].pool;
    let others = view.workers.values().filter(|w| w.pool == *pool).filter_map(|w| said(&w.name));
    said(name).or(others.min()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
