//! Peers that are wrong: who is found to be, and what becomes of the run.

use std::collections::BTreeMap;

use dunlin_swarm::{NumericsClass, PeerName};

use super::tests::{GATHER_MS, config, connects, hello};
use super::{Checkpoints, Conductor, ConductorConfig, ConductorEffect, ConductorEvent, Phase};
use crate::training::ids::{StageId, Step};
use crate::training::message::{
    Contribution, Held, HeldSums, Hello, Mate, PeerReport, StageStart, StateDigest, ToPeer, ToTrainer,
    TrainerReport, TrainingRole,
};

/// A run of peers, a (name, machine, stage) each.
struct Run {
    conductor: Conductor,
    now_ms: u64,
    out: Vec<ConductorEffect>,
    peers: Vec<(PeerName, StageId)>,
}

fn digest(fingerprint: u64) -> StateDigest {
    StateDigest { fingerprint, root: None }
}

impl Run {
    fn new(stages: StageId, peers: &[(&str, &str)]) -> Self {
        Self::of(config(stages), peers)
    }

    fn of(config: ConductorConfig, peers: &[(&str, &str)]) -> Self {
        let config = ConductorConfig { saves: true, checkpoint_every: 100, ..config };
        let mut run =
            Self { conductor: Conductor::new(config), now_ms: 0, out: Vec::new(), peers: Vec::new() };
        run.hear(ConductorEvent::Checkpoints(Checkpoints::None));
        for (name, host) in peers {
            run.hear(hello(name, host));
        }
        run.hear(trainer("t"));
        run.pass(GATHER_MS);
        run.load();
        run
    }

    fn hear(&mut self, event: ConductorEvent) {
        self.conductor.handle(self.now_ms, event, &mut self.out);
    }

    fn report(&mut self, name: &str, report: PeerReport) {
        self.hear(ConductorEvent::Peer(name.into(), report));
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.hear(ConductorEvent::Tick);
    }

    fn taken(&mut self) -> Vec<ConductorEffect> {
        std::mem::take(&mut self.out)
    }

    /// Everybody who is told to load has done so.
    fn load(&mut self) {
        for effect in self.taken() {
            if let ConductorEffect::ToPeer(name, ToPeer::Load(StageStart { stage, step, .. })) = effect {
                self.peers.retain(|(n, _)| *n != name);
                self.peers.push((name.clone(), stage));
                self.report(name.as_str(), PeerReport::Ready { stage, step, state: digest(1000 + step) });
            }
        }
    }

    /// Everybody who is told to empty its sums has done so.
    fn clear(&mut self) -> Vec<ConductorEffect> {
        let effects = self.taken();
        for effect in &effects {
            if let ConductorEffect::ToPeer(name, ToPeer::Clear { step, .. }) = effect {
                let stage = self.peers.iter().find(|(n, _)| n == name).unwrap().1;
                self.report(
                    name.as_str(),
                    PeerReport::Ready { stage, step: *step, state: digest(1000 + step) },
                );
            }
        }
        effects
    }

    fn members(&self, stage: StageId) -> Vec<String> {
        self.conductor.members()[stage as usize].iter().map(PeerName::to_string).collect()
    }

    /// Microbatches are added, averages formed: a step is complete. Averages have these squares, where they are not the usual.
    fn step_with(&mut self, squares: &[(&str, f64)]) {
        let step = self.conductor.step();
        for stage in 0..self.conductor.members().len() as StageId {
            let members = self.members(stage);
            for microbatch in 0..4 {
                let name = &members[microbatch as usize % members.len()];
                let attempt = self.conductor.work.attempt();
                self.report(name, PeerReport::Claim { step, microbatch, attempt });
                let contribution = Contribution { microbatch, loss: Some(1.0) };
                self.report(name, PeerReport::Done { step, contribution, took_us: 10 });
            }
        }
        self.average(squares);
    }

