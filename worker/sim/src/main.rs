//! Replays seeds with a trace: `dunlin-sim FIRST [COUNT]`.
#![allow(clippy::print_stdout, reason = "a trace is for reading")]

use dunlin_sim::{Scenario, run};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let first = numbers.next().unwrap_or(0);
    let count = numbers.next().unwrap_or(1);
    for seed in first..first + count {
        let outcome = run(&Scenario { trace: count == 1, ..Scenario::from_seed(seed) });
        for line in &outcome.trace {
            println!("{line}");
        }
        println!(
            "seed {seed}: {} ({} faults, {} recoveries)",
            outcome.verdict(),
            outcome.faults,
            outcome.recoveries
        );
    }
}
