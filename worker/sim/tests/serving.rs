//! What losses, queues and slow peers cost: rows are counted.

use dunlin_protocol::gateway::Disturbance;
use dunlin_sim::serving::{Fault, Outcome, Scenario, run};
use dunlin_swarm::NumericsClass;

/// Another class than that of all in the beginning.
fn second() -> NumericsClass {
    NumericsClass::from_number(2).expect("2 is a version")
}

fn sound(scenario: &Scenario) -> Outcome {
    let outcome = run(scenario);
    if !outcome.violations.is_empty() {
        let traced = run(&Scenario { trace: true, ..scenario.clone() });
        panic!("{:?}\n{scenario:?}\n{}", outcome.violations, traced.trace.join("\n"));
    }
    outcome
}

/// Rows computed again, for every layer.
fn again(outcome: &Outcome) -> Vec<u64> {
    outcome.again.values().copied().collect()
}

/// Checks that no session was disturbed, and no row of the six layers computed again.
#[track_caller]
fn undisturbed(seed: u64, outcome: &Outcome) {
    let found = (outcome.recovered(), again(outcome));
    assert_eq!(found, (0, vec![0; 6]), "seed {seed}: {:?}", outcome.recoveries);
}

#[test]
fn a_holder_that_comes_back_after_two_seconds_gets_only_the_lost_layers_replayed() {
    for seed in 0..50 {
        let kill = Fault::Kill { place: 1, replaced_ms: 2000, arithmetic: NumericsClass::FIRST };
        let scenario = Scenario {
            shadows: false,
            prompt_max: 100,
            answer_max: 300,
            is_exact: true,
            plan: vec![(1500, kill)],
            ..Scenario::quiet(seed)
        };
        let outcome = sound(&scenario);
        assert_eq!(outcome.recovered(), 1, "seed {seed}");
        // Layers 2 and 3 had all positions. The step on its way may be made again on every hop, and nothing else.
        let again = again(&outcome);
        assert!(again[2] > 100 && again[3] == again[2], "seed {seed}: {again:?}");
        assert!([0, 1, 4, 5].into_iter().all(|layer| again[layer] <= 2), "seed {seed}: {again:?}");
        assert!(
            outcome.replayed_rows.abs_diff(again[2]) <= 2,
            "seed {seed}: {}, {again:?}",
            outcome.replayed_rows
        );
        // A wait ends when the holder is there.
        assert!(outcome.stall_ms_max < 2000 + 300, "seed {seed}: {} ms", outcome.stall_ms_max);
    }
}

#[test]
fn waiting_in_line_disturbs_nobody() {
    for seed in 0..10 {
        // The last of 40 prompts has its turn long after what would be a stall.
        let scenario = Scenario {
            sessions: 40,
            prompt_max: 400,
            answer_max: 24,
            is_exact: true,
            running_max: 64,
            row_us: 400,
            ..Scenario::quiet(seed)
        };
        let outcome = sound(&scenario);
        assert!(outcome.finished_ms > 10_000, "{} ms", outcome.finished_ms);
        undisturbed(seed, &outcome);
    }
}

#[test]
fn short_of_pages_sessions_wait_and_none_is_computed_twice() {
    for seed in 0..10 {
        // Each peer has room for three sessions of its span at once.
        let scenario = Scenario {
            gateways: 1,
            sessions: 24,
            prompt_max: 200,
            answer_max: 60,
            is_exact: true,
            running_max: 64,
            pages: 3 * 2 * 17,
            ..Scenario::quiet(seed)
        };
        let outcome = sound(&scenario);
        undisturbed(seed, &outcome);
    }
}

#[test]
fn answers_that_outgrow_the_pages_end_one_after_the_other() {
    for seed in 0..10 {
        // Two are let in, for which there are not enough pages in the end: the younger makes room.
        let scenario = Scenario {
            sessions: 3,
            prompt_max: 100,
            answer_max: 600,
            is_exact: true,
            running_max: 64,
            pages: 2 * 64,
            ..Scenario::quiet(seed)
        };
        let outcome = sound(&scenario);
        assert!(
            outcome.recoveries.keys().all(|reason| *reason == Disturbance::NoPages),
            "{:?}",
            outcome.recoveries
        );
        assert!(outcome.recovered() > 0);
    }
}

