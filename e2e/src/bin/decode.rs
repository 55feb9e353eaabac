//! Decode speed beside llama.cpp, in the same run: same weights, one thread per worker.
//!
//! SmolLM2 (Q4_1 GGUF) and the 33.5M random Llama (f32), each at 1 and 3 stages, against `llama-bench` in one process and, at 3 stages,
//! against `llama-bench` over three of its RPC servers; on the way, start time and resident memory of each worker. Rounds are
//! interleaved so that a busy moment of the machine hits all sides; the median counts.
#![allow(clippy::print_stdout, reason = "a benchmark prints a table")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dunlin_e2e::chat::{self, Question};
use dunlin_e2e::local::{self, Local};
use dunlin_e2e::{report, wait};
use serde_json::{Value, json};

#[derive(Parser)]
struct Args {
    /// The SmolLM2 GGUF.
    #[arg(long)]
    model: PathBuf,
    /// Folder of the random model, with `model.gguf` of the same weights in it.
    #[arg(long)]
    random: PathBuf,
    /// Folder with llama.cpp's llama-bench and ggml-rpc-server.
    #[arg(long)]
    llama: PathBuf,
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

/// One line of the table.
struct Case<'a> {
    name: &'a str,
    model: &'a Path,
    gguf: &'a Path,
    stages: u32,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dunlin = local::dunlin();
    let (smollm2, random) = (args.model.as_path(), args.random.as_path());
    let random_gguf = random.join("model.gguf");
    let case = |name, model, gguf, stages| Case { name, model, gguf, stages };
    let cases = [
        case("SmolLM2 Q4_1, 1 stage", smollm2, smollm2, 1),
        case("SmolLM2 Q4_1, 3 stages", smollm2, smollm2, 3),
        case("random 33.5M f32, 1 stage", random, &random_gguf, 1),
        case("random 33.5M f32, 3 stages", random, &random_gguf, 3),
    ];
    println!(
        "{:<27} {:>9} {:>10} {:>6} {:>14} {:>6} {:>8} {:>18}",
        "tokens/s", "dunlin", "llama.cpp", "ratio", "llama.cpp RPC", "ratio", "start s", "resident MB"
    );
    let mut figures = serde_json::Map::new();
    for case in &cases {
        figures.insert(case.name.to_owned(), measure(&args, &dunlin, case)?);
    }
    let method = format!(
        "{} rounds of {} tokens, interleaved, greedy, 1 thread per worker, medians; llama.cpp by llama-bench",
        args.rounds, args.tokens
    );
    report::write_json(&args.json, &method, &Value::Object(figures))?;
    println!("written to {}", args.json.display());
    Ok(())
}

fn measure(args: &Args, dunlin: &Path, case: &Case<'_>) -> Result<Value> {
    let local = Local::start(dunlin, case.model, case.stages, 1)?;
    let question = Question::greedy(&local.model()?, "Once upon a time", args.tokens);
    chat::ask(&local.url, &question)?;
    let servers = if case.stages > 1 { Some(RpcServers::start(&args.llama, case.stages)?) } else { None };
    let (mut ours, mut theirs, mut remote) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let answer = chat::ask(&local.url, &question)?;
        ensure!(answer.ids.len() == args.tokens as usize, "{}: {} tokens came", case.name, answer.ids.len());
        ours.push(answer.rate(0, answer.ids.len()));
        theirs.push(llama_bench(args, case.gguf, &[])?);
        if let Some(servers) = &servers {
            remote.push(llama_bench(args, case.gguf, &servers.options())?);
        }
    }
    let median = |values: &[f64]| report::quantile(values, 0.5);
    let (rate, beside, beside_remote) = (median(&ours), median(&theirs), median(&remote));
    let ratio = |rival: f64| if rival > 0.0 { rate / rival } else { 0.0 };
    let shown =
        |value: f64, digits: usize| if value > 0.0 { format!("{value:.digits$}") } else { "-".to_owned() };
    let resident_mb: Vec<u64> = local.resident_bytes()?.iter().map(|b| b / 1_000_000).collect();
    println!(
        "{:<27} {rate:>9.1} {beside:>10.1} {:>6.2} {:>14} {:>6} {:>8.2} {:>18}",
        case.name,
        ratio(beside),
        shown(beside_remote, 1),
        shown(ratio(beside_remote), 2),
        local.start_s,
        format!("{resident_mb:?}")
    );
    Ok(json!({
        "tokens_per_s": ours, "median": rate,
        "llama_cpp_tokens_per_s": theirs, "llama_cpp_median": beside, "ratio": ratio(beside),
        "llama_cpp_rpc_tokens_per_s": remote, "llama_cpp_rpc_median": beside_remote, "ratio_rpc": ratio(beside_remote),
        "start_s": local.start_s, "resident_mb": resident_mb,
    }))
}

/// Decode tokens/s of one llama-bench run.
fn llama_bench(args: &Args, model: &Path, options: &[String]) -> Result<f64> {
    let bench = args.llama.join("llama-bench");
    let output = Command::new(&bench)
        .args(["-t", "1", "-p", "0", "-r", "1", "-o", "json", "-n", &args.tokens.to_string(), "-m"])
        .arg(model)
        .args(options)
        .output()
        .with_context(|| bench.display().to_string())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let runs: Value = serde_json::from_slice(&output.stdout)?;
    runs[0]["avg_ts"].as_f64().context("llama-bench printed no avg_ts")
}

/// llama.cpp's own way to spread a model over processes.
struct RpcServers {
    servers: Vec<Child>,
    ports: Vec<u16>,
}

impl RpcServers {
    fn start(folder: &Path, count: u32) -> Result<Self> {
        let mut started = Self { servers: Vec::new(), ports: Vec::new() };
        for _ in 0..count {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let server = Command::new(folder.join("ggml-rpc-server"))
                .args(["-H", "127.0.0.1", "-t", "1", "-p", &port.to_string()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("ggml-rpc-server")?;
            started.servers.push(server);
            started.ports.push(port);
        }
        for port in &started.ports {
            wait::until("ggml-rpc-server listens", Duration::from_secs(10), || {
                Ok(std::net::TcpStream::connect(("127.0.0.1", *port)).map(Some)?)
            })?;
        }
        Ok(started)
    }

    fn options(&self) -> Vec<String> {
        let list = |item: &dyn Fn(usize, u16) -> String, with: &str| {
            self.ports.iter().enumerate().map(|(i, port)| item(i, *port)).collect::<Vec<_>>().join(with)
        };
        let addresses = list(&|_, port| format!("127.0.0.1:{port}"), ",");
        let devices = list(&|i, _| format!("RPC{i}"), "/");
        ["-ngl", "99", "--rpc", &addresses, "-dev", &devices].map(str::to_owned).to_vec()
    }
}

impl Drop for RpcServers {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Gone already when this fails.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
