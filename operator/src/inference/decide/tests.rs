//! Decisions about a swarm of three, second by second.

use std::collections::BTreeMap;

use dunlin_swarm::{ModelSizes, NumericsClass, TopologyPeer};
use tokio::time::Instant;

use super::super::layout::{GAP_PATIENCE, REBALANCE_PATIENCE};
use super::*;
use crate::observe::pods::Blocked;
use crate::observe::view::GatewayPod;
use crate::peers::WorkerRecord;
use crate::peers::report::WorkerReport;
use crate::pools::PoolDesired;
use crate::testing::{desired, pool_desired, worker};
use crate::turnover::FALLBACK_PATIENCE;

const SILENCE: Duration = Duration::from_secs(3);

/// A swarm of three that serves: pods `a`, `b`, `c` with layers 0-9, 10-19, 20-29.
struct World {
    view: SwarmView,
    answers: BTreeMap<String, WorkerRecord>,
    state: ServingState,
    desired: InferenceDesired,
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
        let (view, answers, state) = (SwarmView::default(), BTreeMap::new(), ServingState::default());
        let (desired, start) = (desired(3), Instant::now());
        let mut world = Self { view, answers, state, desired, room_bytes, start };
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
        let report = WorkerReport {
            state,
            held: answer.report.as_ref().map(|r| r.held.clone()).unwrap_or_default(),
            model: Some(ModelSizes { layer_bytes: vec![1 << 20; 30], ..ModelSizes::default() }),
            room_bytes: Some(self.room_bytes),
            ..WorkerReport::default()
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
        let topology = self.state.topology.clone().unwrap();
        for name in self.answers.keys().cloned().collect::<Vec<_>>() {
            self.answer(&name, WorkerState::Ready, second);
            let held = topology.peer(&name.as_str().into()).map(TopologyPeer::hold).unwrap_or_default();
            self.answers.get_mut(&name).unwrap().report.as_mut().unwrap().held = held;
        }
    }

    fn decide(&mut self, second: u64) -> InferenceDecision {
        let now = self.start + Duration::from_secs(second);
        let (view, answers, since) = (&self.view, &self.answers, self.start);
        let evidence = Evidence { view, answers, since, now, silence: SILENCE };
        let (decision, state) = InferenceSwarm::decide(&self.desired, &evidence, self.state.clone()).unwrap();
        self.state = state;
        decision
    }

