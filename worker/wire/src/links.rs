//! Outgoing streams: dialled, kept alive, reported at once when they break, dialled again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_protocol::Frame;
use dunlin_swarm::PeerName;
use dunlin_swarm::limits::MESSAGE_BYTES_MAX;
use dunlin_swarm::timing::{PING, SILENCE};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::convert::{from_wire, to_wire};
use crate::keepalive::{Redial, Silence, chain, within};
use crate::proto::frame::Body;
use crate::proto::stage_client::StageClient;
use crate::runtime::Pulse;
use crate::tls::Credentials;
use crate::{proto, queue};

/// Largest HTTP/2 frame that is taken: each takes a system call or two, so that the smallest allowed, 16 KiB, costs time.
const FRAME_BYTES_MAX: u32 = 1 << 18;

/// How links behave.
#[derive(Clone)]
pub struct LinksConfig {
    /// What this process says first on every stream.
    pub hello: proto::Hello,
    /// Certificates; none only on loopback.
    pub tls: Option<Credentials>,
    /// Pause between pings.
    pub ping: Duration,
    /// A link without any pong for this long is lost.
    pub silence: Duration,
    /// How long making a connection may take.
    pub connect: Duration,
    /// Bytes that may wait for one peer: far more than it can have asked for.
    pub queue_bytes_max: usize,
}

impl LinksConfig {
    /// Pings five times a second, lost after three unanswered.
    #[must_use]
    pub fn new(hello: proto::Hello, tls: Option<Credentials>) -> Self {
        Self {
            hello,
            tls,
            ping: PING,
            silence: SILENCE,
            connect: Duration::from_millis(1000),
            queue_bytes_max: 1 << 30,
        }
    }
}

/// What happens on links.
#[derive(Debug)]
pub enum LinkEvent {
    /// The stream works.
    Up(PeerName),
    /// A frame.
    Frame(PeerName, Frame),
    /// A pong, and how long it took to come.
    Pong(PeerName, Duration, Frame),
    /// The stream broke, fell silent or could not be made; it is being dialled again.
    Lost(PeerName, String),
}

/// All outgoing streams of a process. Used from one task.
pub struct Links {
    config: Arc<LinksConfig>,
    events: mpsc::Sender<LinkEvent>,
    links: BTreeMap<PeerName, Link>,
    epoch: Arc<AtomicU64>,
    pulse: Pulse,
    runtime: Handle,
}

