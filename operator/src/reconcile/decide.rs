//! The whole decision about a swarm, from what is known to what is done. Pure but for the memory it keeps of what it saw.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dunlin_planner::cut::unusual;
use dunlin_planner::topology::layer_set;
use dunlin_planner::{
    Finding, Layers, Layout, May, Member, ModelId, PeerName, PeerState, Reason, Shortage, Topology,
    TopologyPeer, Wanted, layout, lint, report,
};
use tokio::time::Instant;
use tracing::debug;

use super::facts::{facts, held, ready_by_kind};
use super::memory::Memory;
use crate::context::address;
use crate::convert::Desired;
use crate::observe::{Phase, SwarmView, WorkerView};
use crate::peers::{Answer, ModelFacts, Report, WorkerState};
use crate::roll::{Crew, Roll};
use crate::roster::{Creation, Deletion, Evidence, LOADING_PATIENCE, Roster, Standing, roster};
use crate::status::conditions::Facts;
use crate::status::events::Happening;

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
    let mute = mute(view, answers, memory, now, silence);
    let homeless = memory.turnover.homeless(&view.workers, answers, now);
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
        mute: &mute,
        superseded: &superseded,
        awaited: &BTreeSet::new(),
        homeless: &homeless,
        by_probe: false,
        dispensable: &held_without,
        hold_creation,
        now,
        silence,
    };
    let unchanged = roster(desired.wanted(), &evidence);
    let is_ready = |name: &str| reported(answers, name).is_some_and(|r| r.state == WorkerState::Ready);
    // No answer may go from one arithmetic to another, so no pipeline has peers of both.
    let arithmetic = |names: &BTreeSet<&str>| -> BTreeSet<u32> {
        names.iter().filter_map(|name| Some(reported(answers, name)?.arithmetic)).collect()
    };
    let mix = |older: &BTreeSet<&str>, newer: &BTreeSet<&str>| {
        let (older, newer) = (arithmetic(older), arithmetic(newer));
        older.is_empty() || newer.is_subset(&older)
    };
    let crew = Crew {
        pools: &desired.pools,
        workers: &view.workers,
        roster: &unchanged,
        homeless: &homeless,
        is_ready: &is_ready,
        mix: &mix,
    };
    // No gateway may ask for what new peers do not have, a removed adapter say.
    let roll = Roll::of(crew, !desired.suspended && gateways_are_new(desired, view));
    let leaving = superseded.union(&roll.going).cloned().collect();
    let roster = if roll.going.is_empty() {
        unchanged
    } else {
        roster(desired.wanted(), &Evidence { superseded: &leaving, awaited: &roll.awaited, ..evidence })
    };
    let served = |name: &str| answers.get(name).is_some_and(|a| a.was_ready);
    let losses = memory.turnover.losses(&roster, &view.workers, &served, &edition_of, now);
    let happenings = losses.iter().map(|loss| Happening::lost("Peer", &loss.name, &loss.why)).collect();
    let mut decision = Decision {
        happenings,
        create: roster.create.clone(),
        delete: roster.delete.clone(),
        ..Decision::default()
    };
    let mut shortage = None;
    if let Some(planned) = plan(desired, view, answers, &roster, memory, now)? {
        decision.happenings.extend(planned.happenings);
        (decision.layout, decision.summary) = (planned.layout, planned.summary);
        shortage = planned.shortage;
    }
    decision.delete.extend(lost_gateways(view, answers, now, silence));
    decision.ready_by_kind = ready_by_kind(desired, view, &roster);
    let rolled = decision.delete.iter().filter(|deletion| roll.going.contains(&deletion.name));
    decision.happenings.extend(rolled.map(|deletion| Happening::rolled("Peer", &deletion.name)));
    let crashing = memory.turnover.held("workers", &desired.edition, now);
    decision.facts = facts(desired, generation, view, answers, &roster, &roll, layers, crashing);
    if decision.facts.trouble.is_none() {
        decision.facts.trouble = shortage.map(|told| ("OutOfMemory".to_owned(), told.to_string()));
    }
    Ok(decision)
}