    fn spans(&self) -> Vec<String> {
        let peers = self.state.topology.iter().flat_map(|t| &t.peers);
        peers.filter(|p| !p.span.is_empty()).map(|p| format!("{} {}", p.name, p.span)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_place_is_kept_while_survivors_load_more_and_for_a_bounded_time() {
    let mut world = World::new();
    world.lose("b");
    assert_eq!(world.decide(4).create.len(), 1);
    let mut pending = worker("d", "spot");
    (pending.phase, pending.ip) = (PodPhase::Pending(Some("no node".into())), None);
    world.view.workers.insert("d".into(), pending);
    let patience = GAP_PATIENCE.as_secs();
    for second in 5..4 + patience {
        // They were told to hold what b held for a, and are not Ready until they do.
        for name in ["a", "c"] {
            world.answer(name, WorkerState::Loading, second);
        }
        let decision = world.decide(second);
        assert_eq!(world.spans(), ["a [0,10)", "c [20,30)"], "after {second} s");
        assert_eq!((decision.facts.kind.served, decision.facts.peers_ready), (30, 2));
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
    let gateway = |name: &str, has_role| GatewayPod {
        name: name.to_owned(),
        ip: None,
        running: true,
        ready: true,
        has_role,
        uid: format!("uid-{name}"),
        hash: "g".into(),
        ..GatewayPod::default()
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
    let gateway = GatewayPod {
        name: "g".into(),
        running: true,
        ready: true,
        has_role: true,
        hash: "g".into(),
        ..GatewayPod::default()
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
        assert_eq!((decision.create.len(), decision.delete.len()), (1, 0), "{old} stays until {new} serves");
        assert!(!decision.facts.is_whole() && decision.facts.outdated > 0);
        world.join(new);
        world.answer(new, WorkerState::Loading, second);
        let decision = world.decide(second);
        assert_eq!((decision.create.len(), decision.delete.len()), (0, 0));
        assert_eq!(decision.facts.kind.served, 30);
        world.load(second + 1);
        let decision = world.decide(second + 1);
        let gone: Vec<&str> = decision.delete.iter().map(|d| d.name.as_str()).collect();
        assert_eq!((gone, decision.create.len()), (vec![old], 0));
        let told: Vec<&str> = decision.events.iter().map(|h| h.reason.as_str()).collect();
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
    let newer =
        GatewayPod { name: "h".into(), hash: "g".into(), blocked: Some(blocked), ..GatewayPod::default() };
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
        world.answers.get_mut(name).unwrap().report.as_mut().unwrap().arithmetic =
            NumericsClass::from_number(2);
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
    for name in ["a", "b", "c"] {
        world.answer(name, WorkerState::Ready, 5);
    }
    assert_eq!(names(&world.decide(5)), [""; 0], "newer ones have no layers yet");
    world.load(6);
    for name in ["d", "e", "f"] {
        newer(&mut world, name);
    }
    // An answer that began before would have other bits with the newer ones.
    let need = |world: &mut World, versions: &[u32]| {
        let report = WorkerReport {
            needed: versions.iter().map(|v| NumericsClass::from_number(*v)).collect(),
            ..WorkerReport::default()
        };
        let record = WorkerRecord { report: Some(report), at: Some(world.start), ..WorkerRecord::default() };
        world.answers.insert("g".into(), record);
    };
    need(&mut world, &[0, 2]);
    let decision = world.decide(6);
    assert_eq!(names(&decision), [""; 0]);
    assert_eq!(world.spans(), ["d [0,10)", "e [10,20)", "f [20,30)"]);
    assert!(decision.facts.waiting.unwrap().contains("another arithmetic"));
    // Nobody can end it any more once a layer is with no older one.
    let answers = world.answers.clone();
    for name in ["b", "c"] {
        world.answers.get_mut(name).unwrap().report.as_mut().unwrap().held.clear();
    }
    assert_eq!(names(&world.decide(6)), ["a", "b", "c"]);
    world.answers = answers;
    need(&mut world, &[2]);
    assert_eq!(names(&world.decide(6)), ["a", "b", "c"]);
}

fn names(decision: &InferenceDecision) -> Vec<&str> {
    decision.delete.iter().map(|deletion| deletion.name.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn what_keeps_gateways_from_running_is_told_and_stalls_a_swarm_that_does_not_serve() {
    let mut world = World::new();
    let mut gateway = GatewayPod {
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
    world.view.gateways.insert("g".into(), GatewayPod { name: "g".into(), ..GatewayPod::default() });
    let report = WorkerReport { error: error.clone(), ..WorkerReport::default() };
    world.answers.insert("g".into(), WorkerRecord { report: Some(report), ..WorkerRecord::default() });
    assert_eq!(world.decide(4).facts.trouble, error);
}

#[tokio::test(start_paused = true)]
async fn a_changed_model_is_planned_with_its_own_stages_alone() {
    let mut world = World::new();
    let before = world.state.topology.clone().unwrap();
    world.desired.digest = "changed".into();
    let decision = world.decide(4);
    let gone: Vec<&str> = decision.delete.iter().map(|d| d.name.as_str()).collect();
    assert_eq!((gone, decision.create.len()), (vec!["a", "b", "c"], 3));
    // They end their answers, and hold layers of the same numbers. Their gateway no longer reaches one of them.
    let report = WorkerReport { lost: BTreeSet::from(["a".to_owned()]), ..WorkerReport::default() };
    world.answers.insert("g".into(), WorkerRecord { report: Some(report), ..WorkerRecord::default() });
    world.view.gateways.insert("g".into(), GatewayPod { name: "g".into(), ..GatewayPod::default() });
    for name in ["a", "b", "c"] {
        world.view.workers.get_mut(name).unwrap().deleting = true;
    }
    for name in ["d", "e", "f"] {
        world.join(name);
        world.view.workers.get_mut(name).unwrap().template = "changed".into();
        world.answer(name, WorkerState::Loading, 5);
    }
    let says = |world: &mut World, digest: &str| {
        world.answers.get_mut("f").unwrap().report.as_mut().unwrap().model_digest = digest.into();
    };
    says(&mut world, "t");
    let decision = world.decide(5);
    assert!(world.state.suspects.is_empty(), "{:?}", world.state.suspects);
    assert_eq!(decision.facts.kind.served, 0, "no layer of the new model is served yet");
    assert_eq!(
        world.state.topology,
        Some(before.clone()),
        "one of three is of another model by its own word"
    );
    says(&mut world, "changed");
    world.decide(6);
    let after = world.state.topology.clone().unwrap();
    assert_eq!(world.spans(), ["d [0,10)", "e [10,20)", "f [20,30)"]);
    assert_eq!((after.peers.len(), after.model.digest.as_str()), (3, "changed"));
    assert!(after.epoch > before.epoch, "gateways and stages of the model before refuse it by its digest");
}

#[tokio::test(start_paused = true)]
async fn a_plan_is_newer_than_all_that_the_status_or_a_worker_knows() {
    // An operator that finds nothing published.
    let planned = |epoch_seen, reports: [u64; 3]| {
        let mut world = World::with_room(200 << 20);
        world.state.epoch_seen = epoch_seen;
        for (name, epoch) in ["a", "b", "c"].into_iter().zip(reports) {
            world.answers.get_mut(name).unwrap().report.as_mut().unwrap().epoch = epoch;
        }
        world.decide(1);
        world.state.topology.unwrap().epoch
    };
    assert_eq!(planned(0, [0, 0, 0]), 1);
    assert_eq!(planned(9, [0, 0, 0]), 10);
    assert_eq!(planned(3, [0, 7, 2]), 8);
    assert_eq!(planned(3, [0, u64::MAX, 2]), 4, "nobody is so far");
    // One that finds an old one, of the same peers.
    let mut world = World::new();
    world.decide(3);
    let before = world.state.topology.clone().unwrap();
    let gateway = WorkerReport { epoch: before.epoch + 5, ..WorkerReport::default() };
    world.view.gateways.insert("g".into(), GatewayPod { name: "g".into(), ..GatewayPod::default() });
    let gateway = WorkerRecord { report: Some(gateway), at: Some(world.start), ..WorkerRecord::default() };
    world.answers.insert("g".into(), gateway);
    world.decide(4);
    let after = world.state.topology.clone().unwrap();
    assert_eq!(after, dunlin_swarm::Topology { epoch: before.epoch + 6, ..before });
    // Everybody takes that.
    world.answers.get_mut("g").unwrap().report.as_mut().unwrap().epoch = after.epoch;
    world.decide(4);
    assert_eq!((world.state.epoch(), world.state.topology.as_ref()), (after.epoch, Some(&after)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_gateway_on_a_silent_node_is_deleted() {
    let mut world = World::new();
    let gone = GatewayPod { name: "g".into(), uid: "u".into(), node_gone: true, ..GatewayPod::default() };
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
    let summary = world.decide(6).plan.summary.unwrap();
    assert_eq!(world.spans(), ["a [0,10)", "c [20,30)", "d [10,20)"]);
    assert!(summary.contains("replacements took the places"), "{summary}");
}

#[tokio::test(start_paused = true)]
async fn peers_without_a_node_run_in_the_next_pool_until_theirs_has_room_again() {
    let mut world = World::new();
    world.desired.pools.push(PoolDesired { peers_max: 1, ..pool_desired("steady", false) });
    world.lose("b");
    assert_eq!(pools(&world.decide(4)), ["spot"]);
    let mut unplaced = worker("d", "spot");
    (unplaced.phase, unplaced.ip, unplaced.unplaced) =
        (PodPhase::Pending(Some("no node".into())), None, true);
    world.view.workers.insert("d".into(), unplaced);
    let patience = FALLBACK_PATIENCE.as_secs();
    world.answer_all(WorkerState::Ready, 5 + patience);
    assert!(world.decide(5).create.is_empty());
    assert!(world.decide(4 + patience).create.is_empty());
    assert_eq!(pools(&world.decide(5 + patience)), ["steady"]);
    world.view.workers.insert("e".into(), worker("e", "steady"));
    let decision = world.decide(6 + patience);
    assert!(decision.create.is_empty());
    assert_eq!(decision.facts.replicas, 3, "`/scale` counts a, c and d, and no foreign");
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
async fn a_peer_that_is_slow_for_long_is_told_of_and_gets_fewer_layers_and_stays_so_while_nothing_is_known() {
    let mut world = World::new();
    let speed = |world: &mut World, speeds: [Option<f64>; 3]| {
        for (name, speed) in ["a", "b", "c"].iter().zip(speeds) {
            world.answers.get_mut(*name).unwrap().speed = speed;
        }
    };
    let reasons = |decision: &InferenceDecision| -> Vec<String> {
        decision.events.iter().map(|h| h.reason.clone()).collect()
    };
    let even = ["a [0,10)", "b [10,20)", "c [20,30)"];
    speed(&mut world, [Some(1.0), Some(1.0), Some(0.3)]);
    let told = world.decide(4);
    assert_eq!(
        (reasons(&told), world.spans()),
        (vec!["PeerSlow".to_owned()], even.map(str::to_owned).to_vec())
    );
    let summary = told.plan.summary.unwrap();
    assert!(summary.contains("not of the usual speed: c at 30 %"), "{summary}");
    let patience = REBALANCE_PATIENCE.as_secs();
    world.load(3 + patience);
    assert!(reasons(&world.decide(3 + patience)).is_empty());
    assert_eq!(world.spans(), even);
    world.load(4 + patience);
    let moved = world.decide(4 + patience);
    assert_eq!(reasons(&moved), ["SwarmRebalanced"]);
    assert!(moved.events[0].note.contains("% faster"), "{}", moved.events[0].note);
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
    let gateway = GatewayPod { name: "g".to_owned(), running: true, ..GatewayPod::default() };
    world.view.gateways.insert("g".into(), gateway);
    let error = ("ModelInvalid".to_owned(), "its chat template cannot be used".to_owned());
    let report = WorkerReport { error: Some(error.clone()), ..WorkerReport::default() };
    world.answers.insert("g".into(), WorkerRecord { report: Some(report), ..WorkerRecord::default() });
    assert_eq!(world.decide(4).facts.trouble, Some(error));
    world.answers.remove("g");
    assert_eq!(world.decide(5).facts.trouble, None);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_does_not_fit_is_not_planned_and_what_would_help_is_told() {
    let mut world = World::with_room(8 << 20);
    let decision = world.decide(1);
    assert!(world.state.topology.is_none());
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

fn pools(decision: &InferenceDecision) -> Vec<&str> {
    decision.create.iter().map(|(_, c)| c.pool.name.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_takes_nobody_s_place_before_it_has_heard_everybody() {
    let mut world = World::new();
    let topology = world.state.topology.take();
    world.state = ServingState { topology, ..ServingState::default() };
    world.answers.retain(|name, _| name == "a");
    let decision = world.decide(4);
    assert_eq!(world.spans(), ["a [0,10)", "b [10,20)", "c [20,30)"]);
    assert!(decision.create.is_empty() && decision.delete.is_empty());
    assert_eq!(decision.unheard, 2, "their state is in the status already");
    // Who does not answer the new leader at all is lost after a while.
    world.answer("a", WorkerState::Ready, 15);
    world.answer("b", WorkerState::Ready, 15);
    let decision = world.decide(15);
    assert_eq!(decision.delete.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["c"]);
    assert_eq!((world.spans().len(), decision.unheard), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_another_start_does_not_help_is_a_trouble_in_its_own_words() {
    let mut world = World::with_room(200 << 20);
    let pod = world.view.workers.get_mut("a").unwrap();
    (pod.phase, pod.needs_user) = (PodPhase::Lost("its container failed"), true);
    pod.last_error = Some("no such model".into());
    let decision = world.decide(1);
    assert_eq!(decision.facts.trouble, Some(("CannotStart".into(), "peer: no such model".into())));
    assert!(decision.create.is_empty(), "it would end like the last one");
    assert!(decision.facts.waiting.unwrap().starts_with("peers end before they are ready (no such model)"));
}

#[tokio::test(start_paused = true)]
async fn replacements_that_end_before_they_serve_are_made_with_growing_pauses_though_others_serve() {
    let mut world = World::new();
    world.lose("c");
    let mut made = 0;
    for second in 4..64 {
        world.answer_all(WorkerState::Ready, second);
        let decision = world.decide(second);
        for deletion in &decision.delete {
            world.view.workers.remove(&deletion.name);
        }
        for _ in &decision.create {
            made += 1;
            let mut pod = worker(&format!("d{made}"), "spot");
            pod.phase = PodPhase::Lost("its container failed");
            world.view.workers.insert(pod.name.clone(), pod);
        }
    }
    assert!((4..=7).contains(&made), "{made} in a minute");
}

#[tokio::test(start_paused = true)]
async fn peers_that_have_served_are_replaced_at_once_however_many_are_lost() {
    let mut world = World::new();
    for (second, name) in [(4, "a"), (5, "b"), (6, "c")] {
        world.answer_all(WorkerState::Ready, second);
        world.view.workers.get_mut(name).unwrap().phase = PodPhase::Lost("its container failed");
        // Nobody asks a container that has ended.
        world.answers.remove(name);
        let decision = world.decide(second);
        assert_eq!((decision.create.len(), decision.facts.waiting), (1, None), "{name}");
        let new = format!("{name}2");
        world.lose(name);
        world.join(&new);
        world.answer(&new, WorkerState::Loading, second);
    }
}
