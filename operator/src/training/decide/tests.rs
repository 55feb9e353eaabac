//! Lives of runs: decisions in virtual time.

use std::collections::BTreeMap;

use dunlin_crds::TrainingSwarmStatus;
use tokio::time::Instant;

use super::*;
use crate::observe::SwarmView;
use crate::peers::observation::{Degraded, ObservedStage};
use crate::peers::report::WorkerReport;
use crate::peers::{ObservedCheckpoint, RunPhase, WorkerRecord, WorkerState};
use crate::swarm::{Reporter, SwarmKind};
use crate::testing::{config, training_swarm, worker};

const SILENCE: Duration = Duration::from_secs(3);

/// A run of two stages with two peers each, one trainer and a conductor, all of which a cluster runs at once.
struct World {
    swarm: TrainingSwarm,
    view: SwarmView,
    answers: BTreeMap<String, WorkerRecord>,
    state: RunState,
    start: Instant,
    second: u64,
    made: usize,
}

impl World {
    /// All pods are there and the conductor says that it trains.
    fn training() -> Self {
        let mut swarm = training_swarm(1);
        swarm.spec.trainers.replicas = 1;
        let mut world = Self {
            swarm,
            view: SwarmView::default(),
            answers: BTreeMap::new(),
            state: RunState::default(),
            start: Instant::now(),
            second: 0,
            made: 0,
        };
        let decision = world.decide();
        assert!(decision.plan == Lifecycle::Train);
        assert_eq!(decision.create.len(), 6, "a conductor, four peers, a trainer");
        world.run(&decision);
        world.conduct(RunPhase::Training, 10, Some(5));
        world
    }

    fn desired(&self) -> TrainingDesired {
        TrainingDesired::new(&self.swarm, &config())
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs(self.second)
    }

    /// Everybody who is not silenced answers, a second passes, and the operator decides.
    fn decide(&mut self) -> TrainingDecision {
        self.second += 1;
        let now = self.now();
        for answer in self.answers.values_mut().filter(|a| a.report.is_some()) {
            answer.at = Some(now);
        }
        let desired = self.desired();
        let (view, answers, since) = (&self.view, &self.answers, self.start);
        let evidence = Evidence { view, answers, since, now, silence: SILENCE };
        let (decision, state) = TrainingSwarm::decide(&desired, &evidence, self.state.clone()).unwrap();
        self.state = state;
        decision
    }

    /// The status that would be written now.
    fn status(&mut self) -> TrainingSwarmStatus {
        let decision = self.decide();
        let before = self.swarm.status.clone().unwrap_or_default();
        self.swarm.next_status(&before, &self.desired(), &decision, &self.state, &config())
    }

    /// The cluster carries a decision out: pods run and answer, deleted ones are gone.
    fn run(&mut self, decision: &TrainingDecision) -> Vec<String> {
        let template = self.desired().template;
        let mut names = Vec::new();
        for (role, creation) in &decision.create {
            self.made += 1;
            let name = format!("{}-{}", creation.pool.name, self.made);
            let mut pod = worker(&name, &creation.pool.name);
            let desired = self.desired();
            let mut pools = desired.pools.iter().chain(&desired.conductor).chain(&desired.trainers);
            let hash = pools.find(|pool| pool.template.name == creation.pool.name).unwrap().hash.clone();
            (pod.template, pod.hash, pod.ready) = (template.clone(), hash, true);
            let pods = match role {
                Role::Conductor => &mut self.view.conductors,
                Role::Trainer => &mut self.view.trainers,
                _ => &mut self.view.workers,
            };
            pods.insert(name.clone(), pod);
            if *role != Role::Trainer {
                let report = WorkerReport { state: WorkerState::Ready, ..WorkerReport::default() };
                let answer = WorkerRecord {
                    report: Some(report),
                    at: Some(self.now()),
                    was_ready: true,
                    ..WorkerRecord::default()
                };
                self.answers.insert(name.clone(), answer);
            }
            names.push(name);
        }
        for gone in &decision.delete {
            for pods in [&mut self.view.conductors, &mut self.view.workers, &mut self.view.trainers] {
                pods.remove(&gone.name);
            }
            self.answers.remove(&gone.name);
        }
        names
    }