#[test]
fn answers_leave_a_peer_that_is_ten_times_as_slow_and_new_ones_avoid_it() {
    let mut moved_in_all = 0;
    for seed in 0..20 {
        let slow = |factor| Scenario {
            sessions: 6,
            asked_ms: 12_000,
            prompt_max: 40,
            answer_max: 400,
            is_exact: true,
            running_max: 64,
            row_us: 1500,
            delay_ms: 1,
            plan: vec![(2000, Fault::Slow { place: 1, factor })],
            ..Scenario::quiet(seed)
        };
        let (calm, outcome) = (sound(&slow(1)), sound(&slow(10)));
        assert_eq!(calm.recovered(), 0, "seed {seed}: {:?}", calm.recoveries);
        let moved = outcome.recoveries.get(&Disturbance::Slow).copied().unwrap_or(0);
        assert!(moved <= 6 && outcome.recovered() == moved, "seed {seed}: {:?}", outcome.recoveries);
        let (usual_ms, slow_ms) = (calm.finished_ms, outcome.finished_ms);
        assert!(slow_ms < usual_ms * 2, "{usual_ms} ms, {slow_ms} ms");
        moved_in_all += moved;
    }
    assert!(moved_in_all > 20, "{moved_in_all}");
}

#[test]
fn a_replacement_with_other_arithmetic_gets_new_sessions_only() {
    for seed in 0..20 {
        // Whoever has the shadow of the lost one goes on with what began on it; new sessions have a way of each version.
        let kill = |place| Fault::Kill { place, replaced_ms: 300, arithmetic: second() };
        let scenario = Scenario {
            sessions: 8,
            asked_ms: 3000,
            answer_max: 40,
            plan: vec![(1500, kill(1))],
            ..Scenario::quiet(seed)
        };
        sound(&scenario);
    }
}

#[test]
fn an_update_to_other_arithmetic_changes_no_answer() {
    for seed in 0..40 {
        // New sessions come all the while, and peers are lost and replaced by both versions in the middle of it.
        let lost =
            Fault::Kill { place: (seed % 3) as usize, replaced_ms: 200, arithmetic: NumericsClass::FIRST };
        let plan = vec![(800, lost), (1500, Fault::Update { arithmetic: second() })];
        let scenario = Scenario {
            sessions: 24,
            asked_ms: 6000,
            answer_max: 60,
            row_us: 300,
            plan,
            ..Scenario::quiet(seed)
        };
        let outcome = sound(&scenario);
        assert!(outcome.finished_ms > 3000, "seed {seed}: {} ms", outcome.finished_ms);
    }
}

/// Eight answers at 600 positions of a swarm of `peers`, the second of which is killed and replaced after `replaced_ms`.
fn eight_to_replay(seed: u64, peers: u32, replaced_ms: u64) -> Scenario {
    Scenario {
        peers,
        gateways: 1,
        sessions: 8,
        prompt_max: 600,
        answer_max: 200,
        is_exact: true,
        running_max: 64,
        row_us: 300,
        plan: vec![(5500, Fault::Kill { place: 1, replaced_ms, arithmetic: NumericsClass::FIRST })],
        ..Scenario::quiet(seed)
    }
}

#[test]
fn the_neighbours_of_a_lost_peer_compute_half_of_its_layers_each_at_once() {
    for seed in 0..10 {
        let outcome = sound(&eight_to_replay(seed, 3, 60_000));
        let again = again(&outcome);
        assert!(again[2] >= 8 * 600 && again[3] >= 8 * 600, "{again:?}");
        // One peer would compute for 2.9 s.
        let alone_ms = (again[2] + again[3]) * 300 / 1000;
        assert!(outcome.stall_ms_max * 10 < alone_ms * 7, "{} ms, {alone_ms} ms alone", outcome.stall_ms_max);
    }
}

#[test]
fn a_replacement_takes_its_share_of_the_replays_that_wait() {
    for seed in 0..10 {
        // The other peer of two has all that is lost; the replacement is there while the first is computed again.
        let (alone, shared) =
            (sound(&eight_to_replay(seed, 2, 60_000)), sound(&eight_to_replay(seed, 2, 400)));
        assert_eq!((alone.recovered(), shared.recovered()), (8, 8), "seed {seed}: {:?}", shared.recoveries);
        assert!(
            shared.stall_ms_max * 10 < alone.stall_ms_max * 8,
            "{}, {}",
            shared.stall_ms_max,
            alone.stall_ms_max
        );
        // Nothing is computed twice on the way: the lost layers once more, and the step on its way.
        let again = again(&shared);
        assert!([0, 1, 2].into_iter().all(|layer| again[layer] <= 3 * 8), "{again:?}");
        assert!(again[3] <= 8 * 750, "{again:?}");
    }
}
