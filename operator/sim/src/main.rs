//! Runs seeds, and tells the story of the first that fails; or shows all that happens in one seed, or on a trace.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a story is for reading")]
#![allow(clippy::disallowed_methods, reason = "the shell of a simulation")]

use std::process::ExitCode;

use dunlin_operator_sim::{seeds, trace};
use dunlin_sim::seeds::Told;

const USAGE: &str = "usage:
  dunlin-operator-sim --seeds N [--from SEED]   runs N seeds from SEED on (from 0); tells the story of the first that fails, and exits 1
  dunlin-operator-sim SEED                      shows all that happens in one seed; exits 1 if it fails
  dunlin-operator-sim --trace FILE [--peers N] [--notice SECONDS]
                                                a swarm of N peers (4) whose nodes come and go as in FILE (`milliseconds,add|remove,node`, one a
                                                line) and are told so long before they go (0: never); shows all that happens, and exits 1 if it fails";
/// Seeds between two lines about how far it is.
const PROGRESS: u64 = 100;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [seed] => seed.parse().ok().map(|seed| show(&seeds::tell(seed, true))),
        ["--trace", file, ref options @ ..] => replay(file, options),
        ["--seeds", ref rest @ ..] => match rest {
            [count] => count.parse().ok().map(|count| run(0, count)),
            [count, "--from", from] => {
                from.parse().ok().zip(count.parse().ok()).map(|(from, count)| run(from, count))
            }
            _ => None,
        },
        _ => None,
    };
    done.unwrap_or_else(|| {
        eprintln!("{USAGE}");
        ExitCode::from(2)
    })
}

fn run(from: u64, count: u64) -> ExitCode {
    let end = from.saturating_add(count);
    let mut next = from;
    while next < end {
        let some = next..end.min(next + PROGRESS);
        next = some.end;
        if let Some(told) = seeds::first_failure(some) {
            for line in told.story() {
                println!("{line}");
            }
            return ExitCode::FAILURE;
        }
        println!("seeds {from} to {} are well", next - 1);
    }
    ExitCode::SUCCESS
}

fn show(told: &Told) -> ExitCode {
    for line in told.trace.iter().chain(&told.violations) {
        println!("{line}");
    }
    println!("seed {}: {}\n{}", told.seed, told.scenario, told.outcome);
    if told.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Nothing for options that are none.
fn replay(file: &str, options: &[&str]) -> Option<ExitCode> {
    let (mut peers, mut notice_s) = (4, 0);
    for option in options.chunks(2) {
        match option {
            ["--peers", number] => peers = number.parse().ok().filter(|peers| (1..=64).contains(peers))?,
            ["--notice", seconds] => notice_s = seconds.parse().ok()?,
            _ => return None,
        }
    }
    let csv = match std::fs::read_to_string(file) {
        Ok(csv) => csv,
        Err(error) => {
            eprintln!("cannot read {file}: {error}");
            return Some(ExitCode::FAILURE);
        }
    };
    Some(match trace::scenario(&csv, peers, notice_s * 1000, 0) {
        Ok(scenario) => show(&seeds::told(&dunlin_operator_sim::Scenario { trace: true, ..scenario })),
        Err(error) => {
            eprintln!("{file}: {error}");
            ExitCode::FAILURE
        }
    })
}