fn reported<'a>(answers: &'a BTreeMap<String, Answer>, name: &str) -> Option<&'a Report> {
    answers.get(name)?.report.as_ref()
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
fn model(view: &SwarmView, answers: &BTreeMap<String, Answer>, desired: &Desired) -> Option<ModelFacts> {
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
fn mute(
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    memory: &Memory,
    now: Instant,
    silence: Duration,
) -> BTreeSet<String> {
    let late = memory.restored.is_some_and(|at| now.duration_since(at) >= silence * LOADING_PATIENCE);
    let running = view.workers.values().filter(|w| late && w.phase == Phase::Running);
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
    happenings: Vec<Happening>,
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
    let wanted = Wanted {
        model: ModelId { name: desired.model.clone(), digest: desired.digest.clone() },
        layer_bytes: model.layer_bytes,
        shared_bytes: model.shared_bytes,
        sequence_bytes: model.sequence_bytes,
        peers: desired.peers() as usize,
        shadows: desired.shadows as usize,
    };
    let previous = memory.topology.as_ref().filter(|t| t.model.digest == desired.digest);
    let members: Vec<Member> = roster
        .standings
        .iter()
        .filter_map(|(name, standing)| member(desired, view, answers, previous, name, standing))
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
    let happenings = speeds(&layout, &members, memory);
    let shortage = layout.shortage.clone();
    Ok(Some(Planned { layout: Some(layout), summary: Some(summary), shortage, happenings }))
}

/// What there is to tell about the speed of peers: who has become slow, and that layers move for it.
fn speeds(layout: &Layout, members: &[Member], memory: &mut Memory) -> Vec<Happening> {
    let slow: Vec<(&PeerName, u32)> =
        unusual(members).into_iter().filter(|(_, percent)| *percent < 100).collect();
    let new = slow.iter().filter(|(name, _)| !memory.slow.contains(*name));
    let mut happenings: Vec<Happening> =
        new.map(|(name, percent)| Happening::slow(name.as_str(), *percent)).collect();
    memory.slow = slow.iter().map(|(name, _)| (*name).clone()).collect();
    if let Reason::Rebalanced(_) = layout.reason {
        happenings.push(Happening::rebalanced(&layout.reason.to_string()));
    }
    happenings
}

/// A worker as the planner sees it; `None` for one that cannot be planned with.
fn member(
    desired: &Desired,
    view: &SwarmView,
    answers: &BTreeMap<String, Answer>,
    previous: Option<&Topology>,
    name: &str,
    standing: &Standing,
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
    let state = match standing {
        Standing::Ready => PeerState::Ready,
        Standing::Coming if as_before => PeerState::Ready,
        Standing::Leaving => PeerState::Draining,
        Standing::Coming => PeerState::Loading,
        Standing::Outdated | Standing::Lost(_) => return None,
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
mod tests {
    use super::*;
    use crate::convert::PoolDesired;
    use crate::observe::{Blocked, GatewayView};
    use crate::testing::{desired, pool_desired, worker};
    use crate::turnover::FALLBACK_PATIENCE;

    const SILENCE: Duration = Duration::from_secs(3);

    /// A swarm of three that serves: pods `a`, `b`, `c` with layers 0-9, 10-19, 20-29.
    struct World {
        view: SwarmView,
        answers: BTreeMap<String, Answer>,
        memory: Memory,
        desired: Desired,
        /// Of every worker.
        room_bytes: u64,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self::with_room(200 << 20);
            for second in 0..3 {
                world.decide(second);
                world.load(second);
            }
            assert_eq!(world.spans(), ["a [0,10)", "b [10,20)", "c [20,30)"]);
            world
        }

        /// Three workers that have read the model's header and have nothing yet.
        fn with_room(room_bytes: u64) -> Self {
            let (view, answers, memory) = (SwarmView::default(), BTreeMap::new(), Memory::default());
            let (desired, start) = (desired(3), Instant::now());
            let mut world = Self { view, answers, memory, desired, room_bytes, start };
            for name in ["a", "b", "c"] {
                world.join(name);
                world.answer(name, WorkerState::Loading, 0);
            }
            world
        }

        fn join(&mut self, name: &str) {
            self.view.workers.insert(name.into(), worker(name, "spot"));
        }

        fn lose(&mut self, name: &str) {
            self.view.workers.remove(name);
            self.answers.remove(name);
        }

        /// `name` answers at `second`, holding what it held before.
        fn answer(&mut self, name: &str, state: WorkerState, second: u64) {
            let answer = self.answers.entry(name.into()).or_default();
            let report = Report {
                state,
                held: answer.report.as_ref().map(|r| r.held.clone()).unwrap_or_default(),
                model: Some(ModelFacts { layer_bytes: vec![1 << 20; 30], ..ModelFacts::default() }),
                room_bytes: Some(self.room_bytes),
                ..Report::default()
            };
            answer.at = Some(self.start + Duration::from_secs(second));
            answer.was_ready |= state == WorkerState::Ready;
            answer.report = Some(report);
        }

        fn answer_all(&mut self, state: WorkerState, second: u64) {
            for name in self.answers.keys().cloned().collect::<Vec<_>>() {
                self.answer(&name, state, second);
            }
        }

        /// Everybody who answers has loaded what the topology gives to it.
        fn load(&mut self, second: u64) {
            let topology = self.memory.topology.clone().unwrap();
            for name in self.answers.keys().cloned().collect::<Vec<_>>() {
                self.answer(&name, WorkerState::Ready, second);
                let held = topology.peer(&name.as_str().into()).map(TopologyPeer::hold).unwrap_or_default();
                self.answers.get_mut(&name).unwrap().report.as_mut().unwrap().held = held;
            }
        }

        fn decide(&mut self, second: u64) -> Decision {
            let now = self.start + Duration::from_secs(second);
            let (view, answers) = (&self.view, &self.answers);
            let decision = decide(&self.desired, 1, view, answers, &mut self.memory, now, SILENCE).unwrap();
            if let Some(layout) = &decision.layout {
                self.memory.topology = Some(layout.topology.clone());
            }
            decision
        }

        fn spans(&self) -> Vec<String> {
            let peers = self.memory.topology.iter().flat_map(|t| &t.peers);
            peers.filter(|p| !p.span.is_empty()).map(|p| format!("{} {}", p.name, p.span)).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_place_is_kept_while_survivors_load_more_and_for_a_bounded_time() {
        let mut world = World::new();
        world.lose("b");
        assert_eq!(world.decide(4).create.len(), 1);
        let mut pending = worker("d", "spot");
        (pending.phase, pending.ip) = (Phase::Pending(Some("no node".into())), None);
        world.view.workers.insert("d".into(), pending);
        let patience = GAP_PATIENCE.as_secs();
        for second in 5..4 + patience {
            // They were told to hold what b held for a, and are not Ready until they do.
            for name in ["a", "c"] {
                world.answer(name, WorkerState::Loading, second);
            }
            let decision = world.decide(second);
            assert_eq!(world.spans(), ["a [0,10)", "c [20,30)"], "after {second} s");
            assert_eq!((decision.facts.served, decision.facts.peers_ready), (30, 2));
            assert!(decision.create.is_empty());
        }
        for name in ["a", "c"] {
            world.answer(name, WorkerState::Ready, 4 + patience);
        }
        world.decide(4 + patience);
        assert_eq!(world.spans(), ["a [0,15)", "c [15,30)"]);
    }

    #[tokio::test(start_paused = true)]
    async fn peers_of_an_operator_without_roles_go_when_others_hold_their_layers_and_all_gateways_are_new() {
        let mut world = World::new();
        for name in ["a", "b", "c"] {
            world.view.workers.get_mut(name).unwrap().has_role = false;
        }
        let gateway = |name: &str, has_role| GatewayView {
            name: name.to_owned(),
            ip: None,
            running: true,
            ready: true,
            has_role,
            uid: format!("uid-{name}"),
            hash: "g".into(),
            ..GatewayView::default()
        };
        world.view.gateways.insert("older".into(), gateway("older", false));
        world.view.gateways.insert("newer".into(), gateway("newer", true));
        let decision = world.decide(4);
        assert_eq!((decision.create.len(), decision.delete.len()), (3, 0), "they serve meanwhile");
        for name in ["d", "e", "f"] {
            world.join(name);
            world.answer(name, WorkerState::Loading, 5);
        }
        world.decide(5);
        world.load(6);
        let decision = world.decide(6);
        assert_eq!(world.spans(), ["d [0,10)", "e [10,20)", "f [20,30)"]);
        assert_eq!((decision.create.len(), decision.delete.len()), (0, 0), "an older gateway needs them");
        world.view.gateways.remove("older");
        let gone: Vec<String> = world.decide(7).delete.into_iter().map(|d| d.name).collect();
        assert_eq!(gone, ["a", "b", "c"]);
    }

    /// A swarm of which all stages are from before a change, with a gateway from after it.
    fn changed() -> World {
        let mut world = World::new();
        world.desired.gateways = 1;
        let gateway = GatewayView {
            name: "g".into(),
            running: true,
            ready: true,
            has_role: true,
            hash: "g".into(),
            ..GatewayView::default()
        };
        world.view.gateways.insert("g".into(), gateway);
        for worker in world.view.workers.values_mut() {
            worker.hash = "older".into();
        }
        world
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_pool_is_rolled_one_peer_at_a_time_and_every_layer_stays_held() {
        let mut world = changed();
        let mut second = 4;
        for (old, new) in [("a", "d"), ("b", "e"), ("c", "f")] {
            let decision = world.decide(second);
            assert_eq!(
                (decision.create.len(), decision.delete.len()),
                (1, 0),
                "{old} stays until {new} serves"
            );
            assert!(!decision.facts.is_whole() && decision.facts.outdated > 0);
            world.join(new);
            world.answer(new, WorkerState::Loading, second);
            let decision = world.decide(second);
            assert_eq!((decision.create.len(), decision.delete.len()), (0, 0));
            assert_eq!(decision.facts.served, 30);
            world.load(second + 1);
            let decision = world.decide(second + 1);
            let gone: Vec<&str> = decision.delete.iter().map(|d| d.name.as_str()).collect();
            assert_eq!((gone, decision.create.len()), (vec![old], 0));
            let told: Vec<&str> = decision.happenings.iter().map(|h| h.reason.as_str()).collect();
            assert!(told.contains(&"PeerRolled"), "{told:?}");
            world.lose(old);
            second += 2;
            world.decide(second);
            world.load(second);
        }
        let facts = world.decide(second).facts;
        assert_eq!((facts.outdated, facts.peers_ready), (0, 3));
        assert!(facts.is_whole(), "{facts:?}");
        assert_eq!(world.spans(), ["d [0,10)", "e [10,20)", "f [20,30)"]);
    }

    #[tokio::test(start_paused = true)]
    async fn stages_wait_for_gateways_of_the_new_manifest_and_a_hopeless_one_is_told() {
        let mut world = changed();
        let blocked = Blocked { why: "ErrImagePull: no such tag".into(), reason: Some("ImageUnavailable") };
        let newer = GatewayView {
            name: "h".into(),
            hash: "g".into(),
            blocked: Some(blocked),
            ..GatewayView::default()
        };
        world.view.gateways.get_mut("g").unwrap().hash = "older".into();
        world.view.gateways.insert("h".into(), newer);
        let decision = world.decide(4);
        assert_eq!((decision.create.len(), decision.facts.outdated), (0, 4));
        assert_eq!(decision.facts.trouble.unwrap().0, "ImageUnavailable", "though the older one serves");
    }

    #[tokio::test(start_paused = true)]
    async fn peers_with_another_arithmetic_are_all_there_before_the_first_goes() {
        let mut world = changed();
        let newer = |world: &mut World, name: &str| {
            world.answers.get_mut(name).unwrap().report.as_mut().unwrap().arithmetic = 2;
        };
        world.decide(4);
        world.join("d");
        world.answer("d", WorkerState::Loading, 4);
        newer(&mut world, "d");
        assert_eq!(world.decide(4).create.len(), 2);
        for name in ["e", "f"] {
            world.join(name);
            world.answer(name, WorkerState::Loading, 5);
            newer(&mut world, name);
        }
        newer(&mut world, "d");
        world.decide(5);
        world.load(6);
        for name in ["d", "e", "f"] {
            newer(&mut world, name);
        }
        let gone: Vec<String> = world.decide(6).delete.into_iter().map(|d| d.name).collect();
        assert_eq!(gone, ["a", "b", "c"]);
        assert_eq!(world.spans(), ["d [0,10)", "e [10,20)", "f [20,30)"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_gateways_from_running_is_told_and_stalls_a_swarm_that_does_not_serve() {
        let mut world = World::new();
        let mut gateway = GatewayView {
            name: "g".into(),
            ip: None,
            running: true,
            ready: false,
            has_role: true,
            uid: "uid-g".into(),
            node_gone: false,
            hash: "g".into(),
            blocked: Some(Blocked { why: "ErrImagePull: gone".into(), reason: Some("ImageUnavailable") }),
        };
        world.view.gateways.insert("g".into(), gateway.clone());
        let facts = world.decide(4).facts;
        assert_eq!(facts.waiting.as_deref(), Some("a gateway waits: ErrImagePull: gone"));
        let told = ("ImageUnavailable".to_owned(), "a gateway cannot start: ErrImagePull: gone".to_owned());
        assert_eq!(facts.trouble, Some(told));
        // Another one answers: it is below plan, and nothing is hopeless.
        (gateway.ready, gateway.blocked) = (true, None);
        world.view.gateways.insert("h".into(), gateway);
        let facts = world.decide(4).facts;
        assert!(facts.trouble.is_none() && facts.waiting.is_some());
        world.view.gateways.clear();
        world.view.gateways_refused = Some("exceeded quota".into());
        let told = ("PodRefused".to_owned(), "cannot create gateways: exceeded quota".to_owned());
        assert_eq!(world.decide(4).facts.trouble, Some(told));
        // What only a gateway finds out about the model.
        world.view.gateways_refused = None;
        let error = Some(("ModelInvalid".to_owned(), "its chat template is none".to_owned()));
        world.view.gateways.insert("g".into(), GatewayView { name: "g".into(), ..GatewayView::default() });
        let report = Report { error: error.clone(), ..Report::default() };
        world.answers.insert("g".into(), Answer { report: Some(report), ..Answer::default() });
        assert_eq!(world.decide(4).facts.trouble, error);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_gateway_on_a_silent_node_is_deleted() {
        let mut world = World::new();
        let gone =
            GatewayView { name: "g".into(), uid: "u".into(), node_gone: true, ..GatewayView::default() };
        world.view.gateways.insert("g".into(), gone);
        world.answer("g", WorkerState::Ready, 2);
        assert!(world.decide(4).delete.is_empty(), "it answers");
        for name in ["a", "b", "c"] {
            world.answer(name, WorkerState::Ready, 5);
        }
        let deleted = world.decide(5).delete;
        assert_eq!(deleted, [Deletion { name: "g".into(), uid: "u".into(), now: true }]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_replacement_takes_the_place_and_nobody_moves() {
        let mut world = World::new();
        world.lose("b");
        world.decide(4);
        world.join("d");
        for name in ["a", "c"] {
            world.answer(name, WorkerState::Ready, 6);
        }
        world.answer("d", WorkerState::Loading, 6);
        let summary = world.decide(6).summary.unwrap();
        assert_eq!(world.spans(), ["a [0,10)", "c [20,30)", "d [10,20)"]);
        assert!(summary.contains("replacements took the places"), "{summary}");
    }

    #[tokio::test(start_paused = true)]
    async fn peers_without_a_node_run_in_the_next_pool_until_theirs_has_room_again() {
        let mut world = World::new();
        world.desired.pools.push(PoolDesired { peers_max: 1, ..pool_desired("steady", false) });
        world.lose("b");
        assert_eq!(pools(&world.decide(4)), ["spot"]);
        let mut homeless = worker("d", "spot");
        (homeless.phase, homeless.ip, homeless.unplaced) =
            (Phase::Pending(Some("no node".into())), None, true);
        world.view.workers.insert("d".into(), homeless);
        let patience = FALLBACK_PATIENCE.as_secs();
        world.answer_all(WorkerState::Ready, 5 + patience);
        assert!(world.decide(5).create.is_empty());
        assert!(world.decide(4 + patience).create.is_empty());
        assert_eq!(pools(&world.decide(5 + patience)), ["steady"]);
        world.view.workers.insert("e".into(), worker("e", "steady"));
        let decision = world.decide(6 + patience);
        assert!(decision.create.is_empty());
        assert_eq!(decision.facts.replicas, 3, "`/scale` counts a, c and d, and no guests");
        world.answer("e", WorkerState::Loading, 6 + patience);
        world.decide(6 + patience);
        world.load(7 + patience);
        assert_eq!(world.decide(7 + patience).facts.peers_ready, 3, "e has the place of b");
        // A spot node is there again: d comes up, and only when it serves e may go.
        let found = worker("d", "spot");
        world.view.workers.insert("d".into(), found);
        world.answer("d", WorkerState::Loading, 8 + patience);
        assert!(world.decide(8 + patience).delete.is_empty());
        world.answer("d", WorkerState::Ready, 9 + patience);
        let decision = world.decide(9 + patience);
        assert_eq!(decision.delete.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["e"]);
        assert!(decision.create.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_slow_for_long_is_told_of_and_gets_fewer_layers_and_stays_so_while_nothing_is_known()
     {
        let mut world = World::new();
        let speed = |world: &mut World, speeds: [Option<f64>; 3]| {
            for (name, speed) in ["a", "b", "c"].iter().zip(speeds) {
                world.answers.get_mut(*name).unwrap().speed = speed;
            }
        };
        let reasons = |decision: &Decision| -> Vec<String> {
            decision.happenings.iter().map(|h| h.reason.clone()).collect()
        };
        let even = ["a [0,10)", "b [10,20)", "c [20,30)"];
        speed(&mut world, [Some(1.0), Some(1.0), Some(0.3)]);
        let told = world.decide(4);
        assert_eq!(
            (reasons(&told), world.spans()),
            (vec!["PeerSlow".to_owned()], even.map(str::to_owned).to_vec())
        );
        let summary = told.summary.unwrap();
        assert!(summary.contains("not of the usual speed: c at 30 %"), "{summary}");
        let patience = REBALANCE_PATIENCE.as_secs();
        world.load(3 + patience);
        assert!(reasons(&world.decide(3 + patience)).is_empty());
        assert_eq!(world.spans(), even);
        world.load(4 + patience);
        let moved = world.decide(4 + patience);
        assert_eq!(reasons(&moved), ["SwarmRebalanced"]);
        assert!(moved.happenings[0].note.contains("% faster"), "{}", moved.happenings[0].note);
        let uneven = ["a [0,13)", "b [13,26)", "c [26,30)"];
        assert_eq!(world.spans(), uneven);
        for second in 5..8 {
            world.load(second + patience);
            world.decide(second + patience);
        }
        // Another operator leads and has not measured anything: that is no reason to move layers.
        speed(&mut world, [None; 3]);
        for second in 0..3 * patience {
            world.load(10 + patience + second);
            world.decide(10 + patience + second);
        }
        assert_eq!(world.spans(), uneven);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_gateway_objects_to_is_for_a_user_to_mend() {
        let mut world = World::new();
        let gateway = GatewayView { name: "g".to_owned(), running: true, ..GatewayView::default() };
        world.view.gateways.insert("g".into(), gateway);
        let error = ("ModelInvalid".to_owned(), "its chat template cannot be used".to_owned());
        let report = Report { error: Some(error.clone()), ..Report::default() };
        world.answers.insert("g".into(), Answer { report: Some(report), ..Answer::default() });
        assert_eq!(world.decide(4).facts.trouble, Some(error));
        world.answers.remove("g");
        assert_eq!(world.decide(5).facts.trouble, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_does_not_fit_is_not_planned_and_what_would_help_is_told() {
        let mut world = World::with_room(8 << 20);
        let decision = world.decide(1);
        assert!(decision.layout.is_none());
        let (reason, message) = decision.facts.trouble.unwrap();
        assert_eq!(reason, "OutOfMemory");
        let told = "10 layers need 10 MiB, with the KV cache of one sequence of the greatest length, and a peer of pool spot has room for \
             8: raise memory.host, or the number of peers to 4, or lower model.maxSequenceLength";
        assert_eq!(message, told);
        world.room_bytes = 20 << 20;
        world.answer_all(WorkerState::Loading, 2);
        let decision = world.decide(2);
        assert_eq!((world.spans().len(), decision.facts.trouble), (3, None));
    }

    #[tokio::test(start_paused = true)]
    async fn layers_of_a_lost_peer_stay_on_shadows_when_they_fit_into_nobody_s_span() {
        let mut world = World::with_room(14 << 20);
        for second in 0..3 {
            world.decide(second);
            world.load(second);
        }
        world.lose("b");
        let patience = GAP_PATIENCE.as_secs();
        for second in [4, 5 + patience, 6 + patience] {
            world.answer_all(WorkerState::Ready, second);
            let decision = world.decide(second);
            assert_eq!(world.spans(), ["a [0,10)", "c [20,30)"]);
            let trouble = decision.facts.trouble.map(|(reason, _)| reason);
            assert_eq!(trouble.as_deref(), (second > patience).then_some("OutOfMemory"));
        }
    }

    fn pools(decision: &Decision) -> Vec<&str> {
        decision.create.iter().map(|c| c.pool.name.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_takes_nobody_s_place_before_it_has_heard_everybody() {
        let mut world = World::new();
        let topology = world.memory.topology.take();
        world.memory = Memory { topology, restored: Some(world.start), ..Memory::default() };
        world.answers.retain(|name, _| name == "a");
        let decision = world.decide(4);
        assert_eq!(world.spans(), ["a [0,10)", "b [10,20)", "c [20,30)"]);
        assert!(decision.create.is_empty() && decision.delete.is_empty());
        // Who does not answer the new leader at all is lost after a while.
        world.answer("a", WorkerState::Ready, 15);
        world.answer("b", WorkerState::Ready, 15);
        let decision = world.decide(15);
        assert_eq!(decision.delete.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["c"]);
        assert_eq!(world.spans().len(), 2);
    }
}
