//! Runs seeds, and tells the story of the first that fails; or shows all that happens in one seed. `dunlin-sim latency`: what round trips cost
//! training.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a trace is for reading")]
#![allow(clippy::disallowed_methods, reason = "the shell of a pure crate")]

use std::process::ExitCode;

use dunlin_sim::latency::Pipeline;
use dunlin_sim::seeds::Kind;

const USAGE: &str = "usage:
  dunlin-sim [KIND] --seeds N [--from SEED]   runs N seeds from SEED on (from 0); tells the story of the first that fails, and exits 1
  dunlin-sim [KIND] SEED                      shows all that happens in one seed; exits 1 if it fails
  dunlin-sim latency                          what round trips cost training
KIND is serving, training, notice (peers leave with notice only) or wrong (peers compute or remember wrongly); without it, --seeds runs all
of them, and a seed is that of serving.";
/// Seeds between two lines about how far it is.
const PROGRESS: u64 = 1000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["latency"] {
        show_latency();
        return ExitCode::SUCCESS;
    }
    let kind = arguments.first().and_then(|name| Kind::ALL.into_iter().find(|kind| kind.name() == name));
    let rest: Vec<&str> = arguments.iter().skip(usize::from(kind.is_some())).map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    let wanted = match rest[..] {
        [seed] => number(seed).map(|seed| (seed, None)),
        ["--seeds", count] => number(count).map(|count| (0, Some(count))),
        ["--seeds", count, "--from", from] | ["--from", from, "--seeds", count] => {
            number(from).zip(number(count).map(Some))
        }
        _ => None,
    };
    match wanted {
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
        Some((seed, None)) => show(kind.unwrap_or(Kind::Serving), seed),
        Some((from, Some(count))) => {
            let kinds = kind.map_or(Kind::ALL.to_vec(), |kind| vec![kind]);
            let all = kinds.into_iter().all(|kind| run(kind, from, count));
            if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

/// True when all seeds of a kind are well.
fn run(kind: Kind, from: u64, count: u64) -> bool {
    let end = from.saturating_add(count);
    let mut next = from;
    while next < end {
        let some = next..end.min(next + PROGRESS);
        next = some.end;
        if let Some(told) = kind.first_failure(some) {
            for line in told.story() {
                println!("{line}");
            }
            return false;
        }
        println!("{}: seeds {from} to {} are well", kind.name(), next - 1);
    }
    true
}

fn show(kind: Kind, seed: u64) -> ExitCode {
    let told = kind.run(seed, true);
    for line in told.trace.iter().chain(&told.violations) {
        println!("{line}");
    }
    println!("{} seed {seed}: {}\n{}", kind.name(), told.scenario, told.outcome);
    if told.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
