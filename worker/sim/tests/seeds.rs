//! Thousands of runs with faults: tokens are those of the undisturbed run, and nothing is left behind.

use dunlin_sim::serving::Flaw;
use dunlin_sim::{Scenario, run};

/// What came of all of them.
#[derive(Debug, Default)]
struct Sum {
    faults: u32,
    recoveries: u32,
    turned_away: u32,
    no_pages: u32,
    starved: u32,
    cancelled: u32,
    failed: u32,
}

fn check(seeds: std::ops::Range<u64>) -> Sum {
    let mut sum = Sum::default();
    let mut failed = Vec::new();
    for seed in seeds {
        let outcome = run(&Scenario::from_seed(seed));
        sum.faults += outcome.faults;
        sum.recoveries += outcome.recovered();
        sum.turned_away += outcome.turned_away;
        sum.no_pages += outcome.no_pages;
        sum.starved += outcome.starved;
        sum.cancelled += outcome.cancelled;
        sum.failed += outcome.failed;
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
    sum
}

#[test]
fn three_thousand_seeds_lose_no_token_and_leave_nothing_behind() {
    let sum = check(0..3000);
    // The faults are real, and they hit running sessions.
    assert!(sum.faults > 3000 && sum.recoveries > 1000, "{sum:?}");
    // Queues and pages are full at times, clients go away, and rows overflow.
    assert!(sum.turned_away > 300 && sum.no_pages > 300 && sum.starved > 300, "{sum:?}");
    assert!(sum.cancelled > 300 && sum.failed > 30, "{sum:?}");
}

/// Of 100 seeds with a flaw, those in which something is found, and what it is.
fn found(flaw: Flaw) -> Vec<String> {
    let runs = (0..100).map(|seed| run(&Scenario { flaw: Some(flaw), ..Scenario::from_seed(seed) }));
    runs.filter_map(|outcome| outcome.violations.into_iter().next()).collect()
}

#[test]
fn pages_that_nobody_frees_are_found() {
    let found = found(Flaw::KeepsPages);
    assert!(found.len() > 50, "{found:?}");
}

#[test]
fn pages_that_are_counted_twice_are_found() {
    let found = found(Flaw::FreesTwice);
    let counted = found.iter().filter(|what| what.contains("pages are counted as taken"));
    assert!(counted.count() > 50, "{found:?}");
}

#[test]
fn a_batch_beyond_its_budget_is_found() {
    let found = found(Flaw::IgnoresBudget);
    let wide = found.iter().filter(|what| what.contains("a batch of"));
    assert!(wide.count() > 10, "{found:?}");
}

#[test]
fn a_session_that_is_passed_on_without_its_adapter_is_found() {
    let wrong = (0..100).filter(|&seed| {
        let outcome = run(&Scenario { flaw: Some(Flaw::LosesAdapters), ..Scenario::from_seed(seed) });
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
