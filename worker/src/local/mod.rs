//! A whole swarm as processes on this machine: same gateway, same protocol, same recovery as on Kubernetes.
//!
//! The supervisor does what the operator does in a cluster: it starts stages, gives them layers, tells the gateway, and
//! replaces those that are lost.

mod layout;
pub mod process;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use dunlin_planner::{PeerState, Topology};
use dunlin_wire::{LinksConfig, links, proto};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::certificates::LocalTrust;
use crate::cli::LocalArgs;
use crate::model::{Location, adapters};
use crate::print;
use layout::Member;
use process::Process;

/// How often stages are asked how they are.
const LOOK: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(1000);
/// A swarm serves within this time or not at all.
const START: Duration = Duration::from_secs(120);
/// Replacements in a row that may end at once before the supervisor gives up.
const CRASHES_MAX: u32 = 20;

type Control = proto::control_client::ControlClient<Channel>;

/// Runs a local swarm until SIGTERM or SIGINT.
///
/// # Errors
/// When it does not come to serve, or stages end again and again.
pub async fn run(args: LocalArgs) -> anyhow::Result<()> {
    if args.peers == 0 || !args.model.exists() {
        bail!("{}: no such model, or no peers asked for", args.model.display());
    }
    adapters::check(&args.adapters.adapters, Some(&Location::Path(args.model.clone()).stem()))?;
    let http = free_addr(args.listen).await?;
    let control = free_addr("127.0.0.1:0".parse()?).await?;
    let trust = LocalTrust::new(&args.authority)?;
    let gateway = Process::gateway(&args, &trust, http, control)?;
    let mut supervisor = Supervisor {
        links: trust.links(),
        trust,
        gateway,
        gateway_control: None,
        stages: Vec::new(),
        topology: Topology::default(),
        made: 0,
        crashes: 0,
        served: false,
        http,
        started: Instant::now(),
        args,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = ticks.tick() => if let Err(error) = supervisor.look().await { break Err(error) },
        }
    };
    supervisor.stop().await;
    outcome
}

/// An address nobody listens on; port 0 means any.
pub async fn free_addr(addr: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
    Ok(listener.local_addr()?)
}

struct Stage {
    process: Process,
    control: Option<Control>,
    status: Option<proto::Status>,
    /// Epoch it has acknowledged.
    epoch: u64,
}

struct Supervisor {
    args: LocalArgs,
    trust: LocalTrust,
    links: LinksConfig,
    http: SocketAddr,
    gateway: Process,
    gateway_control: Option<Control>,
    stages: Vec<Stage>,
    topology: Topology,
    made: u32,
    crashes: u32,
    served: bool,
    started: Instant,
}

impl Supervisor {
    /// One round: replace the lost, ask everybody, plan, tell everybody.
    async fn look(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.gateway.ended() {
            bail!("the gateway ended: {status}");
        }
        self.replace().await?;
        for stage in &mut self.stages {
            stage.status = ask(&self.links, &mut stage.control, &stage.process, |mut c| async move {
                c.get_status(proto::StatusRequest {}).await
            })
            .await;
        }
        let members: Vec<Member> = self.stages.iter().filter_map(member).collect();
        // The first plan waits for everybody; later ones make do with who is there.
        if members.len() == self.args.peers || self.topology.epoch > 0 {
            let planned = layout::plan(&members, &self.topology, self.args.peers, self.args.shadows)?;
            if planned != self.topology {
                info!(epoch = planned.epoch, peers = planned.peers.len(), "new topology");
                self.topology = planned;
            }
            self.tell().await?;
        }
        if !self.served {
            self.check_served().await?;
        }
        Ok(())
    }

    async fn replace(&mut self) -> anyhow::Result<()> {
        let before = self.stages.len();
        self.stages.retain_mut(|stage| match stage.process.ended() {
            Some(status) => {
                warn!(peer = stage.process.name, %status, "the stage is lost");
                false
            }
            None => true,
        });
        if self.served && self.stages.len() < before {
            self.crashes += 1;
        }
        if self.crashes > CRASHES_MAX
            || (!self.served && self.made as usize > self.args.peers + CRASHES_MAX as usize)
        {
            bail!("stages end again and again; run one with --log debug to see why");
        }
        while self.stages.len() < self.args.peers {
            self.made += 1;
            let addr = free_addr("127.0.0.1:0".parse()?).await?;
            let health = free_addr("127.0.0.1:0".parse()?).await?;
            let process =
                Process::stage(&self.args, &self.trust, &format!("peer-{}", self.made), addr, health)?;
            self.stages.push(Stage { process, control: None, status: None, epoch: 0 });
        }
        Ok(())
    }

