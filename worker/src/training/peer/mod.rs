//! The role that computes a stage: sockets, tensors and one engine thread around [`PeerDriver`], which decides.
//!
//! * [`perform`] what the driver wants done, [`jobs`] by the engine; [`event`] what happens then, [`happened`] what comes of it
//! * [`engine`] the thread that owns the stage
//! * [`average`] averages among the peers of a stage
//! * [`fetch`] a stage, from mates or a checkpoint; [`unfetched`] why it could not be had
//! * [`state`] parts of its state, checked; [`kept`] the updates that are made meanwhile
//! * [`serve`] what mates pull, in [`pieces`]; [`giving`] that alone
//! * [`clock`] time as machines count it; [`alarm`] memory has changed by itself
//! * [`memory`] what is freed is kept
//! * [`member`] averages alone, to measure them

mod alarm;
mod average;
#[cfg(test)]
mod average_tests;
mod clock;
mod engine;
mod event;
mod fetch;
#[cfg(test)]
mod fetch_tests;
mod fetched;
mod giving;
mod happened;
mod jobs;
mod kept;
pub mod member;
mod memory;
mod perform;
mod pieces;
mod serve;
mod state;
mod unfetched;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use dunlin_model::OWN_NUMERICS;
use dunlin_protocol::training::driver::{DriverEffect, DriverEvent, PeerDriver};
use dunlin_protocol::training::serve::ServeConfig;
use dunlin_protocol::training::{Call, CallKind, Mate, PeerConfig, RequestId, ShardId};
use dunlin_swarm::PeerName;
use dunlin_swarm::timing::DRAIN;
use dunlin_train::Run;
use dunlin_train::checkpoint::Destination;
use dunlin_train::scratch;
use dunlin_train::stage::ComputedCall;
use dunlin_wire::control::{ControlRequest, ControlService, Question};
use dunlin_wire::proto;
use dunlin_wire::train::{ConductorLinkEvent, StageInbound, TrainStageService, dial_conductor};
use dunlin_wire::training::{ToConductor, ToMember};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::values::Clients;
use super::{advertised, links, read_config};
use crate::certificates::credentials;
use crate::cli::TrainPeerArgs;
use crate::exit::NeedsUser;
use crate::health;
use alarm::Alarm;
use average::FormedAverages;
use clock::Clock;
use engine::{EngineEnd, TrainingEngine};
use event::Event;
use fetch::Fetching;
use serve::{Pulled, Pulls, Served};

