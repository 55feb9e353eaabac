//! Which pods stay, which go and how many are missing. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::apply::pods::PoolTemplate;
use crate::deletion::Deletion;
use crate::observe::{PodPhase, WorkerView};
use crate::peers::{WorkerRecord, WorkerState};
use crate::pools::PoolDesired;

/// A worker that answered but never got Ready may be silent this many times longer: it reads weights.
pub const LOADING_PATIENCE: u32 = 5;

/// What becomes of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Serves.
    Ready,
    /// Will serve.
    Coming,
    /// Serves until its layers are elsewhere.
    Leaving,
    /// Made from an older manifest: goes at once.
    Outdated,
    /// Will never serve again.
    Lost(String),
}

/// A pod to make.
#[derive(Clone, Debug)]
pub struct Creation {
    /// The pool that it is made in.
    pub pool: PoolTemplate,
    /// It takes the place of a lost one.
    pub replaces: bool,
}

/// All workers of a swarm with what becomes of them.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// Every worker.
    pub readiness: BTreeMap<String, Readiness>,
    /// Pods to make.
    pub create: Vec<Creation>,
    /// Pods to delete.
    pub delete: Vec<Deletion>,
}

/// The pods that are wanted.
#[derive(Clone, Copy)]
pub struct WantedPods<'a> {
    /// Pools in order of preference.
    pub pools: &'a [PoolDesired],
    /// Fingerprint of what pods are made from.
    pub template: &'a str,
    /// Nothing should run.
    pub suspended: bool,
}

/// What the roster of one role is made from.
#[derive(Clone, Copy)]
pub struct RoleEvidence<'a> {
    /// Pods of one role.
    pub workers: &'a BTreeMap<String, WorkerView>,
    /// Reports.
    pub answers: &'a BTreeMap<String, WorkerRecord>,
    /// Peers that answer us and that no gateway can reach.
    pub unreachable: &'a BTreeSet<String>,
    /// Peers of the topology that an earlier operator published and that have never answered us.
    pub silent: &'a BTreeSet<String>,
    /// Peers that serve until others have taken their place.
    pub superseded: &'a BTreeSet<String>,
    /// Those of them whose place nobody has taken yet: they stay even if others hold their layers.
    pub awaited: &'a BTreeSet<String>,
    /// Peers for which there has been no node for long.
    pub unplaced: &'a BTreeSet<String>,
    /// They say nothing to us: their readiness probe does.
    pub by_probe: bool,
    /// Peers without which every layer is still held.
    pub dispensable: &'a dyn Fn(&BTreeSet<&str>) -> bool,
    /// New pods must wait: the last ones ended before they served.
    pub hold_creation: bool,
    /// Now.
    pub now: Instant,
    /// Silence that means loss.
    pub silence: Duration,
}

impl<'a> RoleEvidence<'a> {
    /// Of `workers` of which nothing is out of the ordinary, and none holds what others need.
    #[must_use]
    pub fn plain(
        workers: &'a BTreeMap<String, WorkerView>,
        answers: &'a BTreeMap<String, WorkerRecord>,
        now: Instant,
        silence: Duration,
    ) -> Self {
        const NONE: &BTreeSet<String> = &BTreeSet::new();
        Self {
            workers,
            answers,
            unreachable: NONE,
            silent: NONE,
            superseded: NONE,
            awaited: NONE,
            unplaced: NONE,
            by_probe: false,
            dispensable: &|_| true,
            hold_creation: false,
            now,
            silence,
        }
    }
}

