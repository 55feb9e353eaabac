//! The role that executes layers: sockets and threads around [`StageNode`].

mod loader;
mod metrics;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use dunlin_engine::memory::Fit;
use dunlin_engine::{Command, Engine, EngineConfig};
use dunlin_planner::topology::{layer_set, ranges};
use dunlin_planner::{Load, PeerName, Topology};
use dunlin_protocol::stage::Computed;
use dunlin_protocol::{Destination, Frame, Sender, StageConfig, StageEffect, StageNode};
use dunlin_wire::control::{ControlRequest, ControlService, Question};
use dunlin_wire::{Inbound, InboundEvent, LinkEvent, Links, LinksConfig, convert, proto};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};
use tracing::{info, warn};

use crate::certificates::tls;
use crate::cli::StageArgs;
use crate::model::{Location, adapters};
use crate::{health, memory};
use loader::{Hold, Loader, Source};

/// Sessions at once.
const SESSIONS_MAX: usize = 1024;
/// A gateway not heard of for this long has no sessions any more.
const LEASE_MS: u64 = 10_000;
/// Longest time between SIGTERM and the end.
const DRAIN: Duration = Duration::from_secs(25);
/// Frames and results that may wait.
const EVENTS_MAX: usize = 4096;

/// Runs a stage until SIGTERM.
///
/// # Errors
/// When the options or certificates cannot be used, or an address cannot be bound.
pub async fn run(args: StageArgs) -> anyhow::Result<()> {
    let tls = tls(&args.process)?;
    let location = Location::new(&args.model)?;
    let adapters = args.adapters.adapters;
    adapters::check(&adapters, None)?;
    let (results_in, results) = mpsc::channel(EVENTS_MAX);
    let engine_slot: EngineSlot = Arc::default();
    let slot = Arc::clone(&engine_slot);
    let threads = args.threads;
    let source =
        Source { location, adapters, max_seq_len: args.max_seq_len, memory: memory::limit(args.memory) };
    let loader = Loader::start(
        source,
        Box::new(move |file, positions| {
            let (model, hidden) = (file.config().clone(), file.config().hidden);
            let config = EngineConfig { model, threads, positions_max: positions as usize, kv_bytes: 0 };
            let done = Box::new(move |done: Computed| {
                // The receiver is gone only when the process ends.
                let _ = results_in.blocking_send(done);
            });
            let engine = Engine::start(config, done)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((engine.clone(), hidden));
            Ok(engine)
        }),
    )?;
    let (inbound_in, inbound_events) = mpsc::channel(EVENTS_MAX);
    let inbound = Inbound::new(inbound_in);
    let (questions_in, questions) = mpsc::channel(64);
    let listener = TcpListener::bind(args.process.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.process.listen))?;
    info!(addr = %listener.local_addr()?, "stage {} listens", args.process.name);
    let mut server = tonic::transport::Server::builder()
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(32 << 20)
        .tls_config(tls.server())?;
    let router = server.add_service(inbound.service()).add_service(ControlService::service(questions_in));
    tokio::spawn(router.serve_with_incoming(dunlin_wire::incoming(listener)));

    let (links_in, link_events) = mpsc::channel(EVENTS_MAX);
    let hello = proto::Hello { name: args.process.name.clone(), incarnation: 0, gateway: false };
    let ready = Arc::new(AtomicBool::new(false));
    let metrics = Arc::new(metrics::StageMetrics::default());
    let page = Arc::clone(&metrics);
    health::serve(args.process.health, Arc::clone(&ready), move || page.render()).await?;
    let stage = Stage {
        name: args.process.name.as_str().into(),
        node: StageNode::new(StageConfig {
            name: args.process.name.as_str().into(),
            hidden: 0,
            sessions_max: SESSIONS_MAX,
            journal_bytes_max: 0,
            lease_ms: LEASE_MS,
        }),
        engine: None,
        engine_slot,
        loader,
        links: Links::new(LinksConfig::new(hello, Some(tls)), links_in),
        inbound,
        topology: None,
        hold: Hold::default(),
        journal_bytes_max: 0,
        draining: false,
        started: Instant::now(),
        ready,
        metrics,
    };
    stage.run(inbound_events, link_events, results, questions).await
}

/// Where the loader puts the engine once it runs, with the number of values in a row: nobody may have one without the other.
type EngineSlot = Arc<Mutex<Option<(Engine, usize)>>>;

