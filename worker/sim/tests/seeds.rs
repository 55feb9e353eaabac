//! Thousands of runs with faults: tokens are those of the undisturbed run, and nothing is left behind.

use dunlin_sim::{Scenario, run};

fn check(seeds: std::ops::Range<u64>) -> (u32, u32) {
    let (mut faults, mut recoveries) = (0, 0);
    let mut failed = Vec::new();
    for seed in seeds {
        let outcome = run(&Scenario::from_seed(seed));
        faults += outcome.faults;
        recoveries += outcome.recovered();
        if !outcome.violations.is_empty() {
            failed.push(format!("seed {seed}: {}", outcome.verdict()));
        }
    }
    assert!(
        failed.is_empty(),
        "{} seeds fail; see `cargo run -p dunlin-sim -- SEED`:\n{}",
        failed.len(),
        failed.join("\n")
    );
    (faults, recoveries)
}

#[test]
fn three_thousand_seeds_lose_no_token_and_leave_nothing_behind() {
    let (faults, recoveries) = check(0..3000);
    // The faults are real, and they hit running sessions.
    assert!(faults > 3000 && recoveries > 1000, "{faults} faults, {recoveries} recoveries");
}

#[test]
fn a_session_that_is_passed_on_without_its_adapter_is_found() {
    let wrong = (0..100).filter(|&seed| {
        let outcome = run(&Scenario { loses_adapters: true, ..Scenario::from_seed(seed) });
        outcome.violations.iter().any(|what| what.ends_with("got other tokens"))
    });
    assert!(wrong.count() > 50);
}

#[test]
fn impostors_are_refused_and_change_no_token() {
    let mut refused = 0;
    for seed in 0..300 {
        let outcome = run(&Scenario { impostors: true, ..Scenario::from_seed(seed) });
        assert_eq!(outcome.violations, [""; 0], "seed {seed}");
        refused += outcome.refused;
    }
    assert!(refused > 10_000, "{refused}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 17, 99] {
        let trace = || run(&Scenario { trace: true, ..Scenario::from_seed(seed) }).trace;
        assert_eq!(trace(), trace());
    }
}