/// The roster that brings the pods to what is desired.
#[must_use]
pub fn roster(desired: WantedPods<'_>, evidence: &RoleEvidence<'_>) -> Roster {
    let mut roster = Roster::default();
    for (name, worker) in evidence.workers {
        roster.readiness.insert(name.clone(), readiness(desired, worker, evidence));
    }
    for (pool, wanted) in desired.pools.iter().zip(wanted(desired, evidence)) {
        fill(&mut roster, pool, wanted, evidence);
    }
    let known: BTreeSet<&str> = desired.pools.iter().map(|p| p.template.name.as_str()).collect();
    for worker in evidence.workers.values().filter(|w| !known.contains(w.pool.as_str())) {
        let readiness = roster.readiness.entry(worker.name.clone()).or_insert(Readiness::Leaving);
        if matches!(readiness, Readiness::Ready | Readiness::Coming) {
            *readiness = Readiness::Leaving;
        }
    }
    let leaving = roster.readiness.iter().filter(|(_, readiness)| **readiness == Readiness::Leaving);
    let leaving: BTreeSet<&str> = leaving.map(|(name, _)| name.as_str()).collect();
    let may_leave = desired.suspended || (evidence.dispensable)(&leaving);
    let goes = |worker: &&WorkerView| match &roster.readiness[&worker.name] {
        Readiness::Ready | Readiness::Coming => false,
        // Its layers must be elsewhere first; who has none may go at once.
        Readiness::Leaving => {
            let may_leave = may_leave && !evidence.awaited.contains(&worker.name);
            !worker.deleting && (may_leave || worker.phase == PodPhase::Pending(None))
        }
        Readiness::Outdated => !worker.deleting,
        Readiness::Lost(_) => !worker.deleting || worker.node_gone,
    };
    // A pod that merely has notice of its node's end is left to the platform.
    let gone = evidence.workers.values().filter(|w| desired.suspended || !w.needs_drain()).filter(goes);
    roster.delete = gone.map(WorkerView::deletion).collect();
    roster
}

/// Makes what `pool` lacks, and lets go what it has too much: those that do not serve yet first, then the last by name.
fn fill(roster: &mut Roster, pool: &PoolDesired, wanted: usize, evidence: &RoleEvidence<'_>) {
    let of_pool = || evidence.workers.values().filter(|w| w.pool == pool.template.name);
    let is = |w: &WorkerView, readiness: Readiness| roster.readiness[&w.name] == readiness;
    let mut fit: Vec<&WorkerView> =
        of_pool().filter(|w| is(w, Readiness::Ready) || is(w, Readiness::Coming)).collect();
    fit.sort_by_key(|w| (is(w, Readiness::Ready), w.name.clone()));
    let coming = fit.iter().take_while(|w| is(w, Readiness::Coming)).count();
    fit[coming..].reverse();
    let lost = of_pool().filter(|w| matches!(roster.readiness[&w.name], Readiness::Lost(_))).count();
    let missing = if evidence.hold_creation { 0 } else { wanted.saturating_sub(fit.len()) };
    let made = (0..missing).map(|i| Creation { pool: pool.template.clone(), replaces: i < lost });
    roster.create.extend(made);
    for worker in fit.iter().take(fit.len().saturating_sub(wanted)) {
        roster.readiness.insert(worker.name.clone(), Readiness::Leaving);
    }
}

/// Peers that each pool should have: its own, and those of pools without nodes as far as there is room, best pool first. The pods that find
/// no node stay: they tell an autoscaler what is wanted, and where peers go back to.
fn wanted(desired: WantedPods<'_>, evidence: &RoleEvidence<'_>) -> Vec<usize> {
    let unplaced = |pool: &PoolDesired| {
        let workers = evidence.workers.values().filter(|w| w.pool == pool.template.name);
        let count = workers.filter(|w| evidence.unplaced.contains(&w.name)).count();
        count.min(pool.peers as usize)
    };
    let mut foreign: usize = desired.pools.iter().map(unplaced).sum();
    let each = desired.pools.iter().map(|pool| {
        let room = if unplaced(pool) > 0 { 0 } else { pool.peers_max.saturating_sub(pool.peers) as usize };
        let taken = room.min(foreign);
        foreign -= taken;
        pool.peers as usize + taken
    });
    each.collect()
}

