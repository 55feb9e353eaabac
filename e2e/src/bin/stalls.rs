//! Measures the stall of streams on the loss of the middle stage of a local swarm: `stalls [--runs 20] [--at 100,1000] [--streams 1,8]`.
//!
//! Three stages of one thread each on this machine. Every position at the loss but the first few was generated, one row at a time. The middle
//! stage is killed (SIGKILL); the stall is the longest wait between two tokens of a stream from then on, of the last stream to come back. It
//! is set beside the time of a prefill of as many positions of as many streams on the same swarm: what is lost is a third of the layers.
#![allow(clippy::print_stdout, reason = "a benchmark prints a table")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dunlin_e2e::chat::{Answer, Question, Stream};
use dunlin_e2e::local::{self, Local};
use dunlin_e2e::losses::{self, Signal};
use dunlin_e2e::report;
use serde_json::{Map, Value, json};

#[derive(Parser)]
struct Args {
    /// Losses of each kind.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Positions at the loss.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000])]
    at: Vec<usize>,
    /// Streams at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8])]
    streams: Vec<usize>,
    /// A GGUF file, or a folder.
    #[arg(long)]
    model: PathBuf,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench/stalls.json")]
    json: PathBuf,
}

const PEERS: usize = 3;
/// Tokens of each prompt; the rest of the positions is generated.
const PROMPT: usize = 16;
/// Tokens behind the loss.
const AFTER: usize = 30;
/// Losses before the swarm is started anew.
const LOSSES_OF_A_SWARM: usize = 10;
const WHOLE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let args = Args::parse();
    println!(
        "{:>8} {:>8} {:>6} {:>9} {:>9} {:>9} {:>8} {:>11} {:>7} {:>12}",
        "streams",
        "at",
        "runs",
        "p50 ms",
        "p99 ms",
        "max ms",
        "step ms",
        "prefill ms",
        "bar ms",
        "same tokens"
    );
    let mut figures = Map::new();
    let mut changed = 0;
    for &streams in &args.streams {
        for &at in &args.at {
            let figure = measure(&args, streams, at)?;
            let of = |key: &str| figure[key].as_f64().unwrap_or(0.0);
            let same = figure["same_tokens"].as_u64().unwrap_or(0) as usize;
            println!(
                "{streams:>8} {at:>8} {:>6} {:>9.0} {:>9.0} {:>9.0} {:>8.1} {:>11.0} {:>7.0} {:>12}",
                args.runs,
                of("p50"),
                of("p99"),
                of("max"),
                of("step_ms"),
                of("prefill_ms"),
                of("bar_ms"),
                format!("{same} of {}", args.runs * streams),
            );
            changed += args.runs * streams - same;
            figures.insert(format!("streams {streams}, at {at}"), figure);
        }
    }
    let method = "local swarm, 3 stages of 1 thread, SIGKILL of the middle one; bar: 1.3 times a third of the prefill, and 250 ms";
    report::write_json(&args.json, method, &Value::Object(figures))?;
    println!("written to {}", args.json.display());
    ensure!(changed == 0, "{changed} answers changed");
    Ok(())
}

fn start(args: &Args) -> Result<Local> {
    let local = Local::start(&local::dunlin(), &args.model, PEERS as u32, 1)?;
    losses::wait_whole(&local, PEERS, WHOLE)?;
    Ok(local)
}

fn measure(args: &Args, streams: usize, at: usize) -> Result<Value> {
    let mut local = start(args)?;
    let model = local.model()?;
    let tokens = (at - PROMPT + AFTER) as u32;
    let questions: Vec<Question> =
        (0..streams).map(|i| Question::drawn(&model, PROMPT, 300 + i as u64, tokens)).collect();
    let mut prefills = Vec::new();
    for round in 0..5 {
        let prompts =
            (0..streams).map(|i| Question::drawn(&model, at, 1000 + (round * streams + i) as u64, 1));
        let answers = all(&local, &prompts.collect::<Vec<_>>(), 1, || Ok(()))?;
        let last = answers.iter().filter_map(|a| a.arrived_s.first()).fold(0.0, |a: f64, b| a.max(*b));
        prefills.push(1e3 * last);
    }
    let undisturbed = all(&local, &questions, 1, || Ok(()))?;
    let steps: Vec<f64> =
        undisturbed.iter().flat_map(|a| a.arrived_s.windows(2).map(|w| 1e3 * (w[1] - w[0]))).collect();
    let (mut stalls, mut same) = (Vec::new(), 0);
    for run in 0..args.runs {
        if run > 0 && run % LOSSES_OF_A_SWARM == 0 {
            drop(local);
            local = start(args)?;
        }
        let middle = losses::stages(&local)?.get(PEERS / 2).context("no middle stage")?.1;
        let answers = all(&local, &questions, at - PROMPT, || losses::signal(middle, Signal::Kill))?;
        let stall = answers.iter().map(|a| a.stall_s(at - PROMPT)).fold(0.0, f64::max);
        stalls.push(1e3 * stall);
        same += answers.iter().zip(&undisturbed).filter(|(a, b)| a.ids == b.ids).count();
        losses::wait_whole(&local, PEERS, WHOLE)?;
    }
    let prefill_ms = report::quantile(&prefills, 0.5);
    let (recoveries, replayed_rows) = losses::recoveries(&local)?;
    Ok(json!({
        "stall_ms": stalls, "p50": report::quantile(&stalls, 0.5), "p99": report::quantile(&stalls, 0.99),
        "max": report::quantile(&stalls, 1.0), "step_ms": report::quantile(&steps, 0.5), "prefill_ms": prefill_ms,
        "bar_ms": 1.3 * prefill_ms / PEERS as f64 + 250.0, "same_tokens": same,
        "recoveries": recoveries, "replayed_rows": replayed_rows,
    }))
}

/// Asks all questions at once; `then` happens when the first of them has `count` tokens.
fn all(
    local: &Local,
    questions: &[Question],
    count: usize,
    then: impl FnOnce() -> Result<()>,
) -> Result<Vec<Answer>> {
    let mut streams: Vec<Stream> = questions.iter().map(|q| Stream::start(&local.url, q)).collect();
    streams.first_mut().context("no question")?.read_tokens(count)?;
    then()?;
    streams.into_iter().map(Stream::finish).collect()
}
