//! `bench decode`: tokens per second of one answer at a time, by a local swarm of one process and of several, in turns with llama.cpp.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use dunlin_terminal::print::{self, OutputArgs, note};
use dunlin_terminal::progress::Progress;
use dunlin_terminal::record;
use dunlin_worker::exit::NeedsUser;
use serde_json::{Value, json};

use super::llama::LlamaCpp;
use super::median;
use crate::processes::worker::WorkerArgs;

/// What is continued.
const PROMPT: &str = "Once upon a time";

/// What to measure.
#[derive(Args, Clone)]
pub struct DecodeArgs {
    /// A GGUF file, or a folder with config.json, tokenizer.json and safetensors.
    #[arg(long)]
    pub model: PathBuf,
    /// Numbers of stages, each measured.
    #[arg(long, value_delimiter = ',', default_value = "1,3")]
    pub peers: Vec<usize>,
    /// Threads of each stage that compute.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Answers, of which the median counts, after a first one.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Folder with llama.cpp's llama-bench, which is measured in turns with the swarm, with as many threads; the one on PATH, if there is one, when not
    /// given. With ggml-rpc-server beside it, over as many of those as there are stages, too.
    #[arg(long, value_name = "FOLDER")]
    pub llama: Option<PathBuf>,
    /// The same weights as GGUF for llama.cpp, if --model is a folder.
    #[arg(long, value_name = "FILE")]
    pub gguf: Option<PathBuf>,
    /// A file for the figures as JSON, with commit, machine and method.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Program.
    #[command(flatten)]
    pub worker: WorkerArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Tokens a second, round by round.
#[derive(Default)]
struct Rates {
    ours: Vec<f64>,
    llama: Vec<f64>,
    /// Over its servers.
    remote: Vec<f64>,
}

/// What was measured with one number of stages.
struct Measured {
    peers: usize,
    start_s: f64,
    resident_mb: Vec<u64>,
    rates: Rates,
}

/// Prints a row for each number of stages.
///
/// # Errors
/// When a swarm does not serve, or does not answer; when llama.cpp was asked for and does not run.
pub fn run(args: &DecodeArgs) -> anyhow::Result<()> {
    ensure!(args.tokens > 1 && args.rounds > 0, "--tokens has to be at least 2, --rounds at least 1");
    let llama = rival(args).needs_user()?;
    let progress = Progress::of((args.peers.len() * (args.rounds + 1)) as u64, "answers");
    let (mut results, mut build) = (Vec::new(), None);
    for &peers in &args.peers {
        let started = Instant::now();
        let swarm = Swarm::start(args, peers)?;
        let start_s = started.elapsed().as_secs_f64();
        let servers = llama.as_ref().map(|llama| llama.servers(peers)).transpose()?.flatten();
        let mut rates = Rates::default();
        // In turns, so that a busy moment of the machine is one of all. The first round is for caches.
        for round in 0..=args.rounds {
            let ours = swarm.rate(args.tokens)?;
            if round > 0 {
                rates.ours.push(ours);
            }
            if let Some(llama) = llama.as_ref().filter(|_| round > 0) {
                let speed = llama.run(None)?;
                rates.llama.push(speed.tokens_per_s);
                build = Some(speed.build);
                if servers.is_some() {
                    rates.remote.push(llama.run(servers.as_ref())?.tokens_per_s);
                }
            }
            progress.done((results.len() * (args.rounds + 1) + round + 1) as u64);
        }
        results.push(Measured { peers, start_s, resident_mb: swarm.resident_mb(), rates });
    }
    drop(progress);
    let record = record(args, &results, build);
    if let Some(path) = &args.record {
        let text = serde_json::to_string_pretty(&record)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    args.output.print(&record, || table(&results))?;
    Ok(())
}

/// llama.cpp, where it can read the model.
fn rival(args: &DecodeArgs) -> anyhow::Result<Option<LlamaCpp>> {
    let is_file = args.model.extension().is_some_and(|ending| ending == "gguf");
    let Some(model) = args.gguf.clone().or_else(|| is_file.then(|| args.model.clone())) else {
        ensure!(args.llama.is_none(), "llama.cpp reads GGUF only: give the same weights with --gguf FILE");
        return Ok(None);
    };
    let found = LlamaCpp::find(args.llama.as_deref(), model, args.threads, args.tokens)?;
    if found.is_none() {
        note("llama-bench is not on PATH: to measure llama.cpp beside it give its folder with --llama");
    }
    Ok(found)
}

fn ratio(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    (!theirs.is_empty()).then(|| median(ours) / median(theirs))
}

fn record(args: &DecodeArgs, results: &[Measured], build: Option<String>) -> Value {
    let program = std::env::current_exe().ok();
    let commit = program.as_deref().and_then(|program| record::commit(program.parent()?));
    let of = |theirs: &[f64], ours: &[f64]| {
        ratio(ours, theirs)
            .map(|ratio| json!({"tokens_per_s": theirs, "median": median(theirs), "ratio": ratio}))
    };
    let result = |measured: &Measured| {
        let Measured { peers, start_s, resident_mb, rates } = measured;
        json!({
            "peers": peers, "start_s": start_s, "resident_mb": resident_mb,
            "tokens_per_s": rates.ours, "median": median(&rates.ours),
            "llama_cpp": of(&rates.llama, &rates.ours), "llama_cpp_rpc": of(&rates.remote, &rates.ours),
        })
    };
    let method = format!(
        "{} rounds after a first one, in turns, of {} tokens each, greedy, one stream over HTTP, {} threads a stage, medians; llama.cpp by \
         llama-bench from an empty context, with as many threads in one process, and with as many in each RPC server",
        args.rounds, args.tokens, args.threads
    );
    json!({
        "version": env!("CARGO_PKG_VERSION"), "commit": commit, "machine": record::machine(), "method": method,
        "llama_cpp_build": build, "model": args.model, "threads": args.threads, "tokens": args.tokens,
        "results": results.iter().map(result).collect::<Vec<_>>(),
    })
}

fn table(results: &[Measured]) -> String {
    let (llama, remote) = (
        results.iter().any(|of| !of.rates.llama.is_empty()),
        results.iter().any(|of| !of.rates.remote.is_empty()),
    );
    let mut head = vec!["STAGES", "TOKENS/S"];
    head.extend(llama.then_some(["LLAMA.CPP", "RATIO"]).into_iter().flatten());
    head.extend(remote.then_some(["LLAMA.CPP RPC", "RATIO"]).into_iter().flatten());
    head.extend(["SERVES AFTER", "RESIDENT"]);
    let rate = |values: &[f64]| match values {
        [] => "-".to_owned(),
        _ => format!("{:.1}", median(values)),
    };
    let beside = |values: &[f64], ours: &[f64]| {
        [rate(values), ratio(ours, values).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))]
    };
    let row = |of: &Measured| {
        let rates = &of.rates;
        let mut row = vec![of.peers.to_string(), rate(&rates.ours)];
        row.extend(llama.then(|| beside(&rates.llama, &rates.ours)).into_iter().flatten());
        row.extend(remote.then(|| beside(&rates.remote, &rates.ours)).into_iter().flatten());
        let resident: Vec<String> = of.resident_mb.iter().map(u64::to_string).collect();
        row.extend([format!("{:.2} s", of.start_s), format!("{} MB", resident.join(", "))]);
        row
    };
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    rows.extend(results.iter().map(row));
    print::table(&rows)
}