    /// The topology to everybody who has not acknowledged it.
    async fn tell(&mut self) -> anyhow::Result<()> {
        let json = serde_json::to_string(&self.topology)?;
        let epoch = self.topology.epoch;
        for stage in self.stages.iter_mut().filter(|s| s.epoch != epoch) {
            let topology = json.clone();
            let status = ask(&self.links, &mut stage.control, &stage.process, |mut c| async move {
                c.assign(proto::Assignment { epoch, topology }).await
            })
            .await;
            if status.is_some_and(|s| s.epoch == epoch) {
                stage.epoch = epoch;
            }
        }
        // Pushed again and again: a gateway ignores what it knows.
        ask(&self.links, &mut self.gateway_control, &self.gateway, |mut c| async move {
            c.push_topology(proto::TopologyPush { topology: json }).await
        })
        .await;
        Ok(())
    }

    /// Prints the line of JSON when the gateway answers.
    async fn check_served(&mut self) -> anyhow::Result<()> {
        if self.started.elapsed() > START {
            bail!("the swarm does not serve after {} s", START.as_secs());
        }
        let problem = self.stages.iter().filter_map(|s| s.status.as_ref()?.problem.clone()).next();
        if let Some(problem) = problem {
            bail!("{}: {}", problem.reason, problem.message);
        }
        let ready =
            self.stages.iter().all(|s| s.status.as_ref().is_some_and(|s| s.state() == proto::State::Ready));
        let planned =
            self.topology.peers.iter().all(|p| p.state == PeerState::Ready) && self.topology.epoch > 0;
        let gateway = ask(&self.links, &mut self.gateway_control, &self.gateway, |mut c| async move {
            c.get_status(proto::StatusRequest {}).await
        })
        .await;
        let answers = gateway.is_some_and(|s| s.state() == proto::State::Ready && s.lost.is_empty());
        if !(ready && planned && answers) {
            return Ok(());
        }
        let peers: Vec<_> = self
            .stages
            .iter()
            .map(|stage| {
                let own =
                    self.topology.peer(&stage.process.name.as_str().into()).cloned().unwrap_or_default();
                json!({
                    "name": stage.process.name, "pid": stage.process.pid(), "addr": stage.process.addr,
                    "layers": [own.span.start, own.span.end],
                    "shadows": own.shadows.iter().map(|s| [s.start, s.end]).collect::<Vec<_>>(),
                })
            })
            .collect();
        let url = format!("http://{}", self.http);
        let line = json!({"url": url, "gateway": {"addr": self.gateway.addr}, "peers": peers});
        // The swarm serves whoever has its address; nobody else has to read this line.
        let _ = print::line(line)?;
        self.served = true;
        Ok(())
    }

    async fn stop(mut self) {
        info!("ends");
        for stage in &self.stages {
            stage.process.terminate();
        }
        self.gateway.terminate();
        for stage in &mut self.stages {
            stage.process.reap().await;
        }
        self.gateway.reap().await;
    }
}

fn member(stage: &Stage) -> Option<Member> {
    let status = stage.status.as_ref()?;
    let model = status.model.as_ref()?;
    let load = status.load.clone().unwrap_or_default();
    Some(Member {
        name: stage.process.name.clone(),
        addr: stage.process.addr.to_string(),
        layers: model.layers,
        rate: load.rows_per_s_per_layer,
        state: match status.state() {
            proto::State::Ready => PeerState::Ready,
            proto::State::Draining => PeerState::Draining,
            _ => PeerState::Loading,
        },
    })
}

/// Asks over a connection that is made when needed and dropped when it fails.
async fn ask<F>(
    links: &LinksConfig,
    control: &mut Option<Control>,
    process: &Process,
    question: impl FnOnce(Control) -> F,
) -> Option<proto::Status>
where
    F: Future<Output = Result<tonic::Response<proto::Status>, tonic::Status>>,
{
    let client = match control {
        Some(client) => client.clone(),
        None => {
            let addr = process.addr.to_string();
            let channel = timeout(ANSWER, links::connect(links, &process.name, &addr)).await.ok()?.ok()?;
            control.insert(Control::new(channel)).clone()
        }
    };
    match timeout(ANSWER, question(client)).await {
        Ok(Ok(response)) => Some(response.into_inner()),
        _ => {
            *control = None;
            None
        }
    }
}
