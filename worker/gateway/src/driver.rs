//! The task that owns sessions. Handlers talk to it through a [`Handle`]; it talks to stages through links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::gateway::{Failure, Rejected, SessionView, Submission};
use dunlin_protocol::{
    FinishReason, GatewayConfig, GatewayCore, GatewayEffect, SamplingParams, SessionId, Windows,
};
use dunlin_swarm::{NumericsClass, PeerName, Topology};
use dunlin_wire::{LinkEvent, Links, LinksConfig, Pulse};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::metrics::GatewayMetrics;
use crate::recent::{Recent, Recovered};

/// Commands that may wait.
const COMMANDS_MAX: usize = 1024;
/// Link events that may wait.
const EVENTS_MAX: usize = 8192;
const TICK: Duration = Duration::from_millis(25);

/// What happens to a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The next token.
    Token {
        /// Index of the token in the vocabulary.
        token: u32,
        /// Its log-probability, if asked for.
        logprob: f32,
        /// The likeliest tokens, if asked for.
        top: Vec<(u32, f32)>,
    },
    /// No more tokens: the answer is complete.
    Finished(FinishReason),
    /// No more tokens: something is wrong.
    Failed(Failure),
}

/// What is to be continued.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Tokens of the prompt.
    pub tokens: Vec<u32>,
    /// Length of prompt and answer.
    pub max_len: u32,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// Tokens that end it.
    pub eos: Vec<u32>,
    /// What layers of the model keep of it.
    pub windows: Windows,
    /// The adapter it is computed with; none for the model itself.
    pub adapter: Option<Arc<str>>,
    /// How long it may take.
    pub limit: Duration,
}

/// How the swarm looks from here.
#[derive(Clone, Debug, Default)]
pub struct SwarmSnapshot {
    /// The topology obeyed.
    pub topology: Option<Topology>,
    /// What peers reported last.
    pub loads: dunlin_swarm::Loads,
    /// Peers with a working link.
    pub up: Vec<PeerName>,
    /// Peers that are not known to hold all that the topology gives them.
    pub behind: Vec<PeerName>,
    /// Peers that sessions go around because others are much faster.
    pub slow: Vec<PeerName>,
    /// Sessions.
    pub sessions: Vec<SessionView>,
    /// Classes of peers that answers need.
    pub needed: BTreeSet<Option<NumericsClass>>,
    /// The last recoveries, the newest first, each with the milliseconds since.
    pub recoveries: Vec<(Recovered, u64)>,
    /// Why no new session can run, if so.
    pub not_ready: Option<String>,
}

enum Command {
    Submit(Generation, oneshot::Sender<Result<(SessionId, mpsc::Receiver<Event>), Rejected>>),
    Cancel(SessionId),
    Topology(Topology),
    Snapshot(oneshot::Sender<SwarmSnapshot>),
    EndAll(oneshot::Sender<()>),
}

/// The way to the driver.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    other_model: watch::Receiver<bool>,
}

/// A running session; dropping it ends it.
pub struct Answer {
    events: mpsc::Receiver<Event>,
    session: SessionId,
    commands: mpsc::Sender<Command>,
    over: bool,
}

impl Answer {
    /// Its session, by which logs and `/swarm` name it.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// What happens next; `None` after the end.
    pub async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = self.events.recv().await;
        self.over = !matches!(event, Some(Event::Token { .. }));
        event
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.over {
            // When the queue is full the driver notices with the next token that nobody listens.
            let _ = self.commands.try_send(Command::Cancel(self.session));
        }
    }
}

impl Handle {
    /// Starts a session.
    ///
    /// # Errors
    /// When the gateway does not take it.
    pub async fn submit(&self, generation: Generation) -> Result<Answer, Rejected> {
        let ends =
            || Rejected::NoCapacity { retry_after_s: 1, message: "the gateway is about to end".to_owned() };
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(Command::Submit(generation, reply)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(Rejected::Busy { retry_after_s: 1 }),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(ends()),
        }
        let (session, events) = answer.await.map_err(|_| ends())??;
        Ok(Answer { events, session, commands: self.commands.clone(), over: false })
    }

    /// Gives the gateway a topology; older epochs are ignored, and other models refused.
    pub async fn set_topology(&self, topology: Topology) {
        // The driver is gone only when the process ends.
        let _ = self.commands.send(Command::Topology(topology)).await;
    }

    /// Whether the swarm has another model than this gateway, as far as is known here.
    #[must_use]
    pub fn other_model(&self) -> watch::Receiver<bool> {
        self.other_model.clone()
    }

