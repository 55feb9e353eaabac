//! Who holds which layers: when a new layout may be made, and from whom. Pure.

use std::time::Duration;

use dunlin_planner::cut::unusual;
use dunlin_planner::{Layout, LayoutGoal, LintFinding, May, Member, Reason, Shortage, layout, lint, report};
use dunlin_swarm::{
    Epoch, Layers, ModelId, ModelSizes, PeerName, PeerState, Topology, TopologyPeer, is_other_model,
    layer_set,
};
use tokio::time::Instant;
use tracing::debug;

use super::desired::InferenceDesired;
use super::state::ServingState;
use crate::apply::network::GRPC_PORT;
use crate::observe::PodPhase;
use crate::peers::WorkerState;
use crate::peers::report::WorkerReport;
use crate::roster::{Readiness, Roster};
use crate::status::events::SwarmEvent;
use crate::swarm::Evidence;
use crate::targets::address;

/// The first plan waits this long for peers that are still on their way, so that nobody loads layers only to hand them on.
pub(super) const FIRST_PLAN_PATIENCE: Duration = Duration::from_secs(10);
/// A lost peer's place waits this long for a replacement, its layers run from shadows meanwhile; then those that are left share its
/// layers. Long enough for Kubernetes to notice a dead node (40 s) on which the first replacement was placed, and for a new node.
pub(super) const GAP_PATIENCE: Duration = Duration::from_secs(120);
/// Newcomers without a place wait this long for others that are still on their way, so that layers move once.
pub(super) const GROWTH_PATIENCE: Duration = Duration::from_secs(10);
/// No plan gets so far: who reports more is not believed.
const EPOCH_MAX: Epoch = 1 << 53;
/// A layout that would be much faster by measured speed must be so for this long.
pub(super) const REBALANCE_PATIENCE: Duration = Duration::from_secs(90);

/// What there is to say about a new layout, which is in the state; only what is lacking when the model does not fit at all.
#[derive(Default)]
pub(super) struct Planned {
    /// The layout for people.
    pub summary: Option<String>,
    /// What is lacking.
    pub shortage: Option<Shortage>,
    /// What happened.
    pub events: Vec<SwarmEvent>,
}

/// Makes the layout for those on `roster`; nothing while it is too early for one, or nobody is there to plan with.
///
/// # Errors
/// The finding of the layout's own check: a bug, nothing may be applied.
pub(super) fn plan(
    desired: &InferenceDesired,
    evidence: &Evidence<'_>,
    roster: &Roster,
    state: &mut ServingState,
) -> Result<Planned, String> {
    let model = model(desired, evidence).filter(|_| !desired.suspended);
    let Some(model) = model else { return Ok(Planned::default()) };
    let id = ModelId { name: desired.model.clone(), digest: desired.digest.clone() };
    let wanted = LayoutGoal::of(id, model, desired.peers() as usize, desired.shadows as usize);
    let previous = state.topology.clone().filter(|t| t.model.digest == desired.digest);
    let readiness = roster.readiness.iter();
    let members: Vec<Member> =
        readiness.filter_map(|(name, r)| member(desired, evidence, previous.as_ref(), name, r)).collect();
    if !is_time(&members, &wanted, previous.as_ref(), state, evidence.now) {
        return Ok(Planned::default());
    }
    let for_long = |since: Option<Instant>, patience| {
        since.is_some_and(|at| evidence.now.duration_since(at) >= patience)
    };
    let may = May {
        fill_gaps: for_long(state.gap, GAP_PATIENCE),
        grow: for_long(state.spare, GROWTH_PATIENCE),
        rebalance: for_long(state.imbalance, REBALANCE_PATIENCE),
    };
    let known = state.topology.as_ref();
    let mut layout = layout(&wanted, &members, known, may).map_err(|e| e.to_string())?;
    state.epoch_seen = reported(evidence).fold(state.epoch_seen, Epoch::max);
    layout.topology.epoch = next_epoch(known, &layout.topology, state.epoch_seen);
    if layout.reason == Reason::First
        && let Some(shortage @ Shortage::Span { .. }) = layout.shortage
    {
        // Workers would refuse what they have no memory for, one after the other.
        return Ok(Planned { shortage: Some(shortage), ..Planned::default() });
    }
    let findings = lint(&layout.topology, &wanted, &members);
    if let Some(error) = findings.iter().find(|f| f.is_error()) {
        return Err(error.to_string());
    }
    debug!(reason = %layout.reason, findings = ?findings.iter().map(LintFinding::to_string).collect::<Vec<_>>(), "planned");
    let keep = |holds: bool, since: Option<Instant>| holds.then(|| since.unwrap_or(evidence.now));
    state.gap = keep(!layout.covered, state.gap);
    state.spare = keep(layout.spare > 0, state.spare);
    state.imbalance = keep(layout.gain_percent > 0 && layout.settled, state.imbalance);
    state.topology = Some(layout.topology.clone());
    Ok(Planned {
        summary: Some(report(&layout, &wanted, &members)),
        events: speeds(&layout, &members, state),
        shortage: layout.shortage,
    })
}

