//! A whole training swarm as processes on this machine: the same conductor, peers and trainers as on Kubernetes. [`restarts`] says when one
//! that ended is started again.

mod restarts;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use dunlin_train::scratch::{self, ScratchFolder};
use dunlin_wire::Role;
use dunlin_worker::exit::{LAST_WORDS, NEEDS_USER, NeedsUser};
use dunlin_worker::training::read_config;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::processes::ports::free_addr;
use crate::processes::process::{Process, child};
use crate::processes::supervise::supervise;
use crate::processes::trust::{AuthorityArgs, LocalTrust};
use crate::processes::worker::WorkerArgs;
use dunlin_terminal::print;
use dunlin_terminal::progress::{Lines, Progress};
use restarts::Restarts;

/// How often the conductor is asked and the lost are replaced.
const LOOK: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Everything runs within this time or not at all.
const START: Duration = Duration::from_secs(120);

/// Options of a local training swarm.
#[derive(Args, Clone)]
pub struct LocalTrainArgs {
    /// The configuration of the run, YAML or JSON.
    #[arg(long)]
    pub config: PathBuf,
    /// Peers, at least as many as stages.
    #[arg(long, default_value_t = 4)]
    pub peers: usize,
    /// Trainers. With two, the loss of one costs nothing: its microbatches go to the other.
    #[arg(long, default_value_t = 2)]
    pub trainers: usize,
    /// Threads of each peer that compute.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Certificates.
    #[command(flatten)]
    pub authority: AuthorityArgs,
    /// Program.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// What the conductor's status says, as far as it matters here.
#[derive(Deserialize)]
struct Status {
    phase: String,
    message: String,
    stages: Vec<StageStatus>,
    #[serde(rename = "validationLoss")]
    validation_loss: Option<f64>,
    #[serde(rename = "lastCheckpoint")]
    last_checkpoint: Option<Value>,
    redone: u64,
    lost: u64,
    members: Vec<Vec<String>>,
    changes: Vec<String>,
    degraded: Option<Degraded>,
    #[serde(rename = "checkpointsKnown")]
    checkpoints_known: bool,
}

#[derive(Deserialize)]
struct Degraded {
    message: String,
}

#[derive(Deserialize)]
struct StageStatus {
    peers: usize,
}

/// Runs until the last step, SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration, the data or what else the run is made from cannot be used, processes end again and again, or the run fails.
pub async fn run(args: LocalTrainArgs) -> anyhow::Result<()> {
    let config = read_config(&args.config)?;
    if args.peers < config.stages as usize {
        let problem =
            anyhow!("--peers {} is fewer than the {} stages of the configuration", args.peers, config.stages);
        return Err(problem).needs_user();
    }
    let mut swarm = Swarm::start(args, config.steps).await?;
    let outcome = supervise(LOOK, async || swarm.look().await).await;
    swarm.stop().await;
    outcome
}

struct Swarm {
    args: LocalTrainArgs,
    /// The program of all processes.
    worker: PathBuf,
    trust: LocalTrust,
    /// Where processes leave what they say last.
    scratch: ScratchFolder,
    conductor: Option<Process>,
    conducts: Restarts,
    http: String,
    grpc: String,
    peers: Processes,
    trainers: Processes,
    made: u32,
    announced: bool,
    /// Of the run.
    steps: u64,
    printed: u64,
    progress: Progress,
    /// Changes that were said.
    changes: BTreeSet<String>,
    degraded: bool,
    started: Instant,
}

/// Processes of one kind.
#[derive(Default)]
struct Processes {
    running: Vec<Process>,
    restarts: Restarts,
}

impl Swarm {
    async fn start(args: LocalTrainArgs, steps: u64) -> anyhow::Result<Self> {
        let worker = args.worker.find().needs_user()?;
        let (grpc, http) = (loopback().await?, loopback().await?);
        let trust = LocalTrust::new(&args.authority)?;
        let scratch = ScratchFolder::new("local-train")?;
        let conductor = conductor(&worker, &args, &trust, &scratch, &grpc, &http)?;
        let mut swarm = Self {
            args,
            worker,
            trust,
            scratch,
            conductor: Some(conductor),
            conducts: Restarts::default(),
            http,
            grpc,
            peers: Processes::default(),
            trainers: Processes::default(),
            made: 0,
            announced: false,
            steps,
            printed: 0,
            progress: Progress::waiting("waits until every stage has a peer"),
            changes: BTreeSet::new(),
            degraded: false,
            started: Instant::now(),
        };
        swarm.fill().await?;
        Ok(swarm)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// As many peers and trainers as asked for.
    async fn fill(&mut self) -> anyhow::Result<()> {
        let now_ms = self.now_ms();
        while self.peers.running.len() < self.args.peers && self.peers.restarts.may_start(now_ms) {
            self.made += 1;
            let name = format!("peer-{}", self.made);
            let addr = loopback().await?;
            let mut command =
                child(&self.worker, "train-peer", &name, self.trust.stdin_of(Role::Peer, &[&name])?);
            command.args(["--listen", &addr, "--health", "127.0.0.1:0", "--conductor", &self.grpc]);
            command.args(["--threads", &self.args.threads.to_string(), "--config"]).arg(&self.args.config);
            command.env(LAST_WORDS, self.scratch.path().join(&name));
            self.peers.running.push(Process::start(&name, addr.parse()?, command)?);
        }
        while self.trainers.running.len() < self.args.trainers && self.trainers.restarts.may_start(now_ms) {
            self.made += 1;
            let name = format!("trainer-{}", self.made);
            let mut command =
                child(&self.worker, "trainer", &name, self.trust.stdin_of(Role::Trainer, &[&name])?);
            command.args(["--listen", "127.0.0.1:0", "--health", "127.0.0.1:0", "--conductor", &self.grpc]);
            command.arg("--config").arg(&self.args.config);
            command.env(LAST_WORDS, self.scratch.path().join(&name));
            self.trainers.running.push(Process::start(&name, "127.0.0.1:0".parse()?, command)?);
        }
        Ok(())
    }

    /// One round: replace the lost, print what is new. Breaks at the end of the run.
    async fn look(&mut self) -> anyhow::Result<ControlFlow<()>> {
        let status = self.get::<Status>("/status").await;
        let over = status.as_ref().is_some_and(|s| matches!(s.phase.as_str(), "Succeeded" | "Suspended"));
        if !over {
            self.replace().await?;
        }
        let Some(status) = status else { return Ok(ControlFlow::Continue(())) };
        self.tell(&status);
        if status.phase == "Failed" {
            return Err(anyhow!(status.message)).needs_user();
        }
        if !self.announced {
            // A short run may be over, with everybody gone, before it was seen whole.
            if !over && status.stages.iter().any(|s| s.peers == 0) {
                // While the destination is away nobody begins.
                if self.started.elapsed() > START && status.degraded.is_none() {
                    bail!("not every stage has a peer after {} s; run with --log debug", START.as_secs());
                }
                return Ok(ControlFlow::Continue(()));
            }
            if print::line(self.processes(&status))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.announced = true;
            self.progress = Progress::of(self.steps, "trains");
        }
        loop {
            let new: Option<Vec<Value>> = self.get(&format!("/steps?from={}", self.printed)).await;
            let Some(steps) = new else { return Ok(ControlFlow::Continue(())) };
            for step in &steps {
                self.printed = step["step"].as_u64().unwrap_or(self.printed) + 1;
                self.progress.done(self.printed);
                for restarts in [&mut self.conducts, &mut self.peers.restarts, &mut self.trainers.restarts] {
                    restarts.step();
                }
                if print::line(step)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            // As long as it goes on, others come with the next look.
            if steps.is_empty() || !over {
                break;
            }
        }
        if over {
            let last = json!({"checkpoint": status.last_checkpoint, "validation_loss": status.validation_loss,
                              "redone": status.redone, "lost": status.lost});
            // The end, whoever reads it.
            let _ = print::line(last)?;
        }
        Ok(if over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// What people should know at once, on standard error.
    fn tell(&mut self, status: &Status) {
        for change in &status.changes {
            if self.changes.insert(change.clone()) {
                say(format_args!("goes on with another {change}"));
            }
        }
        match (&status.degraded, self.degraded) {
            (Some(Degraded { message }), false) => say(format_args!("degraded: {message}")),
            // A conductor that has just started does not know yet.
            (None, true) if !status.checkpoints_known => return,
            (None, true) => say(format_args!("no longer degraded: checkpoints are written again")),
            _ => {}
        }
        self.degraded = status.degraded.is_some();
    }

    fn processes(&self, status: &Status) -> Value {
        let stage_of = |name: &str| status.members.iter().position(|m| m.iter().any(|n| n == name));
        let conductor = self.conductor.as_ref().map(|c| (c.pid(), c.addr));
        let mut all = vec![
            json!({"role": "conductor", "pid": conductor.map(|(pid, _)| pid), "addr": conductor.map(|(_, addr)| addr)}),
        ];
        all.extend(
            self.trainers.running.iter().map(|p| json!({"role": "trainer", "name": p.name, "pid": p.pid()})),
        );
        all.extend(
            self.peers
                .running
                .iter()
                .map(|p| json!({"role": "peer", "name": p.name, "stage": stage_of(&p.name), "pid": p.pid(), "addr": p.addr})),
        );
        json!({"url": format!("http://{}", self.http), "processes": all})
    }

    async fn replace(&mut self) -> anyhow::Result<()> {
        let now_ms = self.now_ms();
        if let Some(status) = self.conductor.as_mut().and_then(Process::ended) {
            warn!(%status, "the conductor is lost");
            self.conductor = None;
            end_of(&self.scratch, "conductor", status, &mut self.conducts, now_ms)?;
        }
        if self.conductor.is_none() && self.conducts.may_start(now_ms) {
            self.conductor = Some(conductor(
                &self.worker,
                &self.args,
                &self.trust,
                &self.scratch,
                &self.grpc,
                &self.http,
            )?);
        }
        let mut lost = false;
        for Processes { running, restarts } in [&mut self.peers, &mut self.trainers] {
            let mut index = 0;
            while let Some(process) = running.get_mut(index) {
                let Some(status) = process.ended() else {
                    index += 1;
                    continue;
                };
                warn!(name = process.name, %status, "a process is lost");
                end_of(&self.scratch, &process.name, status, restarts, now_ms)?;
                running.remove(index);
                lost = true;
            }
        }
        if lost {
            scratch::sweep();
        }
        self.fill().await
    }

    /// Asks the conductor's HTTP server; nothing when it does not answer.
    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Option<T> {
        let ask = async {
            let mut stream = TcpStream::connect(&self.http).await.ok()?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.http);
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok()?;
            let body = answer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
            serde_json::from_slice(&answer[body..]).ok()
        };
        timeout(ANSWER, ask).await.ok().flatten()
    }

    async fn stop(mut self) {
        info!("ends");
        let (peers, trainers) = (self.peers.running.drain(..), self.trainers.running.drain(..));
        let mut all: Vec<Process> = peers.chain(trainers).collect();
        for process in &mut all {
            process.kill();
        }
        for process in &mut all {
            process.reap().await;
        }
        if let Some(mut conductor) = self.conductor {
            conductor.terminate();
            conductor.reap().await;
        }
        // What those left that had to be killed.
        scratch::sweep();
    }
}

/// A process ended. What another start does not change is the end of the run, and so are too many ends in a row.
fn end_of(
    scratch: &ScratchFolder,
    name: &str,
    status: ExitStatus,
    restarts: &mut Restarts,
    now_ms: u64,
) -> anyhow::Result<()> {
    let path = scratch.path().join(name);
    let words = std::fs::read_to_string(&path).unwrap_or_default();
    // Another one of this name says something else.
    let _ = std::fs::remove_file(&path);
    if status.code() == Some(NEEDS_USER.into()) {
        return Err(anyhow!("{name}: {words}")).needs_user();
    }
    if !restarts.ended(now_ms, status.code().is_none_or(|code| code == 0)) {
        let words = if words.is_empty() { status.to_string() } else { words };
        bail!("processes end again and again before a step is made, the last of them {name}: {words}");
    }
    Ok(())
}

/// A line on standard error that is no log.
fn say(text: std::fmt::Arguments<'_>) {
    // Nobody may read it.
    let _ = writeln!(Lines, "{text}");
}

fn conductor(
    worker: &Path,
    args: &LocalTrainArgs,
    trust: &LocalTrust,
    scratch: &ScratchFolder,
    grpc: &str,
    http: &str,
) -> anyhow::Result<Process> {
    // Processes that dial it expect the host of its address.
    let certificates = trust.stdin_of(Role::Conductor, &["conductor", &Ipv4Addr::LOCALHOST.to_string()])?;
    let mut command = child(worker, "conductor", "conductor", certificates);
    command.env(LAST_WORDS, scratch.path().join("conductor"));
    command.args(["--listen", grpc, "--health", "127.0.0.1:0", "--http", http, "--config"]).arg(&args.config);
    Process::start("conductor", grpc.parse()?, command)
}

/// A free address on loopback.
async fn loopback() -> anyhow::Result<String> {
    Ok(free_addr((Ipv4Addr::LOCALHOST, 0).into()).await?.to_string())
}
