//! The whole decision about a swarm, from what is known to what is done. Pure but for the memory it keeps of what it saw.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dunlin_planner::PeerState;
use dunlin_planner::topology::layer_set;
use tokio::time::Instant;

use super::layout::{self, Candidate, Layout};
use super::memory::Memory;
use super::roster::{Creation, Deletion, Evidence, Roster, Standing, roster};
use crate::convert::Desired;
use crate::observe::{Phase, SwarmView};
use crate::peers::{Answer, ModelFacts, WorkerState};
use crate::reconcile::address;
use crate::status::conditions::Facts;
use crate::status::events::Happening;

/// The first plan waits this long for peers that are still on their way, so that nobody loads layers only to hand them on.
const FIRST_PLAN_PATIENCE: Duration = Duration::from_secs(10);
/// A peer that a gateway cannot reach for this long is replaced, even though it answers the operator.
const UNREACHABLE_MAX: Duration = Duration::from_secs(10);
/// A lost peer's layers run from shadows for this long; then those that are left share them for good.
const GAP_PATIENCE: Duration = Duration::from_secs(30);
/// Longest pause before pods that end before they serve are made again.
const CRASH_PAUSE_MAX: Duration = Duration::from_secs(60);

/// What to do about a swarm.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// The layout to publish, once the model's sizes are known.
    pub layout: Option<Layout>,
    /// Pods to make.
    pub create: Vec<Creation>,
    /// Pods to delete.
    pub delete: Vec<Deletion>,
    /// For the status.
    pub facts: Facts,
    /// What happened.
    pub happenings: Vec<Happening>,
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
    let layers =
        model(view, answers, desired).map(|m| u32::try_from(m.layer_bytes.len()).unwrap_or(u32::MAX));
    let layers = layers.or(memory.topology.as_ref().map(|t| t.layers)).unwrap_or(0);
    let held_without = |leaving: &BTreeSet<&str>| {
        layers > 0 && held(view, answers, |name| !leaving.contains(name)).len() == layers as usize
    };
    let hold_creation = memory.crashed.is_some_and(|(times, at)| now.duration_since(at) < crash_pause(times));
    let roster = roster(
        desired,
        &Evidence {
            view,
            answers,
            unreachable: &unreachable,
            dispensable: &held_without,
            hold_creation,
            now,
            silence,
        },
    );
    let happenings = losses(&roster, view, answers, memory, now);
    let mut decision = Decision {
        happenings,
        create: roster.create.clone(),
        delete: roster.delete.clone(),
        ..Decision::default()
    };
    decision.layout = plan(desired, view, answers, &roster, memory, now)?;
    decision.ready_by_kind = ready_by_kind(desired, view, &roster);
    decision.facts = facts(desired, generation, view, answers, &roster, layers, hold_creation);
    if decision.facts.trouble.is_none() {
        let shortage = decision.layout.as_ref().and_then(|l| l.shortage.clone());
        decision.facts.trouble = shortage.map(|told| ("InsufficientMemory".to_owned(), told));
    }
    Ok(decision)
}

