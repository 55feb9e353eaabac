//! The role that executes layers: sockets and threads around [`StageNode`].

mod commands;
pub mod device;
mod loader;
mod metrics;
mod obeyed;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use dunlin_engine::memory::{Fit, Needs};
use dunlin_engine::{Command, Engine, EngineConfig};
use dunlin_model::OWN_NUMERICS;
use dunlin_protocol::stage::Computed;
use dunlin_protocol::{Frame, Recipient, Sender, StageConfig, StageEffect, StageNode, Windows};
use dunlin_swarm::limits::SESSIONS_MAX;
use dunlin_swarm::timing::{DRAIN, GATEWAY_LEASE};
use dunlin_swarm::{Load, Paging, PeerName, Topology, layer_set, ranges};
use dunlin_wire::control::{ControlRequest, ControlService, Question};
use dunlin_wire::{
    Inbound, InboundEvent, InboundIdentity, LinkEvent, Links, LinksConfig, Pulse, Vitals, WireRuntime,
    convert, proto,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::certificates::credentials;
use crate::cli::StageArgs;
use crate::model::adapters;
use crate::{health, memory};
use commands::Commands;
use loader::{Loader, StageSource};
use obeyed::{Assigned, Obeyed};

/// Frames that may wait.
const EVENTS_MAX: usize = 4096;
/// Results that may wait; the engine waits then.
const RESULTS_MAX: usize = 256;
/// Vitals are published and time passes this often.
const TICK: Duration = Duration::from_millis(50);

/// Runs a stage until SIGTERM.
///
/// # Errors
/// When the options or certificates cannot be used, or an address cannot be bound.
#[expect(clippy::too_many_lines, reason = "wires a process from its options")]
pub async fn run(args: StageArgs) -> anyhow::Result<()> {
    let credentials = credentials(&args.process)?;
    let place = args.model.place()?;
    let adapters = args.adapters.adapters;
    adapters::check(&adapters, None)?;
    let wire = WireRuntime::start()?;
    let (results_in, results) = mpsc::channel(RESULTS_MAX);
    let engine_slot: EngineSlot = Arc::default();
    let slot = Arc::clone(&engine_slot);
    let source = StageSource {
        place,
        adapters,
        max_seq_len: args.max_seq_len,
        memory: memory::limit(args.memory),
        device: args.device,
        threads: args.threads,
    };
    let loader = Loader::start(
        source,
        Box::new(move |file, positions, device| {
            let (model, hidden) = (file.config().clone(), file.config().hidden);
            let windows = Windows::new(model.windows());
            let positions_max = positions as usize;
            let span = device.span(&model, positions_max)?;
            let config = EngineConfig { model, span, positions_max, kv_bytes: 0 };
            let done = Box::new(move |done: Computed| {
                // The receiver is gone only when the process ends. It never waits for the engine (see `commands`), so this ends.
                let _ = results_in.blocking_send(done);
            });
            let engine = Engine::start(config, done)?;
            let started = Started { engine: engine.clone(), hidden, positions_max: positions, windows };
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
            Ok(engine)
        }),
    )?;
    let pulse = Pulse::default();
    let (inbound_in, inbound_events) = mpsc::channel(EVENTS_MAX);
    let model_digest = args.model.model_digest;
    let own = InboundIdentity {
        name: args.process.name.clone(),
        arithmetic: OWN_NUMERICS,
        model_digest: model_digest.clone(),
    };
    let inbound = Inbound::new(own, inbound_in, pulse.clone());
    let (questions_in, questions) = mpsc::channel(64);
    let listener = TcpListener::bind(args.process.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.process.listen))?;
    info!(addr = %listener.local_addr()?, "stage {} listens", args.process.name);
    let mut server = tonic::transport::Server::builder()
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(32 << 20);
    let router = server.add_service(inbound.service()).add_service(ControlService::service(questions_in));
    wire.serve(listener, credentials.clone(), move |incoming| router.serve_with_incoming(incoming))?;

    let (links_in, link_events) = mpsc::channel(EVENTS_MAX);
    let hello = proto::Hello {
        name: args.process.name.clone(),
        incarnation: 0,
        gateway: false,
        arithmetic: OWN_NUMERICS.version(),
        lease_ms: 0,
        model_digest: model_digest.clone(),
    };
    let ready = Arc::new(AtomicBool::new(false));
    let metrics = Arc::new(metrics::StageMetrics::default());
    let page = Arc::clone(&metrics);
    health::serve(args.process.health, Arc::clone(&ready), move || page.render()).await?;
    let stage = Stage {
        name: args.process.name.as_str().into(),
        node: StageNode::new(StageConfig {
            arithmetic: OWN_NUMERICS,
            name: args.process.name.as_str().into(),
            hidden: 0,
            positions_max: 0,
            windows: Windows::default(),
            pages: 0,
            sessions_max: SESSIONS_MAX,
            journal_bytes_max: 0,
            lease_ms: GATEWAY_LEASE.as_millis() as u64,
        }),
        commands: Commands::default(),
        engine_slot,
        loader,
        links: Links::new(LinksConfig::new(hello, Some(credentials)), links_in, pulse, wire.handle()),
        inbound,
        obeyed: Obeyed::new(args.process.name.as_str().into(), model_digest),
        journal_bytes_max: 0,
        draining: false,
        started: Instant::now(),
        ready,
        metrics,
    };
    stage.run(inbound_events, link_events, results, questions).await
}

