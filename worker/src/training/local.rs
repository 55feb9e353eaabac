//! A whole training swarm as processes on this machine: the same conductor, peers and trainers as on Kubernetes.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::bail;
use dunlin_wire::Role;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::read_config;
use crate::certificates::LocalTrust;
use crate::cli::LocalTrainArgs;
use crate::local::free_addr;
use crate::local::process::{Process, child};

/// How often the conductor is asked and the lost are replaced.
const LOOK: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Everything runs within this time or not at all.
const START: Duration = Duration::from_secs(120);
/// Processes that may end in a row before a step is made.
const CRASHES_MAX: u32 = 20;

/// What the conductor's status says, as far as it matters here.
#[derive(Deserialize)]
struct Status {
    phase: String,
    message: String,
    step: u64,
    stages: Vec<StageStatus>,
    #[serde(rename = "validationLoss")]
    validation_loss: Option<f64>,
    #[serde(rename = "lastCheckpoint")]
    last_checkpoint: Option<Value>,
    redone: u64,
    lost: u64,
    members: Vec<Vec<String>>,
}

#[derive(Deserialize)]
struct StageStatus {
    peers: usize,
}

/// Runs until the last step, SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration makes no sense, processes end again and again, or the run fails.
pub async fn run(args: LocalTrainArgs) -> anyhow::Result<()> {
    let config = read_config(&args.config)?;
    if args.peers < config.stages as usize {
        bail!("--peers {} is fewer than the {} stages of the configuration", args.peers, config.stages);
    }
    let mut swarm = Swarm::start(args).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = ticks.tick() => match swarm.look().await {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            },
        }
    };
    swarm.stop().await;
    outcome
}

struct Swarm {
    args: LocalTrainArgs,
    trust: LocalTrust,
    conductor: Process,
    http: String,
    grpc: String,
    peers: Vec<Process>,
    trainers: Vec<Process>,
    made: u32,
    crashes: u32,
    announced: bool,
    printed: u64,
    started: Instant,
}

impl Swarm {
    async fn start(args: LocalTrainArgs) -> anyhow::Result<Self> {
        let (grpc, http) = (loopback().await?, loopback().await?);
        let trust = LocalTrust::new(&args.authority)?;
        let conductor = conductor(&args, &trust, &grpc, &http)?;
        let mut swarm = Self {
            args,
            trust,
            conductor,
            http,
            grpc,
            peers: Vec::new(),
            trainers: Vec::new(),
            made: 0,
            crashes: 0,
            announced: false,
            printed: 0,
            started: Instant::now(),
        };
        swarm.fill().await?;
        Ok(swarm)
    }

    /// As many peers and trainers as asked for.
    async fn fill(&mut self) -> anyhow::Result<()> {
        while self.peers.len() < self.args.peers {
            self.made += 1;
            let name = format!("peer-{}", self.made);
            let addr = loopback().await?;
            let mut command = child("train-peer", &name, self.trust.stdin_of(Role::Peer, &[&name])?)?;
            command.args(["--listen", &addr, "--health", "127.0.0.1:0", "--conductor", &self.grpc]);
            command.args(["--threads", &self.args.threads.to_string(), "--config"]).arg(&self.args.config);
            self.peers.push(Process::start(&name, addr.parse()?, command)?);
        }
        while self.trainers.len() < self.args.trainers {
            self.made += 1;
            let name = format!("trainer-{}", self.made);
            let mut command = child("trainer", &name, self.trust.stdin_of(Role::Trainer, &[&name])?)?;
            command.args(["--listen", "127.0.0.1:0", "--health", "127.0.0.1:0", "--conductor", &self.grpc]);
            command.arg("--config").arg(&self.args.config);
            self.trainers.push(Process::start(&name, "127.0.0.1:0".parse()?, command)?);
        }
        Ok(())
    }

    /// One round: replace the lost, print what is new. True at the end of the run.
    async fn look(&mut self) -> anyhow::Result<bool> {
        let status = self.get::<Status>("/status").await;
        let over = status.as_ref().is_some_and(|s| s.phase == "Succeeded");
        if !over {
            self.replace().await?;
        }
        let Some(status) = status else { return Ok(false) };
        if status.phase == "Failed" {
            bail!("{}", status.message);
        }
        if !self.announced {
            // A short run may be over, with everybody gone, before it was seen whole.
            if !over && status.stages.iter().any(|s| s.peers == 0) {
                if self.started.elapsed() > START {
                    bail!("not every stage has a peer after {} s; run with --log debug", START.as_secs());
                }
                return Ok(false);
            }
            println!("{}", self.processes(&status));
            self.announced = true;
        }
        let steps: Vec<Value> = self.get(&format!("/steps?from={}", self.printed)).await.unwrap_or_default();
        for step in steps {
            self.printed = step["step"].as_u64().unwrap_or(self.printed) + 1;
            self.crashes = 0;
            println!("{step}");
        }
        if over && self.printed >= status.step {
            println!(
                "{}",
                json!({"checkpoint": status.last_checkpoint, "validation_loss": status.validation_loss,
                       "redone": status.redone, "lost": status.lost})
            );
            return Ok(true);
        }
        Ok(false)
    }

    fn processes(&self, status: &Status) -> Value {
        let stage_of = |name: &str| status.members.iter().position(|m| m.iter().any(|n| n == name));
        let mut all =
            vec![json!({"role": "conductor", "pid": self.conductor.pid(), "addr": self.conductor.addr})];
        all.extend(self.trainers.iter().map(|p| json!({"role": "trainer", "name": p.name, "pid": p.pid()})));
        all.extend(
            self.peers
                .iter()
                .map(|p| json!({"role": "peer", "name": p.name, "stage": stage_of(&p.name), "pid": p.pid(), "addr": p.addr})),
        );
        json!({"url": format!("http://{}", self.http), "processes": all})
    }

    async fn replace(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.conductor.ended() {
            warn!(%status, "the conductor is lost");
            self.crashes += 1;
            self.conductor = conductor(&self.args, &self.trust, &self.grpc, &self.http)?;
        }
        let before = self.peers.len() + self.trainers.len();
        for processes in [&mut self.peers, &mut self.trainers] {
            processes.retain_mut(|process| match process.ended() {
                Some(status) => {
                    warn!(name = process.name, %status, "a process is lost");
                    false
                }
                None => true,
            });
        }
        self.crashes += u32::try_from(before - self.peers.len() - self.trainers.len()).unwrap_or(u32::MAX);
        if self.crashes > CRASHES_MAX {
            bail!("processes end again and again without a step; run with --log debug to see why");
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
        let mut all: Vec<Process> = self.peers.drain(..).chain(self.trainers.drain(..)).collect();
        for process in &mut all {
            process.kill();
        }
        for process in &mut all {
            process.reap().await;
        }
        self.conductor.terminate();
        self.conductor.reap().await;
    }
}

fn conductor(args: &LocalTrainArgs, trust: &LocalTrust, grpc: &str, http: &str) -> anyhow::Result<Process> {
    // Whoever dials it expects the host of its address.
    let certificates = trust.stdin_of(Role::Conductor, &["conductor", &Ipv4Addr::LOCALHOST.to_string()])?;
    let mut command = child("conductor", "conductor", certificates)?;
    command.args(["--listen", grpc, "--health", "127.0.0.1:0", "--http", http, "--config"]).arg(&args.config);
    Process::start("conductor", grpc.parse()?, command)
}

/// A free address on loopback.
async fn loopback() -> anyhow::Result<String> {
    Ok(free_addr((Ipv4Addr::LOCALHOST, 0).into()).await?.to_string())
}