    fn average(&mut self, squares: &[(&str, f64)]) {
        let asked: Vec<_> = self
            .taken()
            .into_iter()
            .filter_map(|effect| match effect {
                ConductorEffect::ToPeer(name, ToPeer::Average { step, shard, round, .. }) => {
                    Some((name, step, shard, round))
                }
                _ => None,
            })
            .collect();
        for (name, step, shard, round) in asked {
            let other = squares.iter().find(|(n, _)| *n == name.as_str()).map(|(_, s)| *s);
            let squares = vec![other.unwrap_or(4.0)];
            self.report(name.as_str(), PeerReport::Averaged { step, shard, round, squares });
        }
    }

    fn step(&mut self) {
        self.step_with(&[]);
    }

    /// Updates are made by all, in this order of names; some come out as something else.
    fn apply(&mut self, order: &[&str], wrong: &[(&str, u64)]) {
        let step = self.conductor.step();
        for name in order {
            let other = wrong.iter().find(|(n, _)| n == name).map(|(_, d)| *d);
            let state = digest(other.unwrap_or(1000 + step));
            self.report(name, PeerReport::Applied { step, scale: 1.0, state });
        }
    }

    fn expelled(&self) -> Vec<String> {
        self.conductor.expelled().map(|e| e.peer.to_string()).collect()
    }

    fn notes(&self) -> String {
        let note = |effect: &ConductorEffect| match effect {
            ConductorEffect::Note(text) => Some(text.clone()),
            _ => None,
        };
        self.out.iter().filter_map(note).collect::<Vec<_>>().join("\n")
    }
}

/// All orders of some names.
fn orders<'a>(names: &[&'a str]) -> Vec<Vec<&'a str>> {
    if names.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (i, first) in names.iter().enumerate() {
        let rest: Vec<&str> = names.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, n)| *n).collect();
        for mut order in orders(&rest) {
            order.insert(0, first);
            all.push(order);
        }
    }
    all
}

#[test]
fn whose_update_comes_out_differently_is_expelled_whoever_speaks_first() {
    let names = ["a", "b", "c"];
    for order in orders(&names) {
        for wrong in names {
            let mut run = Run::new(1, &[("a", "n1"), ("b", "n2"), ("c", "n3")]);
            run.step();
            run.taken();
            run.apply(&order, &[(wrong, 666)]);
            assert_eq!(run.expelled(), [wrong], "{order:?}");
            let told = run.clear();
            let expelled = |e: &ConductorEffect| matches!(e, ConductorEffect::ToPeer(n, ToPeer::Expelled { .. }) if n.as_str() == wrong);
            assert!(told.iter().any(expelled) && told.contains(&ConductorEffect::Drop(wrong.into())));
            assert!(told.contains(&ConductorEffect::ToTrainer("t".into(), ToTrainer::Anew)));
            let others: Vec<&str> = names.into_iter().filter(|n| *n != wrong).collect();
            assert_eq!(run.members(0), others);
            assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Running, 1));
            // The run goes on, and it was none that was lost.
            run.step();
            run.apply(&others, &[]);
            assert_eq!(
                (run.conductor.step(), run.conductor.totals().lost, run.conductor.totals().expelled),
                (2, 0, 1)
            );
        }
    }
}

#[test]
fn what_was_computed_before_a_wrong_update_was_found_out_counts_for_nothing() {
    let mut run = Run::new(1, &[("a", "n1"), ("b", "n2"), ("c", "n3")]);
    run.step();
    run.apply(&["c"], &[("c", 666)]);
    // It has the wrong parameters, and computes with them.
    let attempt = run.conductor.work.attempt();
    run.report("c", PeerReport::Claim { step: 1, microbatch: 0, attempt });
    run.report(
        "c",
        PeerReport::Done {
            step: 1,
            contribution: Contribution { microbatch: 0, loss: Some(9.0) },
            took_us: 1,
        },
    );
    run.apply(&["a", "b"], &[]);
    assert_eq!(run.expelled(), ["c"]);
    run.clear();
    // Words from the attempt before: a microbatch that is done, one that is claimed.
    let finished = TrainerReport::Finished { step: 1, microbatch: 0, attempt, loss: None };
    run.hear(ConductorEvent::Trainer("t".into(), finished));
    run.report("a", PeerReport::Claim { step: 1, microbatch: 0, attempt });
    let refused = ToPeer::Grant { step: 1, microbatch: 0, granted: false };
    assert!(run.taken().contains(&ConductorEffect::ToPeer("a".into(), refused)));
    run.step();
    assert_eq!(run.conductor.step(), 2);
}

