//! Thousands of training runs with faults: the weights are those of the same steps done one after the other.

use std::collections::BTreeMap;

use dunlin_sim::training::{Kinds, Loss, Outcome, Scenario, Script, Struck, run};
use dunlin_swarm::PeerName;

/// Whom a message strikes, one after the other.
const STRUCK: [Struck; 2] = [Struck::Receiver, Struck::Sender];

fn check(scenarios: impl Iterator<Item = (String, Scenario)>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut failed = Vec::new();
    for (name, scenario) in scenarios {
        let outcome = run(&scenario);
        if !outcome.violations.is_empty() {
            failed.push(format!("{name}: {}", outcome.verdict()));
        }
        outcomes.push(outcome);
    }
    assert!(
        failed.is_empty(),
        "{} of {} runs fail; see `cargo run -p dunlin-sim -- training SEED`:\n{}",
        failed.len(),
        outcomes.len(),
        failed.join("\n")
    );
    outcomes
}

#[test]
fn four_thousand_seeds_give_the_weights_of_an_undisturbed_run() {
    let outcomes = check((0..4000).map(|seed| (format!("seed {seed}"), Scenario::from_seed(seed))));
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    for outcome in &outcomes {
        for (kind, count) in &outcome.faults {
            *faults.entry(kind).or_insert(0) += count;
        }
    }
    // The faults are real, of every kind, and they hit work that is under way.
    assert!(faults.len() == 13 && faults.values().all(|count| *count > 300), "{faults:?}");
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let (redone, lost, back) =
        (sum(|o| u64::from(o.redone)), sum(|o| o.lost), sum(|o| u64::from(o.went_back)));
    assert!(redone > 1000 && lost > 20_000 && back > 150, "{redone} redone, {lost} lost, {back} times back");
    let (moves, handed_over) = (sum(|o| u64::from(o.moves)), sum(|o| u64::from(o.handed_over)));
    assert!(moves > 3000 && handed_over > 60, "{moves} moves, {handed_over} with sums");
}

/// Stages are lost again and again, and every other checkpoint that they would go back to is damaged.
#[test]
fn damaged_checkpoints_are_passed_over_by_everybody_alike() {
    let scenarios = (0..400).map(|seed| {
        let mut scenario = Scenario::from_seed(seed);
        let loss = |n: u64| Loss { at_ms: 3500 + 5000 * n, stage: 0, peers: 9, notice_ms: 0, replaced: true };
        scenario.losses = (0..4).map(loss).collect();
        let scenario = Scenario { damages: true, checkpoint_every: 1, steps: 40, ..scenario };
        (format!("seed {seed}"), scenario)
    });
    let outcomes = check(scenarios);
    let damaged: u32 = outcomes.iter().filter_map(|o| o.faults.get("checkpoint damaged")).sum();
    let back: u32 = outcomes.iter().map(|o| o.went_back).sum();
    assert!(damaged > 800 && back > 30, "{damaged} damaged, {back} times back");
}

/// The destination of checkpoints takes nothing for a while, among other faults, at the end of the run too: every run ends well, with its last
/// state saved.
#[test]
fn no_run_ends_because_its_checkpoints_cannot_be_written() {
    let scenarios = (0..600).map(|seed| {
        let scenario = Scenario::from_seed(seed);
        let from = 2000 + 13 * seed;
        (format!("seed {seed}"), Scenario { away_ms: (from, from + 60_000), checkpoint_every: 1, ..scenario })
    });
    let outcomes = check(scenarios);
    // Nearly all are over by then but for their last checkpoint, and wait for it.
    let waited = outcomes.iter().filter(|o| o.ms > 60_000).count();
    assert!(waited > 400, "{waited}");
}

/// For every delivery of a run: the same run, where it kills whom it would reach, or whom it comes from.
#[test]
fn a_kill_at_any_message_changes_no_weight() {
    for seed in 0..3 {
        let deliveries = run(&Scenario::small(seed)).deliveries;
        assert!(deliveries > 200, "{deliveries}");
        let scenarios = (0..deliveries).flat_map(|at| STRUCK.map(|struck| (at, struck))).map(|kill_at| {
            (format!("{seed} {kill_at:?}"), Scenario { kill_at: Some(kill_at), ..Scenario::small(seed) })
        });
        let outcomes = check(scenarios);
        assert!(outcomes.iter().all(|o| o.fault_count() == 1));
    }
}

/// The same with steps that are begun before the one before is decided.
fn delayed(seed: u64) -> Scenario {
    let mut scenario = Scenario::small(seed);
    scenario.shape.delayed_updates = true;
    Scenario { steps: 5, latency_ms: 40, ..scenario }
}

