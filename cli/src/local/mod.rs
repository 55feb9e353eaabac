//! A whole swarm as processes on this machine: same gateway, same protocol, same recovery as on Kubernetes.
//!
//! The supervisor does what the operator does in a cluster: it starts stages, gives them layers, tells the gateway, and
//! replaces those that are lost.

mod args;
mod control;
mod crashes;
mod layout;
mod members;

pub use args::LocalArgs;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use dunlin_swarm::{PeerState, Topology};
use dunlin_wire::{LinksConfig, proto};
use dunlin_worker::exit::NeedsUser;
use dunlin_worker::model::{ModelPlace, adapters};
use dunlin_worker::stage::device::DeviceChoice;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::processes::ports::free_addr;
use crate::processes::process::Process;
use crate::processes::supervise::supervise;
use crate::processes::trust::LocalTrust;
use control::{Control, LOOK};
use crashes::Crashes;
use dunlin_terminal::print;
use dunlin_terminal::progress::Progress;

/// A swarm serves within this time or not at all.
const START: Duration = Duration::from_secs(120);
/// A swarm that served and has no holder of some layer for so long, because a stage has a problem, ends with that.
const UNSERVED: Duration = Duration::from_secs(10);

/// Runs a local swarm until SIGTERM or SIGINT, or until nobody reads what it prints.
///
/// # Errors
/// When it does not come to serve, has a problem that another start of a stage does not mend, or stages end again and again.
pub async fn run(args: LocalArgs) -> anyhow::Result<()> {
    if args.peers == 0 || !args.model.exists() {
        let problem = anyhow!("{}: no such model, or no peers asked for", args.model.display());
        return Err(problem).needs_user();
    }
    adapters::check(&args.adapters.adapters, Some(&ModelPlace::path(&args.model).name()))?;
    let worker = args.worker.find().needs_user()?;
    let http = free_addr(args.listen).await?;
    let control = free_addr("127.0.0.1:0".parse()?).await?;
    let trust = LocalTrust::new(&args.authority)?;
    let gateway = members::gateway(&worker, &args, &trust, http, control)?;
    let links = trust.links();
    let gateway_control = Control::new(links.clone(), &gateway.name, gateway.addr.to_string());
    let mut supervisor = Supervisor {
        links,
        trust,
        gateway,
        gateway_control,
        stages: Vec::new(),
        topology: Topology::default(),
        plan: watch::Sender::default(),
        made: 0,
        crashes: Crashes::default(),
        served: None,
        told: None,
        progress: Some(Progress::waiting("starts")),
        http,
        started: Instant::now(),
        worker,
        args,
    };
    let outcome = supervise(LOOK, async || supervisor.look().await).await;
    supervisor.stop().await;
    outcome
}

struct Stage {
    process: Process,
    /// Computes with the device that was asked for, which one stage has at a time.
    has_device: bool,
    /// What it said last, from the task that asks it.
    said: watch::Receiver<Option<proto::Status>>,
    /// The same as this round sees it.
    status: Option<proto::Status>,
    /// Since when it is ready.
    ready: Option<Instant>,
}

impl Stage {
    fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(is_ready)
    }

    /// Where it listens and what it said, once it has read its model.
    fn member(&self) -> Option<(String, &proto::Status)> {
        let status = self.status.as_ref().filter(|status| status.model.is_some())?;
        Some((self.process.addr.to_string(), status))
    }
}

fn is_ready(status: &proto::Status) -> bool {
    status.state() == proto::State::Ready
}

/// A problem the user has to fix. The process may be able to live with it.
fn problem(status: &proto::Status) -> Option<String> {
    let problem = status.problem.as_ref()?;
    Some(format!("{}: {}", problem.reason, problem.message))
}