/// `dunlin local` as a process. Dropping it ends it.
struct Swarm {
    child: Child,
    url: String,
    peers: Vec<u64>,
}

impl Swarm {
    fn start(args: &DecodeArgs, peers: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // Its processes inherit this.
        command.env("DUNLIN_LOG", "error").args(["local", "--model"]).arg(&args.model);
        command.args(["--peers", &peers.to_string(), "--threads", &args.threads.to_string()]);
        if let Some(worker) = &args.worker.worker {
            command.arg("--worker").arg(worker);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start a local swarm")?;
        let output = child.stdout.take().context("stdout is piped")?;
        let mut swarm = Self { child, url: String::new(), peers: Vec::new() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).context("the swarm does not serve: see above")?;
        swarm.url = ready["url"].as_str().context("the swarm says no url")?.to_owned();
        let peers = ready["peers"].as_array().into_iter().flatten();
        swarm.peers = peers.filter_map(|peer| peer["pid"].as_u64()).collect();
        Ok(swarm)
    }

    /// Memory of each stage that is in use now. Nothing where the system does not say it in /proc.
    fn resident_mb(&self) -> Vec<u64> {
        let of = |pid: &u64| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024 / 1_000_000)
        };
        self.peers.iter().filter_map(of).collect()
    }

    /// Tokens per second of one greedy answer, from its first token on.
    fn rate(&self, tokens: usize) -> anyhow::Result<f64> {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let question = json!({
            "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": true,
            "return_token_ids": true,
        });
        let url = format!("{}/v1/completions", self.url);
        let response =
            agent.post(&url).header("content-type", "application/json").send(question.to_string())?;
        let mut arrived = Vec::new();
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
            ensure!(event.get("error").is_none(), "the swarm answers {event}");
            let ids = event["choices"][0]["token_ids"].as_array().map_or(0, Vec::len);
            arrived.extend(std::iter::repeat_n(Instant::now(), ids));
        }
        ensure!(arrived.len() == tokens, "{} of {tokens} tokens came", arrived.len());
        Ok((tokens - 1) as f64 / (arrived[tokens - 1] - arrived[0]).as_secs_f64())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        // SIGTERM lets it end its processes; the next swarm must not meet them.
        // SAFETY: kill(2) with the id of a child that has not been waited for.
        #[allow(unsafe_code, reason = "std cannot send SIGTERM")]
        unsafe {
            libc::kill(self.child.id().cast_signed(), libc::SIGTERM);
        }
        // It has ended by itself when this fails.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::{Measured, Rates, table};

    #[test]
    fn llama_cpp_has_columns_where_it_was_measured() {
        let of = |peers, llama: &[f64], remote: &[f64]| Measured {
            peers,
            start_s: 0.5,
            resident_mb: vec![100; peers],
            rates: Rates { ours: vec![60.0, 90.0, 80.0], llama: llama.to_vec(), remote: remote.to_vec() },
        };
        assert_eq!(
            table(&[of(1, &[], &[])]),
            "STAGES  TOKENS/S  SERVES AFTER  RESIDENT\n1       80.0      0.50 s        100 MB"
        );
        let both = table(&[of(1, &[100.0], &[]), of(2, &[100.0], &[40.0])]);
        assert_eq!(
            both,
            "\
STAGES  TOKENS/S  LLAMA.CPP  RATIO  LLAMA.CPP RPC  RATIO  SERVES AFTER  RESIDENT
1       80.0      100.0      0.80   -              -      0.50 s        100 MB
2       80.0      100.0      0.80   40.0           2.00   0.50 s        100, 100 MB"
        );
    }
}