#[test]
fn a_kill_at_any_message_changes_no_weight_when_updates_are_delayed() {
    for seed in 0..3 {
        let deliveries = run(&delayed(seed)).deliveries;
        let scenarios = (0..deliveries).flat_map(|at| STRUCK.map(|struck| (at, struck))).map(|kill_at| {
            (format!("{seed} {kill_at:?}"), Scenario { kill_at: Some(kill_at), ..delayed(seed) })
        });
        let outcomes = check(scenarios);
        assert!(outcomes.iter().all(|o| o.fault_count() == 1));
        // Work of a step is done again while the step behind it is under way.
        assert!(outcomes.iter().filter(|o| o.redone > 0).count() > 100);
    }
}

/// Also when an average is nearly always being formed, a newcomer takes part, and whoever leaves loses nothing.
#[test]
fn peers_come_and_go_while_averages_are_formed() {
    for (one_way_ms, average_ms) in [(5, 0), (100, 0), (400, 0), (5, 1000), (100, 3000)] {
        let script = Script {
            lives: vec![(0, None), (0, None), (0, None), (0, Some(80_000)), (20_000, None)],
            notice_ms: 20_000,
            fetch_ms: 3000,
            forward_ms: 20,
            average_ms,
            one_way_ms: Some(one_way_ms),
            end_ms: 200_000,
        };
        let mut scenario = Scenario { peers: 0, steps: 10_000, script: Some(script), ..Scenario::small(1) };
        scenario.shape.delayed_updates = true;
        let outcome = &check([(format!("{one_way_ms} ms, {average_ms} ms"), scenario)].into_iter())[0];
        let share =
            f64::from(outcome.added[&PeerName::from("p5")]) / f64::from(outcome.added[&PeerName::from("p1")]);
        assert!(share > 0.3, "{one_way_ms} ms, {average_ms} ms: {:?}", outcome.added);
        assert_eq!((outcome.redone, outcome.went_back), (0, 0), "{one_way_ms} ms, {average_ms} ms");
    }
}

/// Two stages; three of the four peers of one are lost while the run goes on.
fn lopsided(seed: u64) -> Scenario {
    let mut scenario = Scenario::small(seed);
    scenario.shape.microbatches = 12;
    scenario.losses =
        vec![Loss { at_ms: 4500, stage: (seed % 2) as u32, peers: 3, notice_ms: 0, replaced: false }];
    Scenario { peers: 8, steps: 12, slowness: vec![20; 8], ..scenario }
}

#[test]
fn a_lopsided_swarm_becomes_balanced_and_stays_so() {
    let outcomes = check((0..40).map(|seed| (format!("seed {seed}"), lopsided(seed))));
    for (seed, outcome) in outcomes.iter().enumerate() {
        let sizes: Vec<usize> = outcome.members.iter().map(Vec::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 5, "{seed}: {sizes:?}");
        assert!(sizes.iter().all(|n| *n >= 2), "{seed}: {sizes:?}");
        // One peer has to go, and one goes.
        assert_eq!((outcome.moves, outcome.went_back), (1, 0), "{seed}");
    }
}

#[test]
fn equal_peers_that_are_balanced_stay_where_they_are() {
    let scenarios = (0..40).map(|seed| {
        let mut scenario = lopsided(seed);
        scenario.losses.clear();
        scenario.cooldown_ms = 0;
        scenario.peers = 4 + (seed % 5) as u32;
        (format!("seed {seed}"), scenario)
    });
    assert!(check(scenarios).iter().all(|o| o.moves == 0 && o.redone == 0));
}

/// Four peers of two stages, the `slow` ones at a third of the speed of the others.
fn with_slow_peers(slow: [bool; 4]) -> Vec<Outcome> {
    let scenarios = (0..20).map(|seed| {
        let mut scenario = Scenario::small(seed);
        scenario.shape.microbatches = 48;
        let slowness = slow.map(|slow| if slow { 60 } else { 20 }).to_vec();
        // The time on the way is part of what a call takes; here it is short.
        (format!("seed {seed}"), Scenario { steps: 12, cooldown_ms: 0, latency_ms: 2, slowness, ..scenario })
    });
    let outcomes = check(scenarios);
    let is_slow = |name: &PeerName| name.0.trim_start_matches('p').parse().is_ok_and(|n: usize| slow[n - 1]);
    for outcome in &outcomes {
        // Both in one stage would hold up the other.
        let slows: Vec<usize> =
            outcome.members.iter().map(|m| m.iter().filter(|n| is_slow(n)).count()).collect();
        assert_eq!(slows, [1, 1], "{:?}", outcome.members);
    }
    outcomes
}

#[test]
fn slow_peers_are_spread_over_the_stages() {
    // In the order of their names they begin in turns, so that one stage has both.
    let outcomes = with_slow_peers([false, true, false, true]);
    assert!(outcomes.iter().all(|o| o.moves >= 2), "{:?}", outcomes[0].members);
}