fn readiness(desired: WantedPods<'_>, worker: &WorkerView, evidence: &RoleEvidence<'_>) -> Readiness {
    let answer = evidence.answers.get(&worker.name);
    if let PodPhase::Lost(why) = &worker.phase {
        // Its kubelet is silent, but it still serves: nothing is lost yet, and a replacement is on its way.
        let serves = answer.is_some_and(|a| a.was_ready && !a.is_silent(evidence.now, evidence.silence));
        if worker.node_gone && serves && worker.template == desired.template {
            return Readiness::Leaving;
        }
        return Readiness::Lost((*why).to_owned());
    }
    if let Some(answer) = answer {
        let patient = answer.at.is_some_and(|at| {
            !answer.was_ready && evidence.now.duration_since(at) >= evidence.silence * LOADING_PATIENCE
        });
        if patient || answer.is_silent(evidence.now, evidence.silence) {
            return Readiness::Lost("it does not answer".to_owned());
        }
    }
    if evidence.silent.contains(&worker.name) {
        return Readiness::Lost("it does not answer".to_owned());
    }
    if evidence.unreachable.contains(&worker.name) {
        return Readiness::Lost("the gateways cannot reach it".to_owned());
    }
    if worker.template != desired.template {
        return Readiness::Outdated;
    }
    if evidence.superseded.contains(&worker.name) {
        return Readiness::Leaving;
    }
    let state = answer.and_then(|a| a.report.as_ref()).map(|r| r.state);
    match (&worker.phase, state) {
        (PodPhase::Draining(_), _) | (_, Some(WorkerState::Draining)) => Readiness::Leaving,
        (PodPhase::Running, Some(WorkerState::Ready)) => Readiness::Ready,
        (PodPhase::Running, None) if evidence.by_probe && worker.ready => Readiness::Ready,
        // It reads more layers, and goes on serving those that it has.
        (PodPhase::Running, Some(WorkerState::Loading)) if answer.is_some_and(|a| a.was_ready) => {
            Readiness::Ready
        }
        _ if !is_current(desired.pools, worker) && holds_nothing(worker, answer) => Readiness::Outdated,
        _ => Readiness::Coming,
    }
}

/// Whether its end would be no loss, and as it is it may never serve. A pod that has not been heard yet, by a new leader say, may hold anything.
fn holds_nothing(worker: &WorkerView, answer: Option<&WorkerRecord>) -> bool {
    let report = answer.filter(|a| !a.was_ready).and_then(|a| a.report.as_ref());
    matches!(worker.phase, PodPhase::Pending(_)) || report.is_some_and(|report| report.held.is_empty())
}

