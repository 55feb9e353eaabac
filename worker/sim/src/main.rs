//! Replays seeds with a trace: `dunlin-sim [training | notice | wrong] FIRST [COUNT]`. `dunlin-sim latency`: what round trips cost training.
#![allow(clippy::print_stdout, reason = "a trace is for reading")]
#![allow(clippy::disallowed_methods, reason = "the shell of a pure crate")]

use dunlin_sim::latency::Pipeline;
use dunlin_sim::training::{self, Kinds};
use dunlin_sim::{Scenario, run};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == "latency") {
        show_latency();
        return;
    }
    let mut numbers = arguments.iter().filter_map(|a| a.parse::<u64>().ok());
    let first = numbers.next().unwrap_or(0);
    let count = numbers.next().unwrap_or(1);
    let kinds = match arguments.first().map(String::as_str) {
        Some("training") => Some(Kinds::All),
        Some("notice") => Some(Kinds::Notice),
        Some("wrong") => Some(Kinds::Wrong),
        _ => None,
    };
    for seed in first..first + count {
        match kinds {
            Some(kinds) => show_training(seed, kinds, count == 1),
            None => show_inference(seed, count == 1),
        }
    }
}

/// Rows: microbatches of a step for each peer of a stage. A forward pass takes 400 ms, as that of four layers of GPT-3's width may.
fn show_latency() {
    let round_trips = [0, 10, 50, 100, 200];
    for delayed_updates in [false, true] {
        println!("{}", if delayed_updates { "\ndelayed updates" } else { "usual updates" });
        println!("microbatches  {}", round_trips.map(|ms| format!("{ms:>4} ms")).join("  "));
        for microbatches in [4, 8, 16, 32, 64] {
            let pipeline = Pipeline { stages: 4, peers: 1, microbatches, forward_ms: 400, delayed_updates };
            let shares = round_trips.map(|ms| pipeline.busy(ms).map_or(f64::NAN, |share| 100.0 * share));
            println!("{microbatches:>12}  {}", shares.map(|share| format!("{share:>5.1} %")).join("  "));
        }
    }
}

fn show_inference(seed: u64, trace: bool) {
    let outcome = run(&Scenario { trace, ..Scenario::from_seed(seed) });
    for line in outcome.trace.iter().chain(outcome.violations.iter().filter(|_| trace)) {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} ({} faults, {} recoveries)",
        outcome.verdict(),
        outcome.faults,
        outcome.recovered()
    );
}

fn show_training(seed: u64, kinds: Kinds, trace: bool) {
    let scenario = match kinds {
        Kinds::Wrong => training::Scenario::wrong(seed),
        _ => training::Scenario { kinds, ..training::Scenario::from_seed(seed) },
    };
    let outcome = training::run(&training::Scenario { trace, ..scenario });
    for line in &outcome.trace {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} ({:?}, {} commits, {} redone, {} moves ({} with sums), {} times back, {} deliveries, {} lost, {} ms, {} ms after the last fault)",
        outcome.verdict(),
        outcome.faults,
        outcome.commits,
        outcome.redone,
        outcome.moves,
        outcome.handed_over,
        outcome.went_back,
        outcome.deliveries,
        outcome.lost,
        outcome.ms,
        outcome.settled_ms
    );
}