#[test]
fn two_machines_that_differ_take_all_back_and_nobody_is_named() {
    // Two peers of one machine do not outvote one of another.
    for peers in [&[("a", "n1"), ("b", "n2")][..], &[("a", "n1"), ("b", "n1"), ("c", "n2")]] {
        let names: Vec<&str> = peers.iter().map(|(n, _)| *n).collect();
        let mut run = Run::new(1, peers);
        run.step();
        run.apply(&names, &[(names[names.len() - 1], 666)]);
        assert!(run.expelled().is_empty());
        assert!(run.notes().contains("nobody can tell who is wrong"), "{}", run.notes());
        run.load();
        assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Running, 0));
        run.step();
        run.apply(&names, &[]);
        assert_eq!(run.conductor.step(), 1);
    }
}

#[test]
fn machines_that_never_agree_end_the_run_with_their_names() {
    let mut run = Run::new(1, &[("a", "n1"), ("b", "n2")]);
    for _ in 0..4 {
        assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Running, 0));
        run.step();
        run.apply(&["a", "b"], &[("b", 666)]);
        run.load();
    }
    let Phase::Failed(why) = run.conductor.phase() else { panic!("it goes on") };
    assert!(why.contains("a and b have different states of stage 0 after step 1"), "{why}");
}

#[test]
fn whose_average_differs_is_expelled_and_a_tie_is_formed_again() {
    let mut run = Run::new(1, &[("a", "n1"), ("b", "n2"), ("c", "n3")]);
    run.step_with(&[("b", 5.0)]);
    assert_eq!((run.expelled(), run.conductor.step()), (vec!["b".to_owned()], 0));
    run.clear();
    run.step();
    assert_eq!(run.conductor.step(), 1);

    let mut run = Run::new(1, &[("a", "n1"), ("b", "n2")]);
    run.step_with(&[("b", 5.0)]);
    assert_eq!((run.expelled().len(), run.conductor.step()), (0, 0));
    run.pass(50);
    run.average(&[]);
    assert_eq!(run.conductor.step(), 1, "a bit that flipped on the way does not do so again");
    // Again and again: all go back.
    run.apply(&["a", "b"], &[]);
    run.step_with(&[("b", 5.0)]);
    for _ in 0..2 {
        run.pass(50);
        run.average(&[("b", 5.0)]);
    }
    assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Gathering, 0));
}

#[test]
fn a_peer_that_knows_that_its_memory_changed_is_replaced() {
    let mut run = Run::new(2, &[("a", "n1"), ("b", "n2"), ("c", "n3"), ("d", "n4")]);
    let (name, stage) = run.peers[0].clone();
    let what = "a parameter is not what was written".to_owned();
    run.report(name.as_str(), PeerReport::Corrupt { what: what.clone() });
    assert_eq!(run.expelled(), [name.to_string()]);
    assert!(run.notes().contains(&what));
    run.clear();
    assert_eq!((run.conductor.phase(), run.members(stage).len()), (&Phase::Running, 1));
    // It is the last of its stage: all go back rather than on with what it may have done.
    let last = run.members(stage)[0].clone();
    run.report(&last, PeerReport::Corrupt { what });
    assert_eq!(*run.conductor.phase(), Phase::Gathering);
}

