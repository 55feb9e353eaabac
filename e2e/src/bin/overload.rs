//! Far more requests at once than a local swarm has room for: `overload --model FILE [--requests 500]`.
#![allow(clippy::print_stdout, reason = "a benchmark prints a table")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use dunlin_e2e::local::{self, Local};
use dunlin_e2e::overload::{self, Load};
use dunlin_e2e::{losses, report};

#[derive(Parser)]
struct Args {
    /// A GGUF file, or a folder.
    #[arg(long)]
    model: PathBuf,
    /// Requests at once.
    #[arg(long, default_value_t = 500)]
    requests: usize,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 32)]
    prompt: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 12)]
    tokens: u32,
    /// Stages.
    #[arg(long, default_value_t = 3)]
    peers: u32,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench/overload.json")]
    json: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let local = Local::start(&local::dunlin(), &args.model, args.peers, 1)?;
    losses::wait_whole(&local, args.peers as usize, Duration::from_secs(60))?;
    let load = Load { requests: args.requests, prompt: args.prompt, tokens: args.tokens };
    let outcome = overload::run(&local, &load)?;
    let [p50, p99, max] = outcome.gap_ms;
    let [first, first_99] = outcome.first_ms;
    print!(
        "{}",
        report::table(&[
            ("answers that came whole", outcome.whole.to_string()),
            ("told to come later (429)", outcome.later.to_string()),
            ("failed", outcome.failed.len().to_string()),
            ("recoveries", format!("{:?}", outcome.recoveries)),
            ("rows computed again", outcome.replayed_rows.to_string()),
            ("longest wait between tokens, p50, p99, max", format!("{p50:.0} ms, {p99:.0} ms, {max:.0} ms")),
            ("first token, p50, p99", format!("{first:.0} ms, {first_99:.0} ms")),
            ("took", format!("{:.1} s", outcome.took_s)),
        ])
    );
    report::write_json(&args.json, "local swarm, all requests at once, nobody killed", &outcome.json())?;
    println!("written to {}", args.json.display());
    ensure!(
        outcome.failed.is_empty(),
        "{} requests failed: {:?}",
        outcome.failed.len(),
        outcome.failed.first()
    );
    ensure!(
        outcome.recoveries.is_empty() && outcome.replayed_rows == 0,
        "sessions were disturbed, and nobody was lost"
    );
    Ok(())
}
