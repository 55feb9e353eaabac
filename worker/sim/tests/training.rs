//! Thousands of training runs with faults: the weights are those of the same steps done one after the other.

use std::collections::BTreeMap;

use dunlin_sim::training::{Kinds, Outcome, Scenario, run};

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
    assert!(faults.len() == 12 && faults.values().all(|count| *count > 300), "{faults:?}");
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let (redone, lost, back) =
        (sum(|o| u64::from(o.redone)), sum(|o| o.lost), sum(|o| u64::from(o.went_back)));
    assert!(redone > 1000 && lost > 20_000 && back > 200, "{redone} redone, {lost} lost, {back} times back");
}

/// For every delivery of a run: the same run, where it kills whom it would reach, or whom it comes from.
#[test]
fn a_kill_at_any_message_changes_no_weight() {
    for seed in 0..3 {
        let deliveries = run(&Scenario::small(seed)).deliveries;
        assert!(deliveries > 200, "{deliveries}");
        let scenarios = (0..deliveries).flat_map(|at| [(at, true), (at, false)]).map(|kill_at| {
            (format!("{seed} {kill_at:?}"), Scenario { kill_at: Some(kill_at), ..Scenario::small(seed) })
        });
        let outcomes = check(scenarios);
        assert!(outcomes.iter().all(|o| o.fault_count() == 1));
    }
}

#[test]
fn with_notice_nothing_is_computed_again() {
    let scenarios = (0..600).map(|seed| {
        let scenario = Scenario { kinds: Kinds::Notice, ..Scenario::from_seed(seed) };
        (format!("seed {seed}"), scenario)
    });
    let outcomes = check(scenarios);
    let notices: u32 = outcomes.iter().filter_map(|o| o.faults.get("notice")).sum();
    assert!(notices > 600, "{notices}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 17, 99] {
        let trace = || run(&Scenario { trace: true, ..Scenario::from_seed(seed) }).trace;
        assert!(trace().len() > 100);
        assert_eq!(trace(), trace());
    }
}