    /// Ends every session with an error: the process is about to end.
    pub async fn end_all(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::EndAll(reply)).await.is_ok() {
            // A driver that is gone has no sessions either.
            let _ = done.await;
        }
    }

    /// How the swarm looks.
    pub async fn snapshot(&self) -> SwarmSnapshot {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Snapshot(reply)).await.is_err() {
            return SwarmSnapshot::default();
        }
        answer.await.unwrap_or_default()
    }
}

#[cfg(test)]
impl Handle {
    /// The way to a driver that takes one session, gives it a few tokens, and dies.
    pub(crate) fn of_a_driver_that_dies(tokens: Vec<u32>) -> Self {
        let (commands_in, mut commands) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(async move {
            let Some(Command::Submit(_, reply)) = commands.recv().await else { return };
            let (events_in, events) = mpsc::channel(tokens.len().max(1));
            for token in tokens {
                let _ = events_in.try_send(Event::Token { token, logprob: 0.0, top: Vec::new() });
            }
            let _ = reply.send(Ok((SessionId(1), events)));
        });
        Self { commands: commands_in, other_model: watch::channel(false).1 }
    }
}

/// The task that owns all sessions of a gateway.
pub struct Driver {
    core: GatewayCore,
    links: Links,
    link_events: mpsc::Receiver<LinkEvent>,
    commands: mpsc::Receiver<Command>,
    other_model: watch::Sender<bool>,
    listeners: BTreeMap<SessionId, mpsc::Sender<Event>>,
    metrics: Arc<GatewayMetrics>,
    recent: Recent,
    next_session: u64,
    started: Instant,
    pulse: Pulse,
}

impl Driver {
    /// A driver and the way to it; its links are kept alive on `wire`. Session ids count up from a number drawn from the gateway's incarnation.
    #[must_use]
    pub fn new(
        config: GatewayConfig,
        links: LinksConfig,
        metrics: Arc<GatewayMetrics>,
        wire: Runtime,
    ) -> (Self, Handle) {
        let pulse = Pulse::default();
        let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
        let (events_in, link_events) = mpsc::channel(EVENTS_MAX);
        let (other_model, other_model_out) = watch::channel(false);
        let next_session = config.id.incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let driver = Self {
            core: GatewayCore::new(config),
            links: Links::new(links, events_in, pulse.clone(), wire),
            link_events,
            commands,
            other_model,
            listeners: BTreeMap::new(),
            metrics,
            recent: Recent::default(),
            next_session,
            started: Instant::now(),
            pulse,
        };
        (driver, Handle { commands: commands_in, other_model: other_model_out })
    }