/// Sizes of the model, from any worker that was made for it.
fn model(view: &SwarmView, answers: &BTreeMap<String, Answer>, desired: &Desired) -> Option<ModelFacts> {
    let ours = view.workers.values().filter(|w| w.template == desired.template);
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

/// Tells about each loss once, and counts workers that ended before they served.
fn losses(
    roster: &Roster,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    memory: &mut Memory,
    now: Instant,
) -> Vec<Happening> {
    let mut happenings = Vec::new();
    memory.lost.retain(|name| view.workers.contains_key(name));
    if roster.standings.values().any(|s| *s == Standing::Ready) {
        memory.crashed = None;
    }
    for (name, standing) in &roster.standings {
        let Standing::Lost(why) = standing else { continue };
        if !memory.lost.insert(name.clone()) {
            continue;
        }
        let worker = &view.workers[name];
        // Who was asked to go and went is not lost.
        if !worker.deleting || worker.node_gone {
            happenings.push(Happening::peer_lost(name, why));
            if !answers.get(name).is_some_and(|a| a.was_ready) && !worker.node_gone {
                let times = memory.crashed.map_or(0, |(times, _)| times);
                memory.crashed = Some((times.saturating_add(1), now));
            }
        }
    }
    happenings
}

fn crash_pause(times: u32) -> Duration {
    // The first replacement is immediate: one failed container says little.
    if times <= 1 {
        return Duration::ZERO;
    }
    Duration::from_secs(1_u64 << times.min(10)).min(CRASH_PAUSE_MAX)
}

fn plan(
    desired: &Desired,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    roster: &Roster,
    memory: &mut Memory,
    now: Instant,
) -> Result<Option<Layout>, String> {
    if desired.suspended {
        return Ok(None);
    }
    let Some(model) = model(view, answers, desired) else { return Ok(None) };
    let mut candidates = Vec::new();
    for (name, standing) in &roster.standings {
        let state = match standing {
            Standing::Ready => PeerState::Ready,
            Standing::Coming => PeerState::Loading,
            Standing::Leaving => PeerState::Draining,
            Standing::Outdated | Standing::Lost(_) => continue,
        };
        let worker = &view.workers[name];
        let report = answers.get(name).and_then(|a| a.report.as_ref());
        let (Some(ip), Some(report)) = (&worker.ip, report) else { continue };
        if report.state == WorkerState::Failed {
            continue;
        }
        let Some(pool) = desired.pools.iter().find(|p| p.template.name == worker.pool) else { continue };
        candidates.push(Candidate {
            name: name.clone(),
            addr: address(ip, crate::apply::network::GRPC_PORT),
            pool: worker.pool.clone(),
            node: worker.node.clone(),
            zone: worker.zone.clone(),
            spot: pool.template.spot,
            state,
            memory_bytes: pool.template.memory_bytes,
            held: report.held.clone(),
        });
    }
    let joining = candidates.iter().filter(|c| c.state != PeerState::Draining).count();
    let first = memory.topology.as_ref().is_none_or(|t| t.model.digest != desired.digest);
    if first && joining < desired.peers() as usize {
        let since = *memory.first_answer.get_or_insert(now);
        if now.duration_since(since) < FIRST_PLAN_PATIENCE {
            return Ok(None);
        }
    }
    memory.first_answer = None;
    let spans = memory.topology.iter().flat_map(|t| &t.peers).filter(|p| p.state != PeerState::Draining);
    let placed: u32 =
        spans.filter(|p| candidates.iter().any(|c| c.name == p.name.as_str())).map(|p| p.span.len()).sum();
    let whole = u32::try_from(model.layer_bytes.len()).is_ok_and(|layers| placed >= layers);
    if whole {
        memory.gap = None;
    } else {
        memory.gap.get_or_insert(now);
    }
    let fill = memory.gap.is_some_and(|since| now.duration_since(since) >= GAP_PATIENCE);
    layout::layout(desired, &model, &candidates, memory.topology.as_ref(), fill).map(Some)
}

/// Who can execute each layer now, by reports of workers that serve.
fn held(
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    counts: impl Fn(&str) -> bool,
) -> BTreeMap<u32, u32> {
    let mut holders = BTreeMap::new();
    for name in view.workers.keys().filter(|name| counts(name)) {
        let Some(report) = answers.get(name).and_then(|a| a.report.as_ref()) else { continue };
        if matches!(report.state, WorkerState::Ready | WorkerState::Draining) {
            for layer in layer_set(&report.held) {
                *holders.entry(layer).or_insert(0) += 1;
            }
        }
    }
    holders
}

fn ready_by_kind(desired: &Desired, view: &SwarmView, roster: &Roster) -> (u32, u32) {
    let spot = |pool: &str| desired.pools.iter().any(|p| p.template.name == pool && p.template.spot);
    let mut counts = (0, 0);
    for (name, standing) in &roster.standings {
        if *standing == Standing::Ready {
            if spot(&view.workers[name].pool) { counts.0 += 1 } else { counts.1 += 1 }
        }
    }
    counts
}

fn facts(
    desired: &Desired,
    generation: i64,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    roster: &Roster,
    layers: u32,
    hold_creation: bool,
) -> Facts {
    let alive = |name: &str| matches!(roster.standings.get(name), Some(Standing::Ready | Standing::Leaving));
    let holders = held(view, answers, alive);
    // A swarm of two cannot have three holders of a layer.
    let copies = 1 + desired.shadows.min(desired.peers().saturating_sub(1));
    let count =
        |at_least: u32| u32::try_from(holders.values().filter(|n| **n >= at_least).count()).unwrap_or(0);
    let current =
        |name: &&String| matches!(roster.standings.get(*name), Some(Standing::Ready | Standing::Coming));
    let trouble = view
        .workers
        .keys()
        .filter(current)
        .find_map(|name| answers.get(name)?.report.as_ref()?.error.clone());
    let pending = view.workers.values().find_map(|w| match &w.phase {
        Phase::Pending(Some(why)) => Some(format!("pod {} waits: {why}", w.name)),
        _ => None,
    });
    let crashing = hold_creation.then(|| {
        "workers end before they serve, see their logs; they are made again with growing pauses".to_owned()
    });
    let ready = roster.standings.values().filter(|s| **s == Standing::Ready).count();
    Facts {
        generation,
        suspended: desired.suspended,
        layers,
        served: count(1),
        shadowed: count(copies),
        shadows_wanted: if desired.shadows == 0 { 0 } else { layers },
        peers_desired: desired.peers(),
        peers_ready: u32::try_from(ready).unwrap_or(u32::MAX),
        pods: u32::try_from(view.workers.len() + view.gateways.len()).unwrap_or(u32::MAX),
        gateways_desired: desired.gateways,
        gateways_ready: u32::try_from(view.gateways_ready()).unwrap_or(u32::MAX),
        trouble,
        waiting: crashing.or(pending),
    }
}