/// Runs a peer until it is retired or SIGTERM.
///
/// # Errors
/// When the configuration or certificates cannot be used, an address cannot be bound, or an update fails.
#[expect(clippy::too_many_lines, reason = "wires a process from its options")]
pub async fn run(args: TrainPeerArgs) -> anyhow::Result<()> {
    memory::keep_freed();
    scratch::sweep();
    let config = read_config(&args.config)?;
    let credentials = credentials(&args.process)?;
    let links = links(&args.process, credentials.clone());
    let run = Arc::new(super::run_of(config)?);
    memory::suffices(&run, args.memory).needs_user()?;
    let listener = TcpListener::bind(args.process.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.process.listen))?;
    let me = Mate {
        name: args.process.name.as_str().into(),
        addr: advertised(listener.local_addr()?, &args.conductor).await?,
        host: args.host,
    };
    info!(addr = me.addr, "peer {} listens", me.name);
    let (stage_in, inbound) = mpsc::channel(CALLS_QUEUED);
    let (call_bytes_max, calls_max) = (run.call_bytes_max(), run.calls_max());
    let (questions_in, questions) = mpsc::channel(64);
    let router = server()
        .add_service(TrainStageService::service(stage_in, call_bytes_max, calls_max))
        .add_service(ControlService::service(questions_in));
    tokio::spawn(router.serve_with_incoming(dunlin_wire::incoming(listener, credentials)));
    let ready = Arc::new(AtomicBool::new(false));
    health::serve(args.process.health, Arc::clone(&ready), String::new).await?;
    let (link_in, link) = mpsc::channel(256);
    dial_conductor(links.clone(), args.conductor, link_in);
    let (events_in, events) = mpsc::channel(1024);
    let config = PeerConfig {
        microbatches: u32::try_from(run.config.microbatches())?,
        delayed_updates: run.config.optimizer.delayed_updates,
        calls_max,
        arithmetic: OWN_NUMERICS,
    };
    let (engine, ended) = TrainingEngine::start(args.threads)?;
    let alarm = Alarm::new(events_in.clone());
    let clients = Clients::new(links, call_bytes_max);
    let (pulls, served) = Pulls::new(engine.clone(), alarm.clone());
    let peer = Peer {
        driver: PeerDriver::new(
            me.clone(),
            config,
            ServeConfig::default(),
            fetch::config(&run, args.disk / 2),
        ),
        clock: Clock::start(),
        me,
        destination: run.config.checkpoint.as_ref().map(|c| c.destination.clone()),
        fetching: Fetching::new(Arc::clone(&run), clients.clone(), engine.clone(), events_in.clone()),
        run,
        clients,
        pulls,
        engine,
        alarm,
        averages: FormedAverages::new(),
        arrived: BTreeMap::new(),
        spare: BTreeMap::new(),
        calls: BTreeMap::new(),
        conductor: None,
        events: events_in,
        ready,
        leaving: None,
        corrupt: None,
        retired: false,
    };
    peer.run(inbound, link, events, questions, (served, ended)).await
}

/// The server of a peer, without services yet.
fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(32 << 20)
}

/// Calls that have come and were not looked at.
const CALLS_QUEUED: usize = 16;

/// A trainer's call that waits.
struct Waiting {
    request: proto::ComputeRequest,
    reply: oneshot::Sender<proto::ComputeReply>,
    /// What was computed for it.
    computed: Option<ComputedCall>,
}

struct Peer {
    me: Mate,
    driver: PeerDriver,
    /// Of the driver's time.
    clock: Clock,
    run: Arc<Run>,
    clients: Clients,
    engine: TrainingEngine,
    pulls: Pulls,
    alarm: Alarm,
    /// Averages of the present step.
    averages: FormedAverages,
    /// Sums of mates that leave, until the engine adds them: of each mate those that came last.
    arrived: BTreeMap<PeerName, Vec<i64>>,
    /// Memory of averages that were applied, for the next ones.
    spare: BTreeMap<ShardId, Vec<f32>>,
    fetching: Fetching,
    calls: BTreeMap<RequestId, Waiting>,
    conductor: Option<mpsc::Sender<ToConductor>>,
    events: mpsc::Sender<Event>,
    destination: Option<Destination>,
    ready: Arc<AtomicBool>,
    /// It must be gone by then.
    leaving: Option<Instant>,
    /// Its memory has changed by itself.
    corrupt: Option<String>,
    /// It has nothing more to do.
    retired: bool,
}

