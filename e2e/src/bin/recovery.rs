//! Measures the stall on the loss of the middle stage's node: `recovery [--runs 20] [--json FILE]`.
//!
//! `kill`: SIGKILL of the node's pid 1; the kernel closes its sockets, peers learn at once. `silence`: the node's packets
//! vanish and then it is killed, as with a reclaimed VM; only a heartbeat shows it. Both at position ~100 of a greedy
//! answer whose tokens must equal the undisturbed ones.
#![allow(clippy::print_stdout, reason = "a benchmark prints a table")]

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use dunlin_e2e::chat::{self, Question, Stream};
use dunlin_e2e::cluster::Cluster;
use dunlin_e2e::scenarios::{self, PEERS};
use dunlin_e2e::swarm::{Peer, Swarm};
use dunlin_e2e::{deploy, report};
use serde_json::{Value, json};

#[derive(Parser)]
struct Args {
    /// Losses of each kind.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Use this running cluster with the example swarm applied.
    #[arg(long)]
    attach: Option<String>,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench/recovery.json")]
    json: PathBuf,
}

/// Prompt and answer together are about this long when the node goes.
const LOSS_AT: usize = 70;
/// Tokens of the answer.
const TOKENS: u32 = 120;

fn main() -> Result<()> {
    let args = Args::parse();
    let cluster = match &args.attach {
        Some(name) => Cluster::attach(name, 4),
        None => Cluster::up(&format!("rec{}", std::process::id()), 4)?,
    };
    if args.attach.is_none() {
        deploy::load_images(&cluster, &deploy::image_dir())?;
        deploy::install_chart(&cluster, &[])?;
        deploy::start_model_server(&cluster)?;
    }
    let swarm = deploy::apply_example_swarm(&cluster)?;
    swarm.wait_whole(PEERS)?;
    let question = Question::greedy(&swarm.model, scenarios::PROMPT, TOKENS);
    let reference = chat::ask(&swarm.gateway(&[])?, &question)?;
    let mut figures = serde_json::Map::new();
    println!(
        "{:<10} {:>6} {:>8} {:>8} {:>8} {:>12}",
        "loss", "runs", "p50 ms", "p99 ms", "max ms", "same tokens"
    );
    for kind in ["kill", "silence"] {
        let mut stalls = Vec::new();
        let mut same = 0;
        for _ in 0..args.runs {
            scenarios::heal(&cluster)?;
            swarm.wait_whole(PEERS)?;
            let victim = swarm.middle_peer()?;
            let (stall_s, equal) = one_loss(&cluster, &swarm, &question, &reference, kind, &victim)?;
            swarm.wait_replaced(&[victim], PEERS)?;
            stalls.push(stall_s * 1e3);
            same += usize::from(equal);
        }
        let (p50, p99) = (report::quantile(&stalls, 0.5), report::quantile(&stalls, 0.99));
        let max = stalls.iter().copied().fold(0.0, f64::max);
        println!(
            "{kind:<10} {:>6} {p50:>8.0} {p99:>8.0} {max:>8.0} {:>12}",
            args.runs,
            format!("{same} of {}", args.runs)
        );
        figures.insert(
            kind.to_owned(),
            json!({"stall_ms": stalls, "p50": p50, "p99": p99, "same_tokens": same}),
        );
        ensure!(same == args.runs, "{} of {} answers changed", args.runs - same, args.runs);
    }
    report::write_json(
        &args.json,
        "local cluster, 3 stages, node of the middle stage lost mid-stream",
        &Value::Object(figures),
    )?;
    println!("written to {}", args.json.display());
    Ok(())
}

fn one_loss(
    cluster: &Cluster,
    swarm: &Swarm<'_>,
    question: &Question,
    reference: &chat::Answer,
    kind: &str,
    victim: &Peer,
) -> Result<(f64, bool)> {
    let mut stream = Stream::start(&swarm.gateway(&[&victim.node])?, question);
    stream.read_tokens(LOSS_AT)?;
    let answer = std::thread::scope(|scope| -> Result<chat::Answer> {
        let loss = scope.spawn(|| cluster.verb(&[kind, &victim.node]));
        let answer = stream.finish()?;
        loss.join().map_err(|_| anyhow::anyhow!("the loss panicked"))??;
        Ok(answer)
    })?;
    if kind == "silence" {
        cluster.verb(&["kill", &victim.node])?;
        cluster.verb(&["unsilence", &victim.node])?;
    }
    Ok((answer.stall_s(LOSS_AT), answer.ids == reference.ids))
}