struct Link {
    addr: String,
    frames: queue::QueueSender<Frame>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Links {
    /// No links yet; `events` is where they report, `pulse` that of the loop which takes the reports, `runtime` where they are kept alive.
    #[must_use]
    pub fn new(config: LinksConfig, events: mpsc::Sender<LinkEvent>, pulse: Pulse, runtime: Handle) -> Self {
        let config = Arc::new(config);
        Self { config, events, links: BTreeMap::new(), epoch: Arc::default(), pulse, runtime }
    }

    /// The epoch that pings carry.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Keeps a link to `peer` at `addr` from now on.
    pub fn dial(&mut self, peer: &PeerName, addr: &str) {
        if self.links.contains_key(peer) {
            return;
        }
        let (frames, queue) = queue::queue(self.config.queue_bytes_max);
        let keeper = Keeper {
            config: Arc::clone(&self.config),
            events: self.events.clone(),
            peer: peer.clone(),
            addr: addr.to_owned(),
            epoch: Arc::clone(&self.epoch),
            pulse: self.pulse.clone(),
        };
        let task = self.runtime.spawn(keeper.run(queue)).abort_handle();
        self.links.insert(peer.clone(), Link { addr: addr.to_owned(), frames, task });
    }

    /// Gives the link up.
    pub fn hang_up(&mut self, peer: &PeerName) {
        self.links.remove(peer);
    }

    /// Begins anew with a peer that reads nothing of what it asked for: what waits for it is dropped, and the link works again when it says so.
    pub fn redial(&mut self, peer: &PeerName) {
        if let Some(link) = self.links.remove(peer) {
            self.dial(peer, &link.addr);
        }
    }

    /// Sends a frame; it waits for as long as the peer takes to read what is before it. False when there is no such link, or when far more
    /// waits than all sessions may send: then the frame is lost, and the caller treats the link as down and begins it anew.
    #[must_use]
    pub fn send(&self, peer: &PeerName, frame: Frame) -> bool {
        let bytes = frame.bytes();
        self.links.get(peer).is_some_and(|link| link.frames.send(frame, bytes))
    }

    /// Is there a link, working or not?
    #[must_use]
    pub fn has(&self, peer: &PeerName) -> bool {
        self.links.contains_key(peer)
    }

    /// Links that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// No links.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

struct Keeper {
    config: Arc<LinksConfig>,
    events: mpsc::Sender<LinkEvent>,
    peer: PeerName,
    addr: String,
    epoch: Arc<AtomicU64>,
    pulse: Pulse,
}

/// Pings that wait for the stream to take them.
const PINGS_MAX: usize = 2;
/// Pings whose pong is waited for.
const PINGS_KEPT: usize = 64;
/// Frames that the stream has taken and not sent.
const OUTGOING_MAX: usize = 8;

impl Keeper {
    async fn run(self, mut queue: queue::QueueReceiver<Frame>) {
        let mut redial = Redial::default();
        loop {
            let began = Instant::now();
            let why = self.once(&mut queue).await.unwrap_or_else(|why| why);
            if self.events.send(LinkEvent::Lost(self.peer.clone(), why)).await.is_err() {
                return;
            }
            // Frames for the broken stream are of attempts that are over.
            while queue.try_recv().is_some() {}
            redial.pause(began).await;
        }
    }

    /// One stream from its beginning to its end; why it ended.
    async fn once(&self, queue: &mut queue::QueueReceiver<Frame>) -> Result<String, String> {
        let limit = self.config.connect;
        let channel = within(limit, "connecting", connect(&self.config, &self.peer.0, &self.addr)).await?;
        // Pings need not wait behind rows.
        let (pings, first) = mpsc::channel(PINGS_MAX);
        let (outgoing, rest) = mpsc::channel(OUTGOING_MAX);
        let hello = proto::Frame { body: Some(Body::Hello(self.config.hello.clone())) };
        let frames =
            tokio_stream::once(hello).chain(ReceiverStream::new(first).merge(ReceiverStream::new(rest)));
        let mut client = StageClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let incoming = within(limit, "opening the stream", client.exchange(frames)).await?.into_inner();
        if self.events.send(LinkEvent::Up(self.peer.clone())).await.is_err() {
            return Ok("stopped".to_owned());
        }
        Ok(self.keep(incoming, pings, outgoing, queue).await)
    }

    /// A stream that works, until it does not; why.
    async fn keep(
        &self,
        mut incoming: Streaming<proto::Frame>,
        pings: mpsc::Sender<proto::Frame>,
        outgoing: mpsc::Sender<proto::Frame>,
        queue: &mut queue::QueueReceiver<Frame>,
    ) -> String {
        let mut silence = Silence::new(self.config.ping, self.config.silence);
        let (mut ticks, mut beat) = (silence.ticks(), Heartbeat::default());
        // Something that the loop behind `events` has not taken yet: nothing more is read before.
        let mut arrived: Option<LinkEvent> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if let Some(why) = silence.tick(arrived.is_some()) {
                        return why;
                    }
                    if !self.pulse.is_stuck() {
                        let ping = Frame::Ping { seq: beat.ping(), epoch: self.epoch.load(Ordering::Relaxed) };
                        // With some on their way already, another one says nothing new.
                        let _ = pings.try_send(to_wire(&ping));
                    }
                }
                permit = self.events.reserve(), if arrived.is_some() => {
                    let Ok(permit) = permit else { return "stopped".to_owned() };
                    if let Some(event) = arrived.take() {
                        permit.send(event);
                    }
                    silence.heard();
                }
                frame = incoming.message(), if arrived.is_none() => match frame {
                    Err(status) => return chain(&status),
                    Ok(None) => return "the peer closed the stream".to_owned(),
                    Ok(Some(frame)) => {
                        silence.heard();
                        let frame = match from_wire(frame) {
                            Ok(frame) => frame,
                            Err(error) => return error.to_string(),
                        };
                        let peer = self.peer.clone();
                        let event = match &frame {
                            Frame::Pong { seq, .. } => LinkEvent::Pong(peer, beat.pong(*seq), frame),
                            _ => LinkEvent::Frame(peer, frame),
                        };
                        match self.events.try_send(event) {
                            Ok(()) => {}
                            Err(mpsc::error::TrySendError::Full(event)) => arrived = Some(event),
                            Err(mpsc::error::TrySendError::Closed(_)) => return "stopped".to_owned(),
                        }
                    }
                },
                next = next(&outgoing, queue) => {
                    let Some((permit, frame)) = next else { return "hung up".to_owned() };
                    permit.send(to_wire(&frame));
                }
            }
        }
    }
}

/// The first frame that waits, once the stream takes one.
async fn next<'a>(
    outgoing: &'a mpsc::Sender<proto::Frame>,
    queue: &mut queue::QueueReceiver<Frame>,
) -> Option<(mpsc::Permit<'a, proto::Frame>, Frame)> {
    let permit = outgoing.reserve().await.ok()?;
    Some((permit, queue.recv().await?))
}

/// Pings and their pongs.
#[derive(Default)]
struct Heartbeat {
    seq: u64,
    /// Pings without a pong.
    sent: VecDeque<(u64, Instant)>,
}

impl Heartbeat {
    fn ping(&mut self) -> u64 {
        self.seq += 1;
        self.sent.push_back((self.seq, Instant::now()));
        if self.sent.len() > PINGS_KEPT {
            self.sent.pop_front();
        }
        self.seq
    }

    /// How long the pong took to come.
    fn pong(&mut self, seq: u64) -> Duration {
        while let Some((sent, at)) = self.sent.pop_front() {
            if sent == seq {
                return at.elapsed();
            }
        }
        Duration::ZERO
    }
}

/// A connection to `name` at `addr` (`host:port`).
///
/// # Errors
/// When it cannot be made.
pub async fn connect(
    config: &LinksConfig,
    name: &str,
    addr: &str,
) -> Result<Channel, tonic::transport::Error> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{addr}"))?
        .tcp_nodelay(true)
        .connect_timeout(config.connect)
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(32 << 20)
        .max_frame_size(FRAME_BYTES_MAX);
    if let Some(tls) = &config.tls {
        endpoint = endpoint.tls_config(tls.client(name))?;
    }
    endpoint.connect().await
}