#[test]
fn a_report_of_a_far_step_expels_who_made_it_and_disables_nothing() {
    let mut run = Run::new(1, &[("a", "n1"), ("b", "n2"), ("c", "n3"), ("d", "n4")]);
    run.step();
    run.report("d", PeerReport::Applied { step: 1_000_000, scale: 1.0, state: digest(1) });
    assert_eq!(run.expelled(), ["d"]);
    for (name, fingerprint) in [("a", 1001), ("b", 666), ("c", 1001)] {
        run.report(name, PeerReport::Ready { stage: 0, step: 1, state: digest(fingerprint) });
    }
    assert_eq!(run.expelled(), ["d", "b"]);
}

/// A leaver is heard as well: what it hands over was computed with its state.
#[test]
fn a_leaver_with_another_state_is_expelled_and_what_it_gave_is_done_again() {
    let mut run = Run::of(
        ConductorConfig { delayed_updates: true, ..config(1) },
        &[("a", "n1"), ("b", "n2"), ("c", "n3")],
    );
    let attempt = run.conductor.work.attempt();
    run.report("c", PeerReport::Claim { step: 1, microbatch: 0, attempt });
    let contribution = Contribution { microbatch: 0, loss: Some(1.0) };
    run.report("c", PeerReport::Done { step: 1, contribution, took_us: 10 });
    run.step();
    run.report("c", PeerReport::Leaving { within_ms: 0 });
    let takes = |e: &ConductorEffect| matches!(e, ConductorEffect::ToPeer(_, ToPeer::Take { step: 1, from, .. }) if from.name.as_str() == "c");
    assert!(run.out.iter().any(takes), "{:?}", run.out);
    run.apply(&["c"], &[("c", 666)]);
    run.report("a", PeerReport::Taken { step: 1, from: "c".into() });
    run.apply(&["a", "b"], &[]);
    assert_eq!(run.expelled(), ["c"]);
    assert!(run.conductor.work.attempt() > attempt, "the step is begun anew");
}

/// One that follows makes updates itself: when the only one that serves has another state then, nobody can tell who is wrong.
#[test]
fn a_newcomer_whose_own_update_comes_out_otherwise_is_not_taken_to_be_wrong() {
    let mut run = Run::new(1, &[("a", "n1")]);
    let attempt = run.conductor.work.attempt();
    for microbatch in 0..4 {
        run.report("a", PeerReport::Claim { step: 0, microbatch, attempt });
        let contribution = Contribution { microbatch, loss: Some(1.0) };
        run.report("a", PeerReport::Done { step: 0, contribution, took_us: 10 });
    }
    run.hear(hello("b", "n2"));
    run.pass(100);
    run.report("b", PeerReport::Ready { stage: 0, step: 0, state: digest(1000) });
    run.average(&[]);
    assert_eq!(run.conductor.step(), 1);
    run.apply(&["a"], &[]);
    run.report("b", PeerReport::Ready { stage: 0, step: 1, state: digest(666) });
    assert_eq!(*run.conductor.phase(), Phase::Gathering, "{}", run.notes());
    assert!(run.notes().contains("nobody can tell who is wrong"), "{}", run.notes());
}

fn holds(name: &str, stage: StageId, step: Step) -> ConductorEvent {
    let held = Held { stage, step, scale: Some(1.0), state: digest(1000 + step), ..Held::default() };
    said(name, held)
}

fn said(name: &str, held: Held) -> ConductorEvent {
    connects(name, "", Some(held))
}

/// A trainer connects.
fn trainer(name: &str) -> ConductorEvent {
    let me = Mate { name: name.into(), addr: String::new(), host: String::new() };
    let role = TrainingRole::Trainer { data: String::new() };
    ConductorEvent::Connected(Hello { me, arithmetic: Some(NumericsClass::FIRST), role })
}

/// A conductor without memory, and what it hears.
fn restarted(hellos: Vec<ConductorEvent>) -> Run {
    let mut run = Run { conductor: Conductor::new(config(2)), now_ms: 0, out: Vec::new(), peers: Vec::new() };
    for hello in hellos {
        run.hear(hello);
    }
    run.pass(GATHER_MS);
    run
}

