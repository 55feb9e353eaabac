//! `bench decode`: tokens per second of one answer at a time, by a local swarm of one process and of several.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use dunlin_terminal::print::{self, Form, OutputArgs};
use dunlin_terminal::progress::Progress;
use serde_json::{Value, json};

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
    /// Program.
    #[command(flatten)]
    pub worker: WorkerArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Prints a row for each number of stages.
///
/// # Errors
/// When a swarm does not serve, or does not answer.
pub fn run(args: &DecodeArgs) -> anyhow::Result<()> {
    ensure!(args.tokens > 1 && args.rounds > 0, "--tokens has to be at least 2, --rounds at least 1");
    let progress = Progress::of((args.peers.len() * (args.rounds + 1)) as u64, "answers");
    let mut results = Vec::new();
    for &peers in &args.peers {
        let started = Instant::now();
        let swarm = Swarm::start(args, peers)?;
        let start_s = started.elapsed().as_secs_f64();
        let mut rates = Vec::new();
        for round in 0..=args.rounds {
            let rate = swarm.rate(args.tokens)?;
            if round > 0 {
                rates.push(rate);
            }
            progress.done((results.len() * (args.rounds + 1) + round + 1) as u64);
        }
        results.push((peers, start_s, rates));
    }
    drop(progress);
    let text = match args.output.output {
        Form::Json => {
            let result = |(peers, start_s, rates): &(usize, f64, Vec<f64>)| json!({"peers": peers, "start_s": start_s, "tokens_per_s": rates, "median": median(rates)});
            let results: Vec<Value> = results.iter().map(result).collect();
            json!({"model": args.model, "threads": args.threads, "tokens": args.tokens, "results": results})
                .to_string()
        }
        Form::Text => {
            let mut rows = vec![["STAGES", "TOKENS/S", "SERVES AFTER"].map(str::to_owned).to_vec()];
            rows.extend(results.iter().map(|(peers, start_s, rates)| {
                vec![peers.to_string(), format!("{:.1}", median(rates)), format!("{start_s:.2} s")]
            }));
            print::table(&rows)
        }
    };
    // Who reads no longer has seen enough.
    let _ = print::line(text)?;
    Ok(())
}

/// `dunlin local` as a process. Dropping it ends it.
struct Swarm {
    child: Child,
    url: String,
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
        let mut swarm = Self { child, url: String::new() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).context("the swarm does not serve: see above")?;
        swarm.url = ready["url"].as_str().context("the swarm says no url")?.to_owned();
        Ok(swarm)
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