/// An engine that runs, and what the stage must know of it: nobody may have one without the other.
#[derive(Clone)]
struct Started {
    engine: Engine,
    /// Values in a row.
    hidden: usize,
    /// Longest sequence.
    positions_max: u32,
    /// What layers keep of a sequence.
    windows: Windows,
}

/// Where the loader puts the engine once it runs.
type EngineSlot = Arc<Mutex<Option<Started>>>;

struct Stage {
    name: PeerName,
    node: StageNode,
    commands: Commands,
    engine_slot: EngineSlot,
    loader: Loader,
    links: Links,
    inbound: Inbound,
    obeyed: Obeyed,
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
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut drained_by = None;
        let mut out = Vec::new();
        loop {
            // While the engine is behind with commands nothing is taken that could make more of them, but for what is its own: so the engine
            // never waits for this loop, and the loop never for the engine.
            let takes = self.commands.flush()?;
            tokio::select! {
                biased;
                _ = ticks.tick() => self.tick(&mut out),
                _ = terminate.recv() => {
                    info!("SIGTERM: handing over");
                    self.draining = true;
                    drained_by.get_or_insert(Instant::now() + DRAIN);
                }
                Some(request) = questions.recv() => self.question(request, &mut drained_by),
                done = results.recv() => {
                    // The other end goes with the engine's thread, which has said why, or with the loader's.
                    let done = done.ok_or_else(|| self.commands.ended())?;
                    self.node.computed(done, self.now_ms(), &mut out);
                }
                Some(event) = inbound.recv(), if takes => self.inbound_event(event, &mut out),
                Some(event) = links.recv(), if takes => self.link_event(event, &mut out),
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
            self.node.heard(gateway, event.lease_ms, now_ms);
        }
        // Pings are answered where they arrive.
        if !matches!(event.frame, Frame::Ping { .. }) {
            self.node.frame(&event.from, event.frame, now_ms, out);
        }
    }

    fn link_event(&mut self, event: LinkEvent, out: &mut Vec<StageEffect>) {
        match event {
            LinkEvent::Lost(peer, why) => {
                warn!(%peer, why, "the link is down");
                self.links.hang_up(&peer);
                self.node.link_down(&peer, out);
            }
            // How much room there is at the next hop.
            LinkEvent::Frame(peer, frame) => {
                self.node.frame(&Sender::Peer(peer), frame, self.now_ms(), out);
            }
            LinkEvent::Up(_) | LinkEvent::Pong(..) => {}
        }
    }

    fn question(&mut self, request: ControlRequest, drained_by: &mut Option<Instant>) {
        match request.question {
            Question::Status | Question::PushTopology(_) => {}
            Question::Assign(topology) => self.assign(&topology),
            Question::Drain { deadline_ms } => {
                self.draining = true;
                drained_by.get_or_insert(Instant::now() + Duration::from_millis(deadline_ms).min(DRAIN));
            }
        }
        // The caller may have gone away.
        let _ = request.answer.send(self.status());
    }

    fn assign(&mut self, topology: &Topology) {
        let epoch = topology.epoch;
        match self.obeyed.take(topology) {
            Err(why) => return warn!(%why, "a topology is not obeyed"),
            Ok(Assigned::Nothing) => return info!(epoch, "not in this topology any more"),
            Ok(Assigned::Same) => {}
            Ok(Assigned::Others) => {
                let hold = self.obeyed.hold();
                info!(epoch, span = %hold.span, shadows = ?hold.shadows, "new layers");
                self.loader.want(hold.clone());
            }
        }
        self.links.set_epoch(epoch);
    }