    /// The conductor says so from now on.
    fn conduct(&mut self, phase: RunPhase, step: u64, checkpoint: Option<u64>) {
        let run = Observation {
            phase,
            message: if phase == RunPhase::Failed { "the data is no UTF-8".into() } else { String::new() },
            step,
            steps: self.swarm.spec.steps.into(),
            stages: vec![ObservedStage { peers: 2, ..ObservedStage::default() }; 2],
            last_checkpoint: checkpoint
                .map(|step| ObservedCheckpoint { step, ..ObservedCheckpoint::default() }),
            ..Observation::default()
        };
        for name in self.view.conductors.keys() {
            self.answers.get_mut(name).unwrap().report.as_mut().unwrap().run = Some(run.clone());
        }
    }

    fn peer(&mut self, index: usize) -> &mut crate::observe::WorkerView {
        self.view.workers.values_mut().nth(index).unwrap()
    }
}

fn roles(decision: &TrainingDecision) -> Vec<Role> {
    decision.create.iter().map(|(role, _)| *role).collect()
}

fn deleted(decision: &TrainingDecision) -> Vec<&str> {
    decision.delete.iter().map(|d| d.name.as_str()).collect()
}

fn reasons(decision: &TrainingDecision) -> Vec<&str> {
    decision.events.iter().map(|h| h.reason.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_run_that_trains_is_left_alone() {
    let mut world = World::training();
    let decision = world.decide();
    assert!(decision.create.is_empty() && decision.delete.is_empty() && decision.plan != Lifecycle::Wait);
    assert!(decision.facts.is_whole());
    assert_eq!(decision.ready_by_kind, (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lost_peer_is_replaced_in_the_same_pass_and_told_about_once() {
    let mut world = World::training();
    world.decide();
    let victim = world.peer(1).name.clone();
    world.peer(1).phase = PodPhase::Lost("its container failed");
    let decision = world.decide();
    assert_eq!((roles(&decision), deleted(&decision)), (vec![Role::Peer], vec![victim.as_str()]));
    assert!(decision.create[0].1.replaces);
    assert_eq!(reasons(&decision), ["PeerLost"]);
    // Its termination takes its time; nobody waits for it.
    world.run(&TrainingDecision { delete: vec![], ..decision.clone() });
    world.peer(1).deleting = true;
    let next = world.decide();
    assert!(next.create.is_empty() && next.events.is_empty());
    assert!(next.facts.is_whole(), "{:?}", next.facts);
}

#[tokio::test(start_paused = true)]
async fn silence_of_a_peer_or_the_conductor_is_loss() {
    for conductor in [false, true] {
        let mut world = World::training();
        world.decide();
        let pods = if conductor { &world.view.conductors } else { &world.view.workers };
        let name = pods.keys().next().unwrap().clone();
        let answer = world.answers.get_mut(&name).unwrap();
        // What it said is known; it says nothing new.
        let (report, at) = (answer.report.take(), answer.at);
        *answer = WorkerRecord { report: None, at, was_ready: true, ..WorkerRecord::default() };
        assert!(world.decide().create.is_empty());
        drop(report);
        world.second += 2;
        let decision = world.decide();
        let expected = if conductor { Role::Conductor } else { Role::Peer };
        assert_eq!((roles(&decision), deleted(&decision)), (vec![expected], vec![name.as_str()]));
        assert!(decision.facts.kind.trained, "a run goes on while one pod is replaced");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_with_notice_is_replaced_at_once_and_left_to_hand_over() {
    let mut world = World::training();
    world.peer(0).phase = PodPhase::Draining("its node is being reclaimed");
    let decision = world.decide();
    assert_eq!((roles(&decision), deleted(&decision).len()), (vec![Role::Peer], 0));
}

#[tokio::test(start_paused = true)]
async fn there_are_never_two_conductors_unless_one_is_lost() {
    let mut world = World::training();
    let old = world.view.conductors.keys().next().unwrap().clone();
    let conductor = world.view.conductors.get_mut(&old).unwrap();
    conductor.phase = PodPhase::Draining("its node is being reclaimed");
    let decision = world.decide();
    assert_eq!((roles(&decision), deleted(&decision)), (vec![], vec![old.as_str()]));
    let conductor = world.view.conductors.get_mut(&old).unwrap();
    (conductor.phase, conductor.deleting) = (PodPhase::Draining("it is being deleted"), true);
    let decision = world.decide();
    assert!(decision.create.is_empty() && decision.delete.is_empty(), "it ends within its grace");
    // Its kubelet will never confirm it.
    let conductor = world.view.conductors.get_mut(&old).unwrap();
    (conductor.phase, conductor.node_gone) = (PodPhase::Lost("its node is not ready"), true);
    assert!(world.decide().delete[0].now);
    world.view.conductors.clear();
    world.answers.remove(&old);
    let decision = world.decide();
    assert_eq!(roles(&decision), [Role::Conductor]);
    // The new one does not know yet how far the run is; the status does not go back.
    world.run(&decision);
    world.conduct(RunPhase::Starting, 0, None);
    let decision = world.decide();
    assert_eq!(
        (decision.facts.kind.step, decision.facts.kind.trained, decision.facts.kind.training),
        (10, true, false)
    );
}

#[tokio::test(start_paused = true)]
async fn surplus_peers_go_one_after_the_other() {
    let mut world = World::training();
    world.decide();
    world.swarm.spec.pools[0].peers.min = 2;
    let first = world.decide();
    assert_eq!(first.delete.len(), 1);
    let going = first.delete[0].name.clone();
    let peer = world.view.workers.get_mut(&going).unwrap();
    (peer.phase, peer.deleting) = (PodPhase::Draining("it is being deleted"), true);
    assert!(world.decide().delete.is_empty());
    world.view.workers.remove(&going);
    world.answers.remove(&going);
    assert_eq!(world.decide().delete.len(), 1);
    // No more than one for each stage are left: nobody goes.
    let conductor = world.view.conductors.keys().next().unwrap().clone();
    let run = world.answers.get_mut(&conductor).unwrap().report.as_mut().unwrap().run.as_mut().unwrap();
    run.stages = vec![ObservedStage { peers: 1, ..ObservedStage::default() }; 2];
    assert!(world.decide().delete.is_empty());
}

#[tokio::test(start_paused = true)]
async fn suspension_waits_for_the_checkpoint_then_lets_all_go_and_goes_on_from_it() {
    let mut world = World::training();
    world.swarm.spec.suspend = true;
    let decision = world.decide();
    assert!(decision.plan == Lifecycle::Wait && decision.delete.is_empty() && decision.facts.kind.waits);
    // A peer that is lost meanwhile is replaced: its stage is needed for the checkpoint.
    world.peer(0).phase = PodPhase::Lost("its container failed");
    let decision = world.decide();
    assert_eq!(roles(&decision), [Role::Peer]);
    world.run(&decision);
    world.conduct(RunPhase::Suspending, 12, Some(5));
    assert!(world.decide().delete.is_empty());
    world.conduct(RunPhase::Suspended, 12, Some(12));
    let decision = world.decide();
    assert_eq!((decision.plan, decision.delete.len()), (Lifecycle::Clear, 6));
    world.run(&decision);
    let decision = world.decide();
    assert_eq!((decision.plan, decision.create.len()), (Lifecycle::Rest, 0));
    assert!(decision.facts.is_whole() && decision.facts.kind.step == 12);
    world.swarm.spec.suspend = false;
    let decision = world.decide();
    assert_eq!((decision.plan, decision.create.len()), (Lifecycle::Train, 6));
}

#[tokio::test(start_paused = true)]
async fn a_suspension_is_carried_through_and_new_pods_wait_for_the_old_ones() {
    let mut world = World::training();
    world.swarm.spec.suspend = true;
    world.decide();
    world.swarm.spec.suspend = false;
    assert!(world.decide().plan == Lifecycle::Wait, "the conductor may have heard of it");
    world.conduct(RunPhase::Suspended, 11, Some(11));
    let decision = world.decide();
    assert_eq!(decision.delete.len(), 6);
    let last = world.peer(3).name.clone();
    let kept = TrainingDecision {
        delete: decision.delete.iter().filter(|d| d.name != last).cloned().collect(),
        ..decision
    };
    world.run(&kept);
    let peer = world.view.workers.get_mut(&last).unwrap();
    (peer.phase, peer.deleting) = (PodPhase::Draining("it is being deleted"), true);
    let decision = world.decide();
    assert!(decision.create.is_empty() && decision.delete.is_empty());
    // One on a node that is gone is not waited for.
    let peer = world.view.workers.get_mut(&last).unwrap();
    (peer.phase, peer.node_gone) = (PodPhase::Lost("its node is not ready"), true);
    assert_eq!(world.decide().create.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_to_go_wait_for_a_conductor_for_a_bounded_time_and_only_for_steps_that_would_be_lost() {
    for (checkpoint, patience_s) in [(Some(10), 0), (Some(5), 60)] {
        let mut world = World::training();
        world.conduct(RunPhase::Training, 10, checkpoint);
        world.decide();
        let name = world.view.conductors.keys().next().unwrap().clone();
        world.view.conductors.remove(&name);
        world.answers.remove(&name);
        world.swarm.spec.suspend = true;
        let decision = world.decide();
        assert_eq!(decision.plan == Lifecycle::Wait, patience_s > 0);
        if patience_s > 0 {
            assert_eq!(roles(&decision), [Role::Conductor], "the next one has the checkpoint written");
            world.second += patience_s;
            assert_eq!(world.decide().plan, Lifecycle::Clear);
        }
    }
    let mut world = World::training();
    world.swarm.spec.suspend = true;
    world.decide();
    world.conduct(RunPhase::Suspending, 10, Some(5));
    world.second += 290;
    assert_eq!(world.decide().plan, Lifecycle::Wait);
    world.second += 10;
    assert_eq!(world.decide().plan, Lifecycle::Clear, "whatever the conductor says");
}

#[tokio::test(start_paused = true)]
async fn a_changed_manifest_takes_the_same_way_and_its_configuration_comes_after_the_old_pods() {
    let mut world = World::training();
    world.swarm.spec.optimizer.learning_rate = 0.01;
    world.peer(0).phase = PodPhase::Lost("its container failed");
    let decision = world.decide();
    assert!(
        decision.plan == Lifecycle::Wait && decision.plan != Lifecycle::Train && decision.create.is_empty()
    );
    assert_eq!(decision.delete.len(), 1);
    world.run(&decision);
    world.conduct(RunPhase::Suspended, 11, Some(11));
    let decision = world.decide();
    assert_eq!(
        (decision.plan, decision.delete.len(), decision.plan == Lifecycle::Train),
        (Lifecycle::Clear, 5, false)
    );
    world.run(&decision);
    let decision = world.decide();
    assert!(decision.plan == Lifecycle::Train);
    assert_eq!(decision.create.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn success_ends_all_pods_and_only_more_steps_start_it_again() {
    let mut world = World::training();
    world.conduct(RunPhase::Succeeded, 100, Some(100));
    let decision = world.decide();
    assert!(decision.facts.kind.finished && decision.delete.len() == 6);
    world.run(&decision);
    assert_eq!(world.decide().plan, Lifecycle::Rest);
    world.swarm.spec.optimizer.learning_rate = 0.01;
    assert_eq!(world.decide().plan, Lifecycle::Rest);
    // Another leader reads it from the status.
    world.swarm.status = Some(world.status());
    world.state = world.swarm.restored();
    assert_eq!(world.decide().plan, Lifecycle::Rest);
    world.swarm.spec.steps = 200;
    let decision = world.decide();
    assert_eq!((decision.plan, decision.create.len(), decision.facts.kind.step), (Lifecycle::Train, 6, 100));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_does_not_say_of_a_run_that_trains_that_it_does_not() {
    let mut world = World::training();
    world.swarm.status = Some(world.status());
    // Another leader: it knows the status, and has not talked to anybody.
    world.state = world.swarm.restored();
    world.start = world.now();
    world.second = 0;
    let answers = std::mem::take(&mut world.answers);
    assert_eq!(world.decide().unheard, 5, "the conductor and four peers");
    let (first, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        answers.into_iter().partition(|(name, _)| name.starts_with("conductor"));
    world.answers = first;
    assert_eq!(world.decide().unheard, 4, "the peers would be missing");
    world.answers.extend(others);
    let decision = world.decide();
    assert_eq!((decision.unheard, decision.facts.is_whole()), (0, true));
    // From then on who comes is new, and who does not answer at all has had the time.
    world.answers.clear();
    assert_eq!(world.decide().unheard, 0);
    world.state = world.swarm.restored();
    assert!(world.decide().unheard > 0);
    world.second = 14;
    let decision = world.decide();
    assert_eq!((decision.unheard, decision.facts.kind.training), (0, false));
}

#[tokio::test(start_paused = true)]
async fn a_failed_run_stalls_until_the_manifest_is_mended() {
    let mut world = World::training();
    world.decide();
    world.conduct(RunPhase::Failed, 10, Some(5));
    let decision = world.decide();
    assert_eq!(decision.facts.trouble, Some(("TrainingFailed".into(), "the data is no UTF-8".into())));
    assert!(!decision.facts.kind.trained && decision.delete.is_empty(), "logs stay readable");
    // A conductor that ends on top of that is made again with growing pauses, and the trouble stays told.
    for pause_s in [0, 4, 8] {
        let name = world.view.conductors.keys().next().unwrap().clone();
        world.view.conductors.get_mut(&name).unwrap().phase = PodPhase::Lost("its container failed");
        let decision = world.decide();
        assert!(decision.facts.trouble.is_some());
        if pause_s == 0 {
            assert_eq!(roles(&decision), [Role::Conductor]);
            world.run(&decision);
        } else {
            // What this pass found holds from the next one on.
            world.run(&decision);
            world.second += pause_s;
        }
        world.conduct(RunPhase::Failed, 10, Some(5));
    }
    world.swarm.spec.microbatch = 2;
    let decision = world.decide();
    assert_eq!(decision.plan, Lifecycle::Clear);
    assert!(decision.facts.trouble.is_none(), "it was another manifest's");
    world.run(&decision);
    assert_eq!(world.decide().create.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn trainers_that_end_before_they_are_ready_are_made_again_with_growing_pauses() {
    let mut world = World::training();
    world.view.trainers.clear();
    let mut made = 0;
    for _ in 0..30 {
        let decision = world.decide();
        made += decision.create.len();
        world.run(&decision);
        for trainer in world.view.trainers.values_mut() {
            (trainer.ready, trainer.phase) = (false, PodPhase::Lost("its container failed"));
        }
    }
    assert!((3..7).contains(&made), "{made} in 30 s");
    assert!(world.decide().facts.waiting.unwrap().contains("trainers end before"));
}

#[tokio::test(start_paused = true)]
async fn what_another_start_does_not_help_is_told_at_once_and_tried_again_seldom() {
    let mut world = World::training();
    for trainer in world.view.trainers.values_mut() {
        (trainer.ready, trainer.needs_user) = (false, true);
        trainer.phase = PodPhase::Lost("its container failed");
        trainer.last_error = Some("/data/a.txt, line 3: it is not UTF-8".to_owned());
    }
    let trouble =
        Some(("CannotStart".to_owned(), "trainer: /data/a.txt, line 3: it is not UTF-8".to_owned()));
    for _ in 0..290 {
        let decision = world.decide();
        assert_eq!(decision.facts.trouble, trouble);
        assert!(decision.create.is_empty(), "second {}", world.second);
        world.run(&decision);
    }
    // Somebody may have mended the data; the next one says.
    world.second += 20;
    let decision = world.decide();
    assert_eq!(roles(&decision), [Role::Trainer]);
    world.run(&decision);
    assert_eq!(world.decide().facts.trouble, None);
    // Another manifest waits for nothing.
    for trainer in world.view.trainers.values_mut() {
        (trainer.ready, trainer.needs_user) = (false, true);
        trainer.phase = PodPhase::Lost("its container failed");
    }
    let decision = world.decide();
    assert!(decision.create.is_empty());
    world.run(&decision);
    world.swarm.spec.microbatch = 2;
    world.conduct(RunPhase::Suspended, 10, Some(10));
    let decision = world.decide();
    world.run(&decision);
    let decision = world.decide();
    assert_eq!((decision.create.len(), decision.facts.trouble), (6, None));
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_to_go_wait_for_a_destination_that_takes_no_checkpoint() {
    let mut world = World::training();
    world.swarm.spec.suspend = true;
    let failing = Degraded { reason: "CheckpointsFailing".to_owned(), message: "no space left".to_owned() };
    let degraded = |world: &mut World, degraded: Option<&Degraded>| {
        for answer in world.answers.values_mut() {
            if let Some(run) = answer.report.as_mut().and_then(|r| r.run.as_mut()) {
                run.degraded = degraded.cloned();
            }
        }
    };
    degraded(&mut world, Some(&failing));
    for _ in 0..1000 {
        let decision = world.decide();
        assert_eq!(
            (decision.plan, decision.plan == Lifecycle::Wait),
            (Lifecycle::Wait, true),
            "second {}",
            world.second
        );
    }
    let status = world.status();
    assert!(status.conditions[0].message.ends_with(": no space left"), "{}", status.conditions[0].message);
    // One that takes the place of the conductor does not know yet whether that is still so.
    degraded(&mut world, None);
    assert!(world.decide().facts.kind.degraded.is_some());
    // A checkpoint that takes its time for another reason is not waited for like this.
    for answer in world.answers.values_mut() {
        if let Some(run) = answer.report.as_mut().and_then(|r| r.run.as_mut()) {
            run.checkpoints_known = true;
        }
    }
    let waits = (0..1000).take_while(|_| world.decide().plan == Lifecycle::Wait).count();
    assert!((290..310).contains(&waits), "{waits}");
}

#[tokio::test(start_paused = true)]
async fn a_changed_pool_is_rolled_one_pod_at_a_time_while_the_run_goes_on() {
    let mut world = World::training();
    world.swarm.spec.pools[0].memory.host = serde_json::from_value(serde_json::json!("512Mi")).unwrap();
    world.swarm.spec.trainers.resources =
        serde_json::from_value(serde_json::json!({"requests": {"cpu": "150m"}})).unwrap();
    let mut left = 5;
    for _ in 0..30 {
        let decision = world.decide();
        assert_eq!((decision.plan, decision.plan == Lifecycle::Wait), (Lifecycle::Train, false));
        assert!(decision.delete.len() <= 1 && decision.create.len() <= 1, "{decision:?}");
        assert!(decision.facts.outdated <= left && decision.facts.peers_ready >= 3, "{:?}", decision.facts);
        left = decision.facts.outdated;
        assert_eq!(decision.facts.is_whole(), left == 0);
        world.run(&decision);
        assert!(world.view.workers.len() <= 5 && world.view.trainers.len() <= 2);
    }
    assert_eq!((left, world.view.workers.len(), world.view.trainers.len()), (0, 4, 1));
    assert!(world.view.conductors.contains_key("conductor-1"), "it is as it was");
}

#[tokio::test(start_paused = true)]
async fn a_changed_conductor_goes_before_the_next_is_made() {
    let mut world = World::training();
    world.swarm.spec.conductor.pod_template =
        serde_json::from_value(serde_json::json!({"labels": {"team": "a"}})).unwrap();
    let decision = world.decide();
    assert_eq!((decision.delete.len(), decision.create.len()), (1, 0));
    assert_eq!(decision.delete[0].name, "conductor-1");
    world.run(&decision);
    let decision = world.decide();
    assert_eq!(roles(&decision), [Role::Conductor]);
    world.run(&decision);
    world.conduct(RunPhase::Training, 10, Some(5));
    assert_eq!(world.decide().facts.outdated, 0);
}
