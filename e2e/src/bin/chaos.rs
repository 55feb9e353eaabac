//! Streams without pause while stages of a local swarm are killed and stopped: `chaos --model FILE [--minutes 30] [--streams 8]`.
#![allow(clippy::print_stdout, reason = "a benchmark prints a table")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use dunlin_e2e::chaos::{self, Phase, Plan};
use dunlin_e2e::local::{self, Local};
use dunlin_e2e::{losses, report};

#[derive(Parser)]
struct Args {
    /// A GGUF file, or a folder.
    #[arg(long)]
    model: PathBuf,
    /// How long stages are killed and stopped; a tenth of it nothing happens before.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Streams at once.
    #[arg(long, default_value_t = 8)]
    streams: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 200)]
    tokens: u32,
    /// Stages.
    #[arg(long, default_value_t = 3)]
    peers: u32,
    /// Seconds from one kill to the next.
    #[arg(long, default_value_t = 20.0)]
    kill_s: f64,
    /// Seconds from one silence to the next.
    #[arg(long, default_value_t = 60.0)]
    silent_s: f64,
    /// Seconds that a silence takes.
    #[arg(long, default_value_t = 8.0)]
    silence_s: f64,
    /// What is hit when follows from it.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench/chaos.json")]
    json: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let local = Local::start(&local::dunlin(), &args.model, args.peers, 1)?;
    losses::wait_whole(&local, args.peers as usize, Duration::from_secs(60))?;
    let wild = Duration::from_secs_f64(60.0 * args.minutes);
    let plan = Plan {
        streams: args.streams,
        tokens: args.tokens,
        calm: (wild / 10).max(Duration::from_secs(30)),
        wild,
        kill_every: Duration::from_secs_f64(args.kill_s),
        silent_every: Duration::from_secs_f64(args.silent_s),
        silent_for: Duration::from_secs_f64(args.silence_s),
        seed: args.seed,
    };
    let outcome = chaos::run(&local, &plan)?;
    println!(
        "{:<12} {:>8} {:>9} {:>8} {:>8} {:>8} {:>6} {:>8}",
        "", "answers", "tokens/s", "p50 ms", "p99 ms", "max ms", "lost", "changed"
    );
    let row = |name: &str, p: &Phase| {
        let [p50, p99, max] = p.gap_ms;
        let (answers, rate, lost, changed) = (p.answers, p.tokens_per_s, p.lost.len(), p.changed.len());
        println!(
            "{name:<12} {answers:>8} {rate:>9.1} {p50:>8.0} {p99:>8.0} {max:>8.0} {lost:>6} {changed:>8}"
        );
    };
    row("undisturbed", &outcome.calm);
    row("disturbed", &outcome.wild);
    println!(
        "{} kills, {} silences: {:.0} % of the speed",
        outcome.kills,
        outcome.silences,
        100.0 * outcome.goodput()
    );
    for (reason, count) in &outcome.recoveries {
        println!("  {reason:<12} {count}");
    }
    println!("  {} rows computed again", outcome.replayed_rows);
    let method = "local swarm; streams ask without pause; answers compared with the first undisturbed one of each stream";
    report::write_json(&args.json, method, &outcome.json())?;
    println!("written to {}", args.json.display());
    let bad =
        [&outcome.wild.lost[..], &outcome.wild.changed, &outcome.calm.lost, &outcome.calm.changed].concat();
    ensure!(bad.is_empty(), "{} answers lost or changed:\n{}", bad.len(), bad.join("\n"));
    Ok(())
}