/// Whether `worker` is as its pool wants its pods now; those of a pool that is gone are.
#[must_use]
pub fn is_current(pools: &[PoolDesired], worker: &WorkerView) -> bool {
    pools.iter().all(|pool| pool.template.name != worker.pool || pool.hash == worker.hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::report::WorkerReport;
    use crate::testing::{desired, pool_desired, worker};

    struct World {
        workers: BTreeMap<String, WorkerView>,
        answers: BTreeMap<String, WorkerRecord>,
        now: Instant,
    }

    fn world(names: &[&str]) -> World {
        let now = Instant::now();
        let mut world = World { workers: BTreeMap::new(), answers: BTreeMap::new(), now };
        for name in names {
            world.workers.insert((*name).to_owned(), worker(name, "spot"));
            let report = WorkerReport { state: WorkerState::Ready, ..WorkerReport::default() };
            let answer = WorkerRecord {
                report: Some(report),
                at: Some(now),
                was_ready: true,
                ..WorkerRecord::default()
            };
            world.answers.insert((*name).to_owned(), answer);
        }
        world
    }

    /// What is known now, when nothing is out of the ordinary.
    fn evidence<'a>(world: &'a World, dispensable: &'a dyn Fn(&BTreeSet<&str>) -> bool) -> RoleEvidence<'a> {
        let plain = RoleEvidence::plain(&world.workers, &world.answers, world.now, Duration::from_secs(3));
        RoleEvidence { dispensable, ..plain }
    }

    fn run(world: &World, peers: u32, later_s: u64, dispensable: bool) -> Roster {
        let now = world.now + Duration::from_secs(later_s);
        let dispensable = |_: &BTreeSet<&str>| dispensable;
        let evidence = RoleEvidence { now, ..evidence(world, &dispensable) };
        roster(desired(peers).wanted(), &evidence)
    }

    fn names(deletions: &[Deletion]) -> Vec<&str> {
        deletions.iter().map(|d| d.name.as_str()).collect()
    }

    #[test]
    fn the_first_pods_are_created_and_replace_nothing() {
        let roster = run(&world(&[]), 3, 0, true);
        assert_eq!(roster.create.len(), 3);
        assert!(roster.create.iter().all(|c| !c.replaces));
    }

    #[test]
    fn a_failed_pod_is_replaced_at_once_and_deleted() {
        let mut world = world(&["a", "b", "c"]);
        world.workers.get_mut("b").unwrap().phase = PodPhase::Lost("its container failed");
        let roster = run(&world, 3, 0, true);
        assert_eq!((roster.create.len(), roster.create[0].replaces), (1, true));
        assert_eq!(names(&roster.delete), ["b"]);
        assert!(!roster.delete[0].now);
    }

    #[test]
    fn a_loss_in_one_pool_is_not_replaced_by_pods_of_another() {
        let mut world = world(&["a", "b"]);
        world.workers.get_mut("b").unwrap().phase = PodPhase::Lost("its container failed");
        let mut desired = desired(2);
        // Another pool starts at the same time.
        desired.pools.push(PoolDesired { peers: 2, peers_max: 2, ..pool_desired("steady", false) });
        let roster = roster(desired.wanted(), &evidence(&world, &|_| true));
        let made: Vec<(&str, bool)> =
            roster.create.iter().map(|c| (c.pool.name.as_str(), c.replaces)).collect();
        assert_eq!(made, [("spot", true), ("steady", false), ("steady", false)]);
    }

    #[test]
    fn a_pod_on_a_dead_node_is_deleted_by_force_even_when_already_deleting() {
        let mut world = world(&["a"]);
        let worker = world.workers.get_mut("a").unwrap();
        (worker.phase, worker.deleting, worker.node_gone) =
            (PodPhase::Lost("its node is not ready"), true, true);
        world.answers.clear();
        assert!(run(&world, 1, 0, true).delete[0].now);
    }

    #[test]
    fn a_peer_that_answers_from_a_node_that_is_not_ready_is_replaced_before_it_is_lost() {
        let mut world = world(&["a"]);
        let worker = world.workers.get_mut("a").unwrap();
        (worker.phase, worker.node_gone) = (PodPhase::Lost("its node is not ready"), true);
        let roster = run(&world, 1, 0, false);
        assert_eq!((roster.readiness["a"].clone(), roster.create.len()), (Readiness::Leaving, 1));
        assert!(matches!(run(&world, 1, 3, false).readiness["a"], Readiness::Lost(_)));
    }

    #[test]
    fn silence_is_loss_after_the_limit_and_not_before() {
        let world = world(&["a"]);
        assert!(run(&world, 1, 2, true).create.is_empty());
        let roster = run(&world, 1, 3, true);
        assert_eq!(roster.readiness["a"], Readiness::Lost("it does not answer".into()));
        assert_eq!(roster.create.len(), 1);
    }

    #[test]
    fn a_draining_pod_is_replaced_and_keeps_serving() {
        let mut world = world(&["a", "b"]);
        let worker = world.workers.get_mut("a").unwrap();
        (worker.phase, worker.deleting) = (PodPhase::Draining("it is being deleted"), true);
        let roster = run(&world, 2, 0, true);
        assert_eq!(roster.readiness["a"], Readiness::Leaving);
        assert_eq!((roster.create.len(), roster.delete.len()), (1, 0));
    }

    #[test]
    fn a_peer_that_reads_more_layers_still_counts_as_serving() {
        let mut world = world(&["a"]);
        let report = WorkerReport { state: WorkerState::Loading, ..WorkerReport::default() };
        world.answers.get_mut("a").unwrap().report = Some(report);
        assert_eq!(run(&world, 1, 0, true).readiness["a"], Readiness::Ready);
    }

    #[test]
    fn the_surplus_leaves_only_when_its_layers_are_elsewhere() {
        let world = world(&["a", "b", "c", "d", "e"]);
        let waiting = run(&world, 2, 0, false);
        assert_eq!(waiting.readiness.values().filter(|s| **s == Readiness::Leaving).count(), 3);
        assert!(waiting.delete.is_empty());
        assert_eq!(names(&run(&world, 2, 0, true).delete), ["c", "d", "e"]);
    }

    #[test]
    fn pods_of_an_older_manifest_or_a_removed_pool_go() {
        let mut world = world(&["a", "b"]);
        world.workers.get_mut("a").unwrap().template = "older".into();
        world.workers.get_mut("b").unwrap().pool = "removed".into();
        let roster = run(&world, 2, 0, true);
        assert_eq!(names(&roster.delete), ["a", "b"]);
        assert_eq!(roster.create.len(), 2);
    }

    #[test]
    fn who_has_not_served_goes_when_its_pool_is_changed() {
        let mut world = world(&["a", "b"]);
        for name in ["a", "b"] {
            world.workers.get_mut(name).unwrap().hash = "older".into();
        }
        let report = WorkerReport { state: WorkerState::Loading, ..WorkerReport::default() };
        let answer = WorkerRecord { report: Some(report), at: Some(world.now), ..WorkerRecord::default() };
        world.answers.insert("b".into(), answer);
        let roster = run(&world, 2, 0, true);
        assert_eq!((names(&roster.delete), roster.create.len()), (vec!["b"], 1));
        // A new leader has heard nobody, or one that serves and reads more.
        world.answers.clear();
        assert_eq!(run(&world, 2, 0, true).readiness["b"], Readiness::Coming);
        let held = vec![dunlin_swarm::Layers::new(0, 9)];
        let report = WorkerReport { state: WorkerState::Loading, held, ..WorkerReport::default() };
        let answer = WorkerRecord { report: Some(report), at: Some(world.now), ..WorkerRecord::default() };
        world.answers.insert("b".into(), answer);
        assert_eq!(run(&world, 2, 0, true).readiness["b"], Readiness::Coming);
    }

    #[test]
    fn who_says_nothing_to_us_is_ready_when_its_probe_says_so() {
        let mut world = world(&["a", "b"]);
        world.answers.clear();
        world.workers.get_mut("a").unwrap().ready = true;
        let desired = desired(2);
        let evidence = |by_probe| RoleEvidence { by_probe, ..evidence(&world, &|_| true) };
        let ready = |by_probe| roster(desired.wanted(), &evidence(by_probe)).readiness["a"].clone();
        assert_eq!((ready(true), ready(false)), (Readiness::Ready, Readiness::Coming));
        assert_eq!(roster(desired.wanted(), &evidence(true)).readiness["b"], Readiness::Coming);
    }

    #[test]
    fn suspended_swarms_let_everybody_go() {
        let world = world(&["a", "b"]);
        let mut desired = desired(0);
        desired.suspended = true;
        let evidence = evidence(&world, &|_| false);
        let roster = roster(desired.wanted(), &evidence);
        assert_eq!((roster.create.len(), roster.delete.len()), (0, 2));
    }
}