    /// Runs until every handle is dropped.
    pub async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut out = Vec::new();
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => self.tick(&mut out),
                Some(event) = self.link_events.recv() => self.link_event(event, &mut out),
                command = self.commands.recv() => {
                    let Some(command) = command else { return };
                    self.command(command, &mut out);
                }
            }
            self.perform(&mut out);
        }
    }

    fn tick(&mut self, out: &mut Vec<GatewayEffect>) {
        self.pulse.beat();
        // What has come is known before anybody is said to stand still.
        for _ in 0..EVENTS_MAX {
            let Ok(event) = self.link_events.try_recv() else { break };
            self.link_event(event, out);
            self.perform(out);
        }
        self.core.tick(self.now_ms(), out);
        let (running, waiting) = self.core.counts();
        self.metrics.sessions(running, waiting);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn link_event(&mut self, event: LinkEvent, out: &mut Vec<GatewayEffect>) {
        let now_ms = self.now_ms();
        match event {
            LinkEvent::Frame(peer, frame) => self.core.frame(&peer, frame, now_ms, out),
            LinkEvent::Pong(peer, round_trip, frame) => {
                let micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
                self.core.round_trip(&peer, micros, now_ms);
                self.core.frame(&peer, frame, now_ms, out);
            }
            LinkEvent::Up(peer) => {
                info!(%peer, "the link works");
                self.core.peer_up(peer);
            }
            LinkEvent::Lost(peer, why) => {
                if self.core.up().contains(&peer) {
                    warn!(%peer, why, "the peer is lost");
                } else {
                    debug!(%peer, why, "the peer cannot be reached");
                }
                self.core.peer_lost(&peer, now_ms, out);
            }
        }
        self.metrics.peers(self.core.up().len());
    }

    fn command(&mut self, command: Command, out: &mut Vec<GatewayEffect>) {
        let now_ms = self.now_ms();
        match command {
            Command::Submit(generation, reply) => {
                let session = SessionId(self.next_session);
                self.next_session = self.next_session.wrapping_add(1);
                let limit_ms = u64::try_from(generation.limit.as_millis()).unwrap_or(u64::MAX);
                let room = (generation.max_len as usize).saturating_sub(generation.tokens.len()) + 2;
                let submission = Submission {
                    session,
                    tokens: generation.tokens,
                    max_len: generation.max_len,
                    sampling: generation.sampling,
                    eos: generation.eos,
                    windows: generation.windows,
                    adapter: generation.adapter,
                    deadline_ms: now_ms.saturating_add(limit_ms),
                };
                let outcome = self.core.submit(submission, now_ms, out).map(|()| {
                    // Room for every token there can be: the driver never waits for a client.
                    let (events_in, events) = mpsc::channel(room);
                    self.listeners.insert(session, events_in);
                    (session, events)
                });
                if reply.send(outcome).is_err() {
                    self.listeners.remove(&session);
                    self.core.cancel(session, now_ms, out);
                }
            }
            Command::Cancel(session) => {
                self.listeners.remove(&session);
                self.core.cancel(session, now_ms, out);
            }
            Command::Topology(topology) => self.topology(topology, out),
            Command::Snapshot(reply) => {
                let snapshot = SwarmSnapshot {
                    topology: self.core.topology().cloned(),
                    loads: self.core.loads().clone(),
                    up: self.core.up().iter().cloned().collect(),
                    behind: self.core.behind().into_iter().collect(),
                    slow: self.core.slow().into_iter().collect(),
                    sessions: self.core.views(),
                    needed: self.core.needed(),
                    recoveries: self
                        .recent
                        .iter()
                        .map(|r| (r.clone(), now_ms.saturating_sub(r.at_ms)))
                        .collect(),
                    not_ready: self.core.ready().err().map(|e| e.to_string()),
                };
                // The caller may have gone away.
                let _ = reply.send(snapshot);
            }
            Command::EndAll(reply) => {
                self.core.end_all(now_ms, out);
                self.perform(out);
                // The caller may have gone away.
                let _ = reply.send(());
            }
        }
    }

    fn topology(&mut self, topology: Topology, out: &mut Vec<GatewayEffect>) {
        self.core.set_topology(topology, self.now_ms(), out);
        let epoch = self.core.topology().map_or(0, |t| t.epoch);
        self.links.set_epoch(epoch);
        self.metrics.epoch(epoch);
        self.other_model.send_replace(self.core.other_model().is_some());
    }

    fn perform(&mut self, out: &mut Vec<GatewayEffect>) {
        let now_ms = self.now_ms();
        let mut more = Vec::new();
        for effect in out.drain(..) {
            match effect {
                GatewayEffect::Connect { peer, addr } => self.links.dial(&peer, &addr),
                GatewayEffect::Disconnect { peer } => self.links.hang_up(&peer),
                GatewayEffect::Send { peer, frame } => {
                    if !self.links.send(&peer, frame) && self.core.up().contains(&peer) {
                        warn!(%peer, "far more waits for it than it can have asked for");
                        // Only a new stream says that it is there again.
                        self.links.redial(&peer);
                        self.core.peer_lost(&peer, now_ms, &mut more);
                    }
                }
                GatewayEffect::Emit { session, token, logprob, top, .. } => {
                    let event = Event::Token { token, logprob, top };
                    let heard = self.listeners.get(&session).is_some_and(|l| l.try_send(event).is_ok());
                    if !heard {
                        self.listeners.remove(&session);
                        self.core.cancel(session, now_ms, &mut more);
                    }
                }
                GatewayEffect::Finished { session, reason } => self.last(session, Event::Finished(reason)),
                GatewayEffect::Failed { session, error } => {
                    warn!(%session, ?error, "a session failed");
                    self.last(session, Event::Failed(error));
                }
                GatewayEffect::TopologyRefused(other) => {
                    warn!(why = %other, "a topology is refused");
                    self.metrics.topology_refused();
                }
                GatewayEffect::Recovered { session, recovery } => {
                    info!(
                        %session,
                        reason = %recovery.reason,
                        stall_ms = recovery.stall_ms,
                        replayed_rows = recovery.replayed_rows,
                        "a session went on"
                    );
                    self.metrics.recovered(&recovery);
                    self.recent.push(Recovered { session, at_ms: now_ms, recovery });
                }
            }
        }
        if !more.is_empty() {
            *out = more;
            self.perform(out);
        }
    }

    fn last(&mut self, session: SessionId, event: Event) {
        if let Some(listener) = self.listeners.remove(&session) {
            // A client that is gone needs no last word.
            let _ = listener.try_send(event);
        }
    }
}