#[test]
fn a_hello_from_the_future_costs_nothing() {
    let sums = vec![HeldSums { done: Vec::new(), adding: vec![7; 1000] }; 50];
    let absurd = [
        Held { stage: 1, step: 9, ..Held::default() },
        Held { stage: 1, step: 1_000_000, ..Held::default() },
        Held { stage: 77, step: 6, ..Held::default() },
        Held { stage: 1, step: 6, sums, ..Held::default() },
        Held { stage: 1, step: 6, averaged: BTreeMap::from([(9, vec![1.0])]), ..Held::default() },
    ];
    for prophet in absurd {
        let run =
            restarted(vec![said("x", prophet.clone()), holds("a", 0, 6), holds("b", 1, 6), holds("c", 1, 6)]);
        assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Running, 6), "{prophet:?}");
        assert_eq!(run.members(1), ["b", "c"]);
        // It gets what it needs like any newcomer.
        let fetches = |e: &ConductorEffect| matches!(e, ConductorEffect::ToPeer(n, ToPeer::Fetch(_)) if n.as_str() == "x");
        assert!(run.out.iter().any(fetches), "{prophet:?}");
    }
}

/// The step and the scale of the update before it belong together.
#[test]
fn a_peer_that_missed_an_update_makes_it_with_its_scale_whatever_was_found_meanwhile() {
    let scales = |run: &mut Run| -> Vec<(Step, f32)> {
        let apply = |effect| match effect {
            ConductorEffect::ToPeer(_, ToPeer::Apply { step, scale, .. }) => Some((step, scale)),
            _ => None,
        };
        run.taken().into_iter().filter_map(apply).collect()
    };
    let mut run = Run::of(ConductorConfig { clip: Some(0.5), ..config(1) }, &[("a", "n1"), ("b", "n2")]);
    run.step();
    let (_, first) = scales(&mut run)[0];
    run.apply(&["a", "b"], &[]);
    run.step_with(&[("a", 100.0), ("b", 100.0)]);
    let (_, second) = scales(&mut run)[0];
    assert!(run.conductor.step() == 2 && first != second);
    // It stands still, and then learns that the newest sound checkpoint is that of step 1, where one of the peers is.
    run.hear(ConductorEvent::Woke);
    run.hear(ConductorEvent::Checkpoints(Checkpoints::Newest(1)));
    run.hear(said(
        "a",
        Held { stage: 0, step: 1, scale: Some(first), state: digest(1001), ..Held::default() },
    ));
    let averaged = BTreeMap::from([(0, vec![4.0])]);
    run.hear(said("b", Held { stage: 0, step: 0, averaged, state: digest(1000), ..Held::default() }));
    run.pass(GATHER_MS);
    assert_eq!(scales(&mut run), [(0, first)]);
}

/// A conductor is killed when it has told some peers to begin the step anew, and others have not heard of it.
#[test]
fn sums_of_an_attempt_that_was_given_up_do_not_count_after_a_restart() {
    let has = |name: &str, stage, attempt, microbatches: &[u32]| {
        let done = microbatches.iter().map(|&microbatch| Contribution { microbatch, loss: None }).collect();
        let sums = vec![HeldSums { done, adding: Vec::new() }];
        said(
            name,
            Held { stage, step: 6, scale: Some(1.0), state: digest(1006), attempt, sums, ..Held::default() },
        )
    };
    let cleared = |run: &Run| -> Vec<String> {
        let clears = run.out.iter().filter_map(|effect| match effect {
            ConductorEffect::ToPeer(name, ToPeer::Clear { .. }) => Some(name.to_string()),
            _ => None,
        });
        clears.collect()
    };
    let life = 1 << 20;
    let run =
        restarted(vec![has("a", 0, life + 4, &[1]), has("b", 0, life + 5, &[]), has("c", 1, life + 5, &[2])]);
    assert_eq!(cleared(&run), ["a"]);
    // What one life of the conductor has left to the next counts.
    let run =
        restarted(vec![has("a", 0, life + 4, &[1]), has("b", 0, 2 * life, &[]), has("c", 1, 2 * life, &[2])]);
    assert!(cleared(&run).is_empty());
}