struct Supervisor {
    args: LocalArgs,
    /// The program of all processes.
    worker: PathBuf,
    trust: LocalTrust,
    links: LinksConfig,
    http: SocketAddr,
    gateway: Process,
    gateway_control: Control,
    stages: Vec<Stage>,
    topology: Topology,
    /// The topology as it is sent.
    plan: watch::Sender<Topology>,
    made: u32,
    crashes: Crashes,
    /// When the gateway last said that every layer has a holder.
    served: Option<Instant>,
    /// The problem that was told last.
    told: Option<String>,
    /// For a user who waits until it serves.
    progress: Option<Progress>,
    started: Instant,
}

impl Supervisor {
    /// One round: replace the lost, see what everybody said, plan, tell everybody. `Break` when nobody reads where the swarm is.
    async fn look(&mut self) -> anyhow::Result<ControlFlow<()>> {
        if let Some(status) = self.gateway.ended() {
            let why = self.gateway.last_words().await.map_or_else(String::new, |words| format!(": {words}"));
            bail!("the gateway ended ({status}){why}");
        }
        self.replace().await?;
        for stage in &mut self.stages {
            stage.status = stage.said.borrow().clone();
            if stage.is_ready() {
                stage.ready.get_or_insert_with(Instant::now);
            }
        }
        let members: Vec<_> = self.stages.iter().filter_map(Stage::member).collect();
        // The first plan waits for everybody; later ones make do with who is there.
        if members.len() == self.args.peers || self.topology.epoch > 0 {
            let planned = layout::plan(&members, &self.topology, self.args.peers, self.args.shadows)?;
            if planned != self.topology {
                info!(epoch = planned.epoch, peers = planned.peers.len(), "new topology");
                self.plan.send_replace(planned.clone());
                self.topology = planned;
            }
        }
        let plan = self.plan.borrow().clone();
        let gateway = self.gateway_control.gateway(&plan).await;
        if let Some(gateway) = &gateway {
            self.crashes.served(gateway.tokens);
        }
        let whole = gateway.as_ref().is_some_and(|s| s.behind.is_empty());
        let answers = gateway.as_ref().is_some_and(|s| is_ready(s) && s.lost.is_empty());
        self.problems(gateway.as_ref(), answers)?;
        if self.served.is_none() && self.started.elapsed() > START {
            bail!("the swarm does not serve after {} s: {}", START.as_secs(), self.states());
        }
        if let Some(progress) = &self.progress {
            progress.now(self.states());
        }
        if self.served.is_none() && self.serves(answers && whole) {
            self.progress = None;
            if self.tell_user()?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.served = Some(Instant::now());
        } else if self.served.is_some() && answers {
            self.served = Some(Instant::now());
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What no new stage would mend ends the swarm at once if it does not serve yet, and after a while if it no longer does.
    fn problems(&mut self, gateway: Option<&proto::Status>, answers: bool) -> anyhow::Result<()> {
        let of = |status: &proto::Status| Some((problem(status)?, is_ready(status)));
        let statuses = self.stages.iter().filter_map(|stage| stage.status.as_ref()).chain(gateway);
        let mut problems: Vec<(String, bool)> = statuses.filter_map(of).collect();
        problems.sort_by_key(|(_, ready)| *ready);
        let Some((problem, ready)) = problems.into_iter().next() else { return Ok(()) };
        let over = match self.served {
            None => !ready,
            Some(last) => !ready && !answers && last.elapsed() >= UNSERVED,
        };
        ensure!(!over, "{problem}");
        if self.told.as_ref() != Some(&problem) {
            warn!("{problem}");
            self.told = Some(problem);
        }
        Ok(())
    }

    async fn replace(&mut self) -> anyhow::Result<()> {
        let mut lost = Vec::new();
        for at in (0..self.stages.len()).rev() {
            if let Some(status) = self.stages[at].process.ended() {
                lost.push((self.stages.remove(at), status));
            }
        }
        for (mut stage, status) in lost {
            self.crashes.ended(stage.ready.map(|at| at.elapsed()));
            let name = stage.process.name.clone();
            let why = stage.process.last_words().await.map_or_else(String::new, |words| format!(": {words}"));
            if let Some(count) = self.crashes.too_many() {
                bail!("{count} stages ended one after the other, the last one, {name}, with {status}{why}");
            }
            warn!("{name} ended ({status}){why}; peer-{} takes its place", self.made + 1);
            self.start_stage().await?;
        }
        while self.stages.len() < self.args.peers {
            self.start_stage().await?;
        }
        Ok(())
    }

    async fn start_stage(&mut self) -> anyhow::Result<()> {
        self.made += 1;
        let addr = free_addr("127.0.0.1:0".parse()?).await?;
        let health = free_addr("127.0.0.1:0".parse()?).await?;
        let name = format!("peer-{}", self.made);
        let has_device = self.stages.iter().all(|stage| !stage.has_device);
        let device = if has_device { self.args.device } else { DeviceChoice::Cpu };
        let process = members::stage(&self.worker, &self.args, &self.trust, &name, addr, health, device)?;
        let control = Control::new(self.links.clone(), &name, addr.to_string());
        let said = control::attend(control, self.plan.subscribe());
        self.stages.push(Stage { process, has_device, said, status: None, ready: None });
        Ok(())
    }

    /// Has everybody loaded what it was given, and does the gateway know it? From then on a stage may be lost.
    fn serves(&self, answers: bool) -> bool {
        let planned =
            self.topology.peers.iter().all(|p| p.state == PeerState::Ready) && self.topology.epoch > 0;
        planned && answers && self.stages.iter().all(Stage::is_ready)
    }

    /// What the stages are doing, for a user who waits for them.
    fn states(&self) -> String {
        let of = |stage: &Stage| {
            let state = stage.status.as_ref().map(proto::Status::state);
            let word = state.map_or("does not answer", |state| match state {
                proto::State::Starting => "opens the model",
                proto::State::Loading => "loads layers",
                proto::State::Ready => "is ready",
                proto::State::Draining => "is about to go",
                proto::State::Failed => "has failed",
            });
            format!("{} {word}", stage.process.name)
        };
        self.stages.iter().map(of).collect::<Vec<_>>().join(", ")
    }

    /// Prints the line of JSON; `Break` when nobody reads it.
    fn tell_user(&self) -> std::io::Result<ControlFlow<()>> {
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
        print::hint(self.things_to_try(&url));
        print::line(json!({"url": url, "gateway": {"addr": self.gateway.addr}, "peers": peers}))
    }

    /// For whoever sees it for the first time.
    fn things_to_try(&self, url: &str) -> String {
        let mut order: Vec<&Stage> = self.stages.iter().collect();
        let start =
            |stage: &Stage| self.topology.peer(&stage.process.name.as_str().into()).map(|p| p.span.start);
        order.sort_by_key(|stage| start(stage));
        let middle = order.get(order.len() / 2).map_or(0, |stage| stage.process.pid());
        let question =
            r#"{"stream": true, "messages": [{"role": "user", "content": "Tell me a long story."}]}"#;
        format!(
            "The swarm serves. Three things to try:\n  \
             talk to it, and watch its layers:   open {url}/ in a browser\n  \
             ask it as any OpenAI client would:  curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{question}'\n  \
             lose a stage while it answers:      kill -9 {middle}\n\
             Ctrl-C ends it."
        )
    }

    async fn stop(mut self) {
        info!("ends");
        let orphaned = self.gateway.ended().is_some();
        for stage in &mut self.stages {
            // Without a gateway there is nothing to hand over.
            if orphaned { stage.process.kill() } else { stage.process.terminate() }
        }
        self.gateway.terminate();
        let stages = self.stages.iter_mut().map(|stage| stage.process.reap());
        futures::join!(futures::future::join_all(stages), self.gateway.reap());
    }
}