#[test]
fn a_peer_at_a_third_of_the_speed_does_a_third_of_the_work() {
    for outcome in with_slow_peers([false, false, true, true]) {
        assert_eq!(outcome.moves, 0);
        for members in &outcome.members {
            let mut added: Vec<u32> = members.iter().filter_map(|n| outcome.added.get(n)).copied().collect();
            added.sort_unstable();
            let ratio = f64::from(added[1]) / f64::from(added[0]);
            assert!((2.4..3.6).contains(&ratio), "{:?}", outcome.added);
        }
    }
}

/// All peers of a stage learn in the middle of a step that they will be gone, and nobody new comes.
fn drained(seed: u64) -> Scenario {
    let mut scenario = Scenario::small(seed);
    scenario.shape.microbatches = 6;
    let at_ms = 3800 + 40 * (seed % 8);
    scenario.losses =
        vec![Loss { at_ms, stage: (seed % 2) as u32, peers: 3, notice_ms: 7000, replaced: false }];
    Scenario { peers: 6, steps: 16, slowness: vec![20; 6], ..scenario }
}

#[test]
fn who_moves_in_the_middle_of_a_step_hands_its_sums_over() {
    let outcomes = check((0..200).map(|seed| (format!("seed {seed}"), drained(seed))));
    assert!(outcomes.iter().all(|o| o.redone == 0 && o.went_back == 0));
    assert!(outcomes.iter().all(|o| o.members.iter().all(|m| !m.is_empty())));
    let handed_over: u32 = outcomes.iter().map(|o| o.handed_over).sum();
    assert!(handed_over > 60, "{handed_over}");
}

/// For every delivery of a run in which somebody moves, at the edge of a step and within one: the same run with a kill there.
#[test]
fn a_kill_at_any_message_of_a_move_changes_no_weight() {
    for (scenario, brings) in [(Scenario { steps: 6, ..lopsided(1) }, 0), (drained(4), 1)] {
        let undisturbed = run(&scenario);
        assert_eq!((undisturbed.moves, undisturbed.handed_over), (1, brings), "{:?}", undisturbed.members);
        let scenarios = (0..undisturbed.deliveries)
            .flat_map(|at| STRUCK.map(|struck| (at, struck)))
            .map(|kill_at| (format!("{kill_at:?}"), Scenario { kill_at: Some(kill_at), ..scenario.clone() }));
        check(scenarios);
    }
}

#[test]
fn with_notice_nothing_is_computed_again() {
    let scenarios = (0..1200).map(|seed| {
        let scenario = Scenario { kinds: Kinds::Notice, ..Scenario::from_seed(seed) };
        (format!("seed {seed}"), scenario)
    });
    let outcomes = check(scenarios);
    let notices: u32 = outcomes.iter().filter_map(|o| o.faults.get("notice")).sum();
    assert!(notices > 1200, "{notices}");
    let (moves, handed_over): (u32, u32) =
        (outcomes.iter().map(|o| o.moves).sum(), outcomes.iter().map(|o| o.handed_over).sum());
    assert!(moves > 1600 && handed_over > 5, "{moves} moves, {handed_over} with sums");
}

/// A checkpoint at every step, so that its manifest is being written most of the time: it is used, if it becomes complete.
#[test]
fn all_peers_killed_at_any_message_go_on_from_the_checkpoint_that_is_being_completed() {
    for seed in 0..3 {
        let scenario = Scenario { checkpoint_every: 1, steps: 4, ..Scenario::small(seed) };
        let deliveries = run(&scenario).deliveries;
        let scenarios = (0..deliveries).map(|at| {
            let kill_at = Some((at, Struck::AllPeers));
            (format!("{seed} {at}"), Scenario { kill_at, ..scenario.clone() })
        });
        let outcomes = check(scenarios);
        assert!(outcomes.iter().filter(|o| o.went_back > 0).count() > 20);
    }
}

/// Memory that changes, updates that come out wrong, false failures, other averages, hellos and reports from the future: nothing of it gets into a weight, or ends a run.
#[test]
fn whoever_is_wrong_changes_no_weight_and_ends_no_run() {
    let outcomes = check((0..2000).map(|seed| (format!("wrong {seed}"), Scenario::wrong(seed))));
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    for outcome in &outcomes {
        for (kind, count) in &outcome.faults {
            *faults.entry(kind).or_insert(0) += count;
        }
    }
    for kind in [
        "memory flips",
        "update comes out wrong",
        "false failure",
        "other averages",
        "other checkpoint",
        "hello from the future",
        "wrong chunk given",
    ] {
        assert!(faults[kind] > 150, "{faults:?}");
    }
    assert!(faults["report of a far step"] > 150, "{faults:?}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 17, 99] {
        let trace = || run(&Scenario { trace: true, ..Scenario::from_seed(seed) }).trace;
        assert!(trace().len() > 100);
        assert_eq!(trace(), trace());
    }
}