#[test]
fn of_what_peers_hold_the_newest_whole_step_counts() {
    let run = restarted(vec![holds("a", 0, 6), holds("b", 0, 7), holds("c", 1, 6)]);
    assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Running, 6));
    // One that can make the last update is as good as one that has.
    let follower = Held { stage: 1, step: 6, averaged: BTreeMap::from([(1, vec![1.0])]), ..Held::default() };
    let run = restarted(vec![holds("a", 0, 6), holds("b", 0, 7), said("c", follower)]);
    assert_eq!(run.conductor.step(), 7);
    // Nobody holds one of the stages at all: that is waited for.
    let mut run = restarted(vec![holds("a", 0, 6)]);
    assert_eq!(*run.conductor.phase(), Phase::Gathering);
    run.hear(holds("b", 1, 6));
    run.pass(50);
    assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Running, 6));
}

#[test]
fn who_holds_another_state_than_most_does_not_serve_after_a_restart() {
    let wrong = Held { stage: 1, step: 6, state: digest(666), ..Held::default() };
    let run = restarted(vec![holds("a", 0, 6), said("w", wrong), holds("b", 1, 6), holds("c", 1, 6)]);
    assert_eq!(run.expelled(), ["w"]);
}

/// Nor does who has copied a state have a voice when the conductor is another one than at that time.
#[test]
fn a_copy_of_a_wrong_state_is_no_second_witness_after_a_restart() {
    let has = |name, fingerprint, copied| {
        said(
            name,
            Held {
                stage: 1,
                step: 6,
                scale: Some(1.0),
                state: digest(fingerprint),
                copied,
                ..Held::default()
            },
        )
    };
    let right = || has("a", 1006, false);
    let run = restarted(vec![holds("z", 0, 6), right(), has("b", 666, false), has("c", 666, true)]);
    assert!(run.expelled().is_empty(), "{:?}: {}", run.expelled(), run.notes());
    assert!(run.notes().contains("nobody can tell who is wrong"), "{}", run.notes());
    // Whoever has made the update is believed against any number of copies.
    let run = restarted(vec![holds("z", 0, 6), right(), has("b", 666, true), has("c", 666, true)]);
    assert_eq!(run.expelled(), ["b", "c"]);
    // A state that was on its way when the conductor came is one of them.
    let mut run = Run { conductor: Conductor::new(config(2)), now_ms: 0, out: Vec::new(), peers: Vec::new() };
    for event in [holds("z", 0, 6), right(), has("b", 666, false), hello("c", "n3")] {
        run.hear(event);
    }
    run.report("c", PeerReport::Ready { stage: 1, step: 6, state: digest(666) });
    run.pass(GATHER_MS);
    assert!(run.expelled().is_empty(), "{:?}: {}", run.expelled(), run.notes());
}

#[test]
fn claims_that_are_made_before_a_run_goes_on_are_bounded() {
    let mut run = Run { conductor: Conductor::new(config(2)), now_ms: 0, out: Vec::new(), peers: Vec::new() };
    run.hear(holds("a", 0, 6));
    for microbatch in 0..100_000 {
        run.report("a", PeerReport::Claim { step: 6, microbatch, attempt: 1 });
    }
    assert!(run.conductor.peers.all().values().all(|p| p.claims.len() <= 1024));
}

#[test]
fn peers_of_another_arithmetic_and_those_that_were_expelled_are_turned_away() {
    let mut run = Run::new(1, &[("a", "n1"), ("b", "n2"), ("c", "n3")]);
    run.taken();
    let me = Mate { name: "d".into(), addr: String::new(), host: String::new() };
    run.hear(ConductorEvent::Connected(Hello {
        me,
        arithmetic: NumericsClass::from_number(2),
        role: TrainingRole::Peer { held: None },
    }));
    assert!(run.notes().contains("version 2 of the arithmetic, this run with 1"), "{}", run.notes());
    assert!(run.taken().contains(&ConductorEffect::Drop("d".into())));
    run.report("c", PeerReport::Corrupt { what: "a bit".to_owned() });
    run.clear();
    run.hear(hello("c", "n3"));
    assert!(run.taken().contains(&ConductorEffect::Drop("c".into())));
    assert_eq!(run.members(0), ["a", "b"]);
}