impl Peer {
    async fn run(
        mut self,
        mut inbound: mpsc::Receiver<StageInbound>,
        mut link: mpsc::Receiver<ConductorLinkEvent>,
        mut events: mpsc::Receiver<Event>,
        mut questions: mpsc::Receiver<ControlRequest>,
        (mut served, mut ended): (Served, EngineEnd),
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut out = Vec::new();
        loop {
            let deadline = self.leaving.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let (clock, wake_ms) = (self.clock, self.driver.wake_ms());
            let turn = async {
                anyhow::Ok(tokio::select! {
                    biased;
                    _ = terminate.recv() => self.leave(DRAIN),
                    _ = &mut ended => bail!("the thread that computes has ended: see above why"),
                    Some(event) = events.recv() => self.happened(event)?,
                    Some(event) = link.recv() => self.heard(event, &mut out)?,
                    Some(request) = questions.recv() => self.asked(request),
                    Some(ask) = served.recv() => Some(DriverEvent::Served(ask)),
                    () = clock.until(wake_ms) => Some(DriverEvent::Deadline),
                    Some(event) = inbound.recv() => self.arrived(event),
                })
            };
            match timeout_at(deadline, turn).await {
                Err(_) if self.leaving.is_some() => {
                    if let Some(what) = self.corrupt {
                        bail!("{what}; the conductor could not be told");
                    }
                    warn!("the time to hand over is up");
                    return Ok(());
                }
                Err(_) => {}
                Ok(event) => {
                    if let Some(event) = event? {
                        self.driver.handle(self.clock.now_ms(), event, &mut out);
                    }
                }
            }
            for effect in std::mem::take(&mut out) {
                self.perform(effect)?;
            }
            if self.retired {
                info!("retired");
                return Ok(());
            }
            self.ready.store(self.driver.serving(), Ordering::Relaxed);
        }
    }

    fn leave(&mut self, by: Duration) -> Option<DriverEvent> {
        if self.leaving.is_some() {
            return None;
        }
        info!("notice: handing over");
        self.leaving = Some(Instant::now() + by);
        Some(DriverEvent::Notice { within_ms: u64::try_from(by.as_millis()).unwrap_or(u64::MAX) })
    }

    fn asked(&mut self, ControlRequest { question, answer, .. }: ControlRequest) -> Option<DriverEvent> {
        let notice = match question {
            Question::Drain { deadline_ms } => self.leave(Duration::from_millis(deadline_ms).min(DRAIN)),
            _ => None,
        };
        let state = match (self.leaving.is_some(), self.driver.serving()) {
            (true, _) => proto::State::Draining,
            (_, true) => proto::State::Ready,
            _ => proto::State::Loading,
        };
        let status =
            proto::Status { name: self.me.name.to_string(), state: state.into(), ..Default::default() };
        let _ = answer.send(status);
        notice
    }

    fn heard(
        &mut self,
        event: ConductorLinkEvent,
        out: &mut Vec<DriverEffect>,
    ) -> anyhow::Result<Option<DriverEvent>> {
        match event {
            ConductorLinkEvent::Up(sayer) => {
                let mut asked = Vec::new();
                let hello = self.driver.connected(self.clock.now_ms(), &mut asked);
                if sayer.try_send(hello.into()).is_ok() {
                    self.conductor = Some(sayer);
                    out.append(&mut asked);
                }
            }
            ConductorLinkEvent::Said(ToMember::Peer(said)) => return Ok(Some(DriverEvent::Heard(said))),
            ConductorLinkEvent::Said(ToMember::Trainer(_)) => {
                bail!("the conductor takes this peer for a trainer")
            }
            ConductorLinkEvent::Down(why) => {
                debug!(why, "no conductor");
                self.conductor = None;
            }
        }
        Ok(None)
    }

    fn arrived(&mut self, event: StageInbound) -> Option<DriverEvent> {
        Some(match event {
            StageInbound::Call(id, _, request, reply) => {
                let call = Call {
                    stage: request.stage,
                    step: request.step,
                    microbatch: request.microbatch,
                    attempt: request.attempt,
                    kind: match request.kind() {
                        proto::ComputeKind::ComputeForward => CallKind::Forward,
                        proto::ComputeKind::ComputeBackward => CallKind::Backward,
                        proto::ComputeKind::ComputeLoss => CallKind::Loss,
                    },
                };
                self.calls.insert(id, Waiting { request, reply, computed: None });
                DriverEvent::Called(id, call)
            }
            StageInbound::HungUp(id) => {
                self.calls.remove(&id);
                DriverEvent::HungUp(id)
            }
            StageInbound::Pull(caller, request, pieces) => {
                let Pulled { ask, by, stage, wanted } = self.pulls.asked(&caller, request, pieces)?;
                DriverEvent::Asked { ask, by, stage, wanted }
            }
        })
    }
}
