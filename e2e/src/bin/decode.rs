//! Decode speed beside llama.cpp, in the same run: same file, one thread per worker.
//!
//! Three figures: SmolLM2 (Q4_1 GGUF) at 1 and 3 stages against `llama-bench` on the same file; the 33.5M random Llama in
//! f32 at 3 stages; and, on the way, start time and resident memory of each worker. Rounds are interleaved so that
//! a busy moment of the machine hits both sides; the median counts.
#![allow(clippy::print_stdout, reason = "a benchmark prints a table")]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dunlin_e2e::chat::{self, Question};
use dunlin_e2e::local::{Local, release_dir};
use dunlin_e2e::report;
use serde_json::{Value, json};

#[derive(Parser)]
struct Args {
    /// The SmolLM2 GGUF.
    #[arg(long)]
    model: PathBuf,
    /// llama.cpp's llama-bench; without it no ratio is printed.
    #[arg(long)]
    llama_bench: Option<PathBuf>,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Tokens generated per round.
    #[arg(long, default_value_t = 128)]
    tokens: u32,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench/decode.json")]
    json: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let worker = release_dir().join("dunlin-worker");
    let random = random_model(&worker)?;
    let cases = [
        ("SmolLM2 Q4_1, 1 stage", &args.model, 1, true),
        ("SmolLM2 Q4_1, 3 stages", &args.model, 3, true),
        ("random 33.5M f32, 1 stage", &random, 1, false),
        ("random 33.5M f32, 3 stages", &random, 3, false),
    ];
    println!(
        "{:<28} {:>10} {:>12} {:>7} {:>9} {:>22}",
        "", "tokens/s", "llama.cpp", "ratio", "start s", "resident MB per worker"
    );
    let mut figures = serde_json::Map::new();
    for (name, model, peers, beside_rival) in cases {
        let local = Local::start(&worker, model, peers, 1)?;
        let question = Question::greedy(&local.model()?, "Once upon a time", args.tokens);
        chat::ask(&local.url, &question)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            let answer = chat::ask(&local.url, &question)?;
            ensure!(answer.ids.len() == args.tokens as usize, "{name}: {} tokens came", answer.ids.len());
            ours.push(answer.rate(0, answer.ids.len()));
            if let (Some(bench), true) = (&args.llama_bench, beside_rival) {
                theirs.push(llama_bench(bench, model, args.tokens)?);
            }
        }
        let (rate, rival) = (report::quantile(&ours, 0.5), report::quantile(&theirs, 0.5));
        let ratio = if rival > 0.0 { rate / rival } else { 0.0 };
        let resident_mb: Vec<u64> = local.resident_bytes()?.iter().map(|b| b / 1_000_000).collect();
        println!(
            "{name:<28} {rate:>10.1} {:>12} {:>7} {:>9.2} {:>22}",
            if rival > 0.0 { format!("{rival:.1}") } else { "-".into() },
            if rival > 0.0 { format!("{ratio:.2}") } else { "-".into() },
            local.start_s,
            format!("{resident_mb:?}")
        );
        figures.insert(
            name.to_owned(),
            json!({
                "tokens_per_s": ours, "median": rate, "llama_cpp_tokens_per_s": theirs, "llama_cpp_median": rival,
                "ratio": ratio, "start_s": local.start_s, "resident_mb": resident_mb,
            }),
        );
    }
    let method = format!(
        "{} rounds of {} tokens, interleaved, greedy, 1 thread per worker, medians",
        args.rounds, args.tokens
    );
    report::write_json(&args.json, &method, &Value::Object(figures))?;
    println!("written to {}", args.json.display());
    Ok(())
}

fn random_model(worker: &Path) -> Result<PathBuf> {
    let directory = release_dir().join("../bench/random-33m");
    if !directory.join("model.safetensors").exists() {
        let shape = "--layers 8 --hidden 512 --heads 8 --kv-heads 8 --ffn 1376 --vocab 8000 --seed 1";
        let status = Command::new(worker)
            .arg("random-model")
            .args(shape.split(' '))
            .arg("--out")
            .arg(&directory)
            .status()
            .context("random-model")?;
        ensure!(status.success(), "random-model: {status}");
    }
    Ok(directory)
}

/// Decode tokens/s of one llama-bench run.
fn llama_bench(bench: &Path, model: &Path, tokens: u32) -> Result<f64> {
    let output = Command::new(bench)
        .args(["-t", "1", "-p", "0", "-r", "1", "-o", "json", "-n", &tokens.to_string(), "-m"])
        .arg(model)
        .output()
        .with_context(|| bench.display().to_string())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let runs: Value = serde_json::from_slice(&output.stdout)?;
    runs[0]["avg_ts"].as_f64().context("llama-bench printed no avg_ts")
}