#[test]
fn a_false_failure_changes_nothing_and_what_nobody_can_compute_ends_the_run() {
    let mut run = Run::new(1, &[("a", "n1"), ("b", "n1"), ("c", "n2")]);
    let attempt = run.conductor.work.attempt();
    let fails = |run: &mut Run, trainer: &str, peers: &[&str]| {
        let given = |effect: &ConductorEffect| matches!(effect, ConductorEffect::ToTrainer(name, ToTrainer::Work { step: 0, microbatch: 1, .. }) if name.as_str() == trainer);
        let was_given = run.out.iter().any(given);
        run.out.clear();
        let report = TrainerReport::Failed {
            step: 0,
            microbatch: 1,
            attempt,
            peers: peers.iter().map(|n| (*n).into()).collect(),
            what: "a value is not finite".to_owned(),
        };
        run.hear(ConductorEvent::Trainer(trainer.into(), report));
        was_given
    };
    // One machine is not believed as long as there is another.
    assert!(fails(&mut run, "t", &["a", "b"]), "{:?}", run.out);
    assert_eq!(*run.conductor.phase(), Phase::Running);
    // Nor is somebody who is no trainer of this run.
    let out = run.taken();
    fails(&mut run, "stranger", &["a", "c"]);
    assert_eq!(*run.conductor.phase(), Phase::Running);
    run.out = out;
    // Nor is one trainer, as long as there is another.
    run.hear(trainer("u"));
    assert!(fails(&mut run, "t", &["a", "c"]), "{:?}", run.out);
    assert_eq!(*run.conductor.phase(), Phase::Running);
    assert!(run.notes().contains("asked by t; it is driven once more"), "{}", run.notes());
    assert!(fails(&mut run, "u", &["a", "c"]), "the other one drives it: {:?}", run.out);
    let Phase::Failed(why) = run.conductor.phase() else { panic!("it goes on") };
    assert!(why.contains("microbatch 1: a value is not finite") && why.contains("a and c"), "{why}");

    let mut run = Run::new(1, &[("a", "n1"), ("c", "n2")]);
    let contradicted = |peer: &str, by: &str| TrainerReport::Contradicted {
        step: 0,
        microbatch: 1,
        attempt,
        peer: peer.into(),
        by: by.into(),
        what: "a value is not finite".to_owned(),
    };
    run.hear(ConductorEvent::Trainer("t".into(), contradicted("a", "a")));
    run.hear(ConductorEvent::Trainer("t".into(), contradicted("a", "nobody")));
    assert!(run.expelled().is_empty());
    run.hear(ConductorEvent::Trainer("t".into(), contradicted("a", "c")));
    assert_eq!((run.expelled(), run.conductor.phase()), (vec!["a".to_owned()], &Phase::Running));
}

/// Who has copied a state from one that is wrong does not outvote those that have made the update themselves.
#[test]
fn a_copy_of_a_wrong_state_is_no_second_witness() {
    let mut run = Run::new(1, &[("a", "n1"), ("b", "n2")]);
    run.step();
    // b is the first with the update, and it has come out wrong. A newcomer gets its state from there.
    run.apply(&["b"], &[("b", 666)]);
    run.hear(hello("c", "n3"));
    run.report("c", PeerReport::Ready { stage: 0, step: 1, state: digest(666) });
    run.apply(&["a"], &[]);
    assert!(run.expelled().is_empty(), "{}", run.notes());
    assert!(run.notes().contains("nobody can tell who is wrong"), "{}", run.notes());
}