/// Epochs that stages and gateways obey, by their own word.
fn reported(evidence: &Evidence<'_>) -> impl Iterator<Item = Epoch> {
    let view = evidence.view;
    let names = view.workers.keys().chain(view.gateways.keys());
    names.filter_map(|name| Some(evidence.report(name)?.epoch)).filter(|epoch| *epoch <= EPOCH_MAX)
}

/// The epoch of `planned`, made from `known`: nobody obeys one that is not newer than all `seen`, unless it is the one that everybody knows. What was
/// published may have been deleted, or an old one brought back, while no operator looked.
fn next_epoch(known: Option<&Topology>, planned: &Topology, seen: Epoch) -> Epoch {
    let is_known = known == Some(planned);
    if planned.epoch > seen || (is_known && planned.epoch == seen) { planned.epoch } else { seen + 1 }
}

/// Somebody is there to plan with, and a first plan has waited for those that are on their way. Without anybody what is published stays: those
/// that leave still serve.
fn is_time(
    members: &[Member],
    wanted: &LayoutGoal,
    previous: Option<&Topology>,
    state: &mut ServingState,
    now: Instant,
) -> bool {
    let joining = members.iter().filter(|m| m.state != PeerState::Draining).count();
    let first = members.iter().all(|m| placed(previous, m.name.as_str()).is_none());
    if first && joining < wanted.peers {
        let since = *state.first_answer.get_or_insert(now);
        if now.duration_since(since) < FIRST_PLAN_PATIENCE {
            return false;
        }
    }
    state.first_answer = None;
    joining > 0
}

/// Sizes of the model, from any worker that was made for it.
pub(super) fn model(desired: &InferenceDesired, evidence: &Evidence<'_>) -> Option<ModelSizes> {
    let ours = evidence.view.workers.values().filter(|w| w.template == desired.digest);
    let reports = ours.filter_map(|w| evidence.report(&w.name)).filter(|report| is_of(desired, report));
    reports.filter_map(|report| report.model.clone()).find(|m| !m.layer_bytes.is_empty())
}

/// Whether a worker is of the wanted model by its own word.
fn is_of(desired: &InferenceDesired, report: &WorkerReport) -> bool {
    !is_other_model(&desired.digest, &report.model_digest)
}

/// The peer `name` of `topology` if it executes layers in it.
pub(super) fn placed<'a>(topology: Option<&'a Topology>, name: &str) -> Option<&'a TopologyPeer> {
    topology?.peer(&PeerName::from(name)).filter(|p| !p.span.is_empty())
}

/// What there is to tell about the speed of peers: who has become slow, and that layers move for it.
fn speeds(layout: &Layout, members: &[Member], state: &mut ServingState) -> Vec<SwarmEvent> {
    let slow: Vec<(&PeerName, u32)> =
        unusual(members).into_iter().filter(|(_, percent)| *percent < 100).collect();
    let new = slow.iter().filter(|(name, _)| !state.slow.contains(*name));
    let mut events: Vec<SwarmEvent> =
        new.map(|(name, percent)| SwarmEvent::slow(name.as_str(), *percent)).collect();
    state.slow = slow.iter().map(|(name, _)| (*name).clone()).collect();
    if let Reason::Rebalanced(_) = layout.reason {
        events.push(SwarmEvent::rebalanced(&layout.reason.to_string()));
    }
    events
}

/// A worker as the planner sees it; `None` for one that cannot be planned with.
fn member(
    desired: &InferenceDesired,
    evidence: &Evidence<'_>,
    previous: Option<&Topology>,
    name: &str,
    readiness: &Readiness,
) -> Option<Member> {
    let worker = &evidence.view.workers[name];
    let before = placed(previous, name);
    let report = evidence.report(name);
    // A new leader knows the published topology before it has heard everybody: nobody loses its place for that.
    let held: Vec<Layers> = match (report, before) {
        (Some(report), _) if report.state == WorkerState::Failed || !is_of(desired, report) => return None,
        (Some(report), _) => report.held.clone(),
        (None, Some(before)) if worker.phase == PodPhase::Running => before.hold(),
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
        addr: address(worker.ip.as_deref()?, GRPC_PORT),
        pool: worker.pool.clone(),
        node: worker.node.clone(),
        zone: worker.zone.clone(),
        spot: pool.template.spot,
        state,
        room_bytes: room_bytes(evidence, name),
        speed: evidence.answers.get(name).and_then(|a| a.speed).unwrap_or(0.0),
        held,
    })
}

/// Room for layers that a worker has, by its own word or by that of others of its pool; unlimited while nobody has said any.
fn room_bytes(evidence: &Evidence<'_>, name: &str) -> u64 {
    let said = |name: &str| evidence.report(name)?.room_bytes;
    let pool = &evidence.view.workers[name].pool;
    let others = evidence.view.workers.values().filter(|w| w.pool == *pool).filter_map(|w| said(&w.name));
    said(name).or(others.min()).unwrap_or(u64::MAX)
}
