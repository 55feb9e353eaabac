//! Swarms with their operator, hundreds of them with all kinds of incidents: every answer is that of an undisturbed run, every layer has a server
//! again within the time that is promised, and the operator comes to rest.

use dunlin_operator_sim::{Flaw, Incident, Outcome, Scenario, run, seeds, trace};

fn sound(scenario: &Scenario) -> Outcome {
    let outcome = run(scenario);
    if !outcome.violations.is_empty() {
        panic!("{}", seeds::told(&Scenario { trace: true, ..scenario.clone() }).story().join("\n"));
    }
    outcome
}

/// Incidents, sessions that went on elsewhere, and pods.
fn check(seeds: std::ops::Range<u64>) -> (u32, u32, u32) {
    seeds.map(|seed| sound(&Scenario::from_seed(seed))).fold(
        (0, 0, 0),
        |(incidents, recovered, pods), outcome| {
            (incidents + outcome.incidents, recovered + outcome.recovered, pods + outcome.pods)
        },
    )
}

#[test]
fn a_swarm_to_which_nothing_happens_serves_and_is_left_alone() {
    let outcome = sound(&Scenario::quiet(1));
    assert_eq!((outcome.pods, outcome.recovered, outcome.incidents), (3, 0, 0));
    assert!(outcome.sessions >= 8, "{}", outcome.sessions);
}

#[test]
fn a_swarm_whose_model_is_changed_makes_each_peer_anew_once_and_no_answer_is_of_two_models() {
    for seed in 0..8 {
        let plan = vec![(90_000, Incident::Model(1))];
        let outcome = sound(&Scenario { plan, ..Scenario::quiet(seed) });
        assert_eq!(outcome.pods, 6, "each is replaced once");
        assert!(outcome.sessions >= 20, "{}", outcome.sessions);
    }
}

#[test]
fn a_model_that_is_changed_again_or_back_before_it_serves_is_settled_on() {
    for (seed, after_ms) in (0..).zip([20, 1000, 5000, 15_000, 27_000, 40_000]) {
        for last in [0, 2] {
            let plan = vec![(90_000, Incident::Model(1)), (90_000 + after_ms, Incident::Model(last))];
            sound(&Scenario { plan, ..Scenario::quiet(seed) });
        }
    }
}

#[test]
fn seeds_lose_nothing_and_settle() {
    let (incidents, recovered, pods) = check(0..60);
    // They are real, and they hit answers.
    assert!(incidents > 150 && recovered > 100 && pods > 400, "{incidents} {recovered} {pods}");
}

#[test]
fn more_seeds_lose_nothing_and_settle() {
    check(60..120);
}

#[test]
fn still_more_seeds_lose_nothing_and_settle() {
    check(120..200);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 17] {
        let trace = || run(&Scenario { trace: true, ..Scenario::from_seed(seed) }).trace;
        assert_eq!(trace(), trace());
    }
}

#[test]
fn nodes_that_come_and_go_as_in_a_trace_cost_no_answer() {
    let csv = include_str!("traces/synthetic.csv");
    for notice_ms in [0, 30_000, 120_000] {
        let outcome = sound(&trace::scenario(csv, 4, notice_ms, 1).unwrap());
        assert!(outcome.pods >= 12 && outcome.recovered > 0, "{} {}", outcome.pods, outcome.recovered);
    }
}

/// The first seed in which an operator with `flaw` is found out, and by what.
fn found_out(flaw: Flaw) -> Option<(u64, String)> {
    (0..100).find_map(|seed| {
        let outcome = run(&Scenario { flaw: Some(flaw), ..Scenario::from_seed(seed) });
        Some((seed, outcome.violations.first()?.clone()))
    })
}

#[test]
fn an_operator_that_takes_pods_for_peers_that_have_their_layers_is_found_out() {
    assert!(found_out(Flaw::TrustsPods).is_some());
}

#[test]
fn an_operator_that_counts_on_pods_that_are_about_to_go_is_found_out() {
    assert!(found_out(Flaw::IgnoresNotice).is_some());
}

#[test]
fn an_operator_that_forgets_what_was_published_is_found_out() {
    assert!(found_out(Flaw::Forgets).is_some());
}

#[test]
fn an_operator_that_hands_out_what_it_could_not_publish_is_found_out() {
    assert!(found_out(Flaw::HandsOut).is_some());
}

#[test]
fn an_operator_that_tells_nobody_which_model_the_swarm_has_is_found_out() {
    assert!(found_out(Flaw::TellsNoModel).is_some());
}