    fn tick(&mut self, out: &mut Vec<StageEffect>) {
        if self.commands.engine().is_none()
            && let Some(started) = self.engine_slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
        {
            self.node.set_model(started.hidden, started.positions_max, started.windows);
            self.commands.set_engine(started.engine);
        }
        self.node.tick(self.now_ms(), out);
        if let Some(status) = self.commands.engine().map(Engine::status) {
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
                    self.commands.give(Command::Retain(ranges(&keep)));
                }
            }
            self.metrics.update(&status, self.node.session_count(), self.node.journal_bytes());
            self.node.set_pages(status.total_pages);
            self.node.set_held(status.held);
            self.node.set_adapters(status.adapters);
            self.node.starved(status.starved, out);
        }
        self.ready.store(self.state() == proto::State::Ready, Ordering::Relaxed);
        self.inbound.publish(Vitals { load: self.load(), held: self.node.held() });
    }

    fn perform(&mut self, out: &mut Vec<StageEffect>) {
        let mut more = Vec::new();
        for effect in out.drain(..) {
            match effect {
                StageEffect::Send { to: Recipient::Gateway(gateway), frame } => {
                    // Without a stream it learns from that.
                    let _ = self.inbound.reply(&Sender::Gateway(gateway), &frame);
                }
                StageEffect::Send { to: Recipient::Upstream(peer), frame } => {
                    let _ = self.inbound.reply(&Sender::Peer(peer), &frame);
                }
                StageEffect::Send { to: Recipient::Peer { name, addr }, frame } => {
                    self.links.dial(&name, &addr);
                    if !self.links.send(&name, frame) {
                        warn!(peer = %name, "far more waits for it than it can have asked for");
                        self.links.hang_up(&name);
                        self.node.link_down(&name, &mut more);
                    }
                }
                StageEffect::Forbidden { from, rule } => self.inbound.close(&from, rule),
                StageEffect::Compute(job) => self.commands.give(Command::Job(job)),
                StageEffect::Truncate { session, layers, to } => {
                    self.commands.give(Command::Truncate { session, layers, to });
                }
                StageEffect::Free { session, layers } => {
                    self.commands.give(Command::Free { session, layers })
                }
            }
        }
        if !more.is_empty() {
            *out = more;
            self.perform(out);
        }
    }

    fn load(&self) -> Load {
        let status = self.commands.engine().map(Engine::status).unwrap_or_default();
        Load {
            queue_rows: status.queue_rows,
            free_pages: status.free_pages,
            spare_pages: self.node.spare_pages(),
            total_pages: status.total_pages,
            paging: Paging::OWN,
            layer_rows: status.layer_rows,
            arithmetic: Some(OWN_NUMERICS),
            rows_per_s_per_layer: status.rows_per_s_per_layer,
            held: status.held,
            draining: self.draining,
        }
    }

    /// What of the layers that are given to us there is memory for; nothing while that is not known.
    fn fit(&self) -> Option<Fit> {
        self.loader.progress().fit.filter(|(of, _)| of == self.obeyed.hold()).map(|(_, fit)| fit)
    }

    fn state(&self) -> proto::State {
        let progress = self.loader.progress();
        let held = self.commands.engine().map(|e| layer_set(&e.status().held)).unwrap_or_default();
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
            epoch: self.obeyed.epoch(),
            load: Some(convert::load_to_wire(&self.load())),
            sessions: u32::try_from(self.node.session_count()).unwrap_or(u32::MAX),
            room_bytes: progress.facts.as_ref().map_or(0, |facts| facts.room),
            model: progress.facts.map(|f| model_facts(&f.needs, f.hidden, f.context_length)),
            problem: progress
                .problem
                .map(|p| proto::Problem { reason: p.reason.to_owned(), message: p.message }),
            weight_bytes: self.commands.engine().map_or(0, |e| e.status().weight_bytes),
            lost: Vec::new(),
            behind: Vec::new(),
            needed: Vec::new(),
            tokens: 0,
            model_digest: self.obeyed.model_digest().to_owned(),
        }
    }
}

/// What a stage tells of its model: whoever plans cuts it by these sizes.
#[must_use]
pub fn model_facts(needs: &Needs, hidden: usize, context_length: u32) -> proto::ModelFacts {
    proto::ModelFacts {
        layers: needs.layer_bytes().len() as u32,
        layer_bytes: needs.layer_bytes().to_vec(),
        embedding_bytes: needs.embedding_bytes(),
        head_bytes: needs.head_bytes(),
        hidden: hidden as u32,
        context_length,
        sequence_bytes: needs.sequence_bytes(),
        tied: needs.is_tied(),
    }
}