struct Stage {
    name: PeerName,
    node: StageNode,
    engine: Option<Engine>,
    engine_slot: EngineSlot,
    loader: Loader,
    links: Links,
    inbound: Inbound,
    topology: Option<Topology>,
    /// What the topology gives to us.
    hold: Hold,
    /// What the node was told.
    journal_bytes_max: u64,
    draining: bool,
    started: Instant,
    ready: Arc<AtomicBool>,
    metrics: Arc<metrics::StageMetrics>,
}

impl Stage {
    async fn run(
        mut self,
        mut inbound: mpsc::Receiver<InboundEvent>,
        mut links: mpsc::Receiver<LinkEvent>,
        mut results: mpsc::Receiver<Computed>,
        mut questions: mpsc::Receiver<ControlRequest>,
    ) -> anyhow::Result<()> {
        let mut ticks = interval(Duration::from_millis(50));
        let mut terminate = signal(SignalKind::terminate())?;
        let mut drained_by = None;
        let mut out = Vec::new();
        loop {
            tokio::select! {
                biased;
                Some(done) = results.recv() => self.node.computed(done, self.now_ms(), &mut out),
                Some(event) = inbound.recv() => self.inbound_event(event, &mut out),
                Some(event) = links.recv() => self.link_event(event, &mut out),
                Some(request) = questions.recv() => self.question(request, &mut drained_by),
                _ = terminate.recv() => {
                    info!("SIGTERM: handing over");
                    self.draining = true;
                    drained_by.get_or_insert(Instant::now() + DRAIN);
                }
                _ = ticks.tick() => self.tick(&mut out),
            }
            self.perform(&mut out);
            if let Some(deadline) = drained_by
                && (self.node.session_count() == 0 || Instant::now() >= deadline)
            {
                info!(sessions = self.node.session_count(), "ends");
                return Ok(());
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn inbound_event(&mut self, event: InboundEvent, out: &mut Vec<StageEffect>) {
        let now_ms = self.now_ms();
        if let Sender::Gateway(gateway) = &event.from {
            self.node.heard(gateway, now_ms);
        }
        match event.frame {
            Frame::Ping { seq, .. } => {
                let held = match &event.from {
                    Sender::Gateway(gateway) => self.node.held_of(gateway),
                    Sender::Peer(_) => Vec::new(),
                };
                // A caller whose stream is full or gone finds out by itself.
                let _ = self.inbound.reply(&event.from, &Frame::Pong { seq, load: self.load(), held });
            }
            frame => self.node.frame(&event.from, frame, now_ms, out),
        }
    }

    fn link_event(&mut self, event: LinkEvent, out: &mut Vec<StageEffect>) {
        if let LinkEvent::Lost(peer, why) = event {
            warn!(%peer, why, "the link is down");
            self.links.hang_up(&peer);
            self.node.link_down(&peer, out);
        }
    }

    fn question(&mut self, request: ControlRequest, drained_by: &mut Option<Instant>) {
        match request.question {
            Question::Status | Question::PushTopology(_) => {}
            Question::Assign(json) => self.assign(&json),
            Question::Drain { deadline_ms } => {
                self.draining = true;
                drained_by.get_or_insert(Instant::now() + Duration::from_millis(deadline_ms).min(DRAIN));
            }
        }
        // Whoever asked may be gone.
        let _ = request.answer.send(self.status());
    }

    /// Rule: older epochs and other models are not obeyed.
    fn assign(&mut self, json: &str) {
        let topology = match Topology::parse(json) {
            Ok(topology) => topology,
            Err(error) => return warn!(%error, "an assignment is not sound"),
        };
        if self.topology.as_ref().is_some_and(|known| known.epoch > topology.epoch) {
            return warn!(epoch = topology.epoch, "an older epoch is not obeyed");
        }
        let Some(own) = topology.peer(&self.name) else {
            info!(epoch = topology.epoch, "not in this topology any more");
            self.topology = Some(topology);
            return;
        };
        let hold = Hold { span: own.span, shadows: own.shadows.clone() };
        if hold != self.hold {
            info!(epoch = topology.epoch, span = %hold.span, shadows = ?hold.shadows, "new layers");
            self.loader.want(hold.clone());
            self.hold = hold;
        }
        self.links.set_epoch(topology.epoch);
        self.topology = Some(topology);
    }

    fn tick(&mut self, out: &mut Vec<StageEffect>) {
        if self.engine.is_none()
            && let Some((engine, hidden)) =
                self.engine_slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
        {
            self.node.set_hidden(hidden);
            self.engine = Some(engine);
        }
        self.node.tick(self.now_ms(), out);
        if let Some(engine) = &self.engine {
            let status = engine.status();
            let held = layer_set(&status.held);
            let Fit { layers: wanted, journal_bytes, .. } = self.fit().unwrap_or_default();
            if self.journal_bytes_max != journal_bytes {
                self.node.set_journal_bytes_max(usize::try_from(journal_bytes).unwrap_or(usize::MAX));
                self.journal_bytes_max = journal_bytes;
            }
            if !wanted.is_empty() && wanted.is_subset(&held) {
                let mut keep = wanted;
                keep.extend(layer_set(&self.node.layers_in_use()));
                if held.iter().any(|l| !keep.contains(l)) {
                    let _ = engine.send(Command::Retain(ranges(&keep)));
                }
            }
            self.metrics.update(&status, self.node.session_count(), self.node.journal_bytes());
            self.node.set_held(status.held);
            self.node.set_adapters(status.adapters);
        }
        self.ready.store(self.state() == proto::State::Ready, Ordering::Relaxed);
    }

    fn perform(&mut self, out: &mut Vec<StageEffect>) {
        let mut more = Vec::new();
        for effect in out.drain(..) {
            let delivered = match effect {
                StageEffect::Send { to: Destination::Gateway(gateway), frame } => {
                    let _ = self.inbound.reply(&Sender::Gateway(gateway), &frame);
                    true
                }
                StageEffect::Send { to: Destination::Peer { name, addr }, frame } => {
                    self.links.dial(&name, &addr);
                    let sent = self.links.send(&name, &frame);
                    if !sent {
                        self.links.hang_up(&name);
                        self.node.link_down(&name, &mut more);
                    }
                    true
                }
                StageEffect::Forbidden { from, rule } => {
                    self.inbound.close(&from, rule);
                    true
                }
                StageEffect::Compute(job) => self.command(Command::Job(job)),
                StageEffect::Truncate { session, layers, to } => {
                    self.command(Command::Truncate { session, layers, to })
                }
                StageEffect::Free { session, layers } => self.command(Command::Free { session, layers }),
            };
            debug_assert!(delivered, "the node computes only with layers that an engine holds");
        }
        if !more.is_empty() {
            *out = more;
            self.perform(out);
        }
    }

    fn command(&self, command: Command) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.send(command))
    }

    fn load(&self) -> Load {
        let status = self.engine.as_ref().map(Engine::status).unwrap_or_default();
        Load {
            queue_rows: status.queue_rows,
            free_pages: status.free_pages,
            total_pages: status.total_pages,
            rows_per_s_per_layer: status.rows_per_s_per_layer,
            held: status.held,
            draining: self.draining,
        }
    }

    /// What of the layers that are given to us there is memory for; nothing while that is not known.
    fn fit(&self) -> Option<Fit> {
        self.loader.progress().fit.filter(|(of, _)| *of == self.hold).map(|(_, fit)| fit)
    }

    fn state(&self) -> proto::State {
        let progress = self.loader.progress();
        let held = self.engine.as_ref().map(|e| layer_set(&e.status().held)).unwrap_or_default();
        let complete = self.fit().is_some_and(|fit| !fit.layers.is_empty() && fit.layers.is_subset(&held));
        if self.draining {
            proto::State::Draining
        } else if complete {
            proto::State::Ready
        } else if progress.problem.is_some() {
            proto::State::Failed
        } else if progress.facts.is_none() {
            proto::State::Starting
        } else {
            proto::State::Loading
        }
    }

    fn status(&self) -> proto::Status {
        let progress = self.loader.progress();
        let state = self.state();
        proto::Status {
            name: self.name.0.clone(),
            state: state.into(),
            epoch: self.topology.as_ref().map_or(0, |t| t.epoch),
            load: Some(convert::load_to_wire(&self.load())),
            sessions: u32::try_from(self.node.session_count()).unwrap_or(u32::MAX),
            room_bytes: progress.facts.as_ref().map_or(0, |facts| facts.room),
            model: progress.facts.map(|facts| proto::ModelFacts {
                layers: facts.needs.layer_bytes().len() as u32,
                layer_bytes: facts.needs.layer_bytes().to_vec(),
                embedding_bytes: facts.needs.embedding_bytes(),
                head_bytes: facts.needs.head_bytes(),
                hidden: facts.hidden as u32,
                context_length: facts.context_length,
                sequence_bytes: facts.needs.sequence_bytes(),
                tied: facts.needs.is_tied(),
            }),
            problem: progress
                .problem
                .map(|p| proto::Problem { reason: p.reason.to_owned(), message: p.message }),
            weight_bytes: self.engine.as_ref().map_or(0, |e| e.status().weight_bytes),
            lost: Vec::new(),
            tokens: 0,
        }
    }
}
