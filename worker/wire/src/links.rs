//! Outgoing streams: dialled, kept alive, reported at once when they break, dialled again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_planner::PeerName;
use dunlin_protocol::Frame;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::convert::{from_wire, to_wire};
use crate::proto::frame::Body;
use crate::proto::stage_client::StageClient;
use crate::tls::TlsFiles;
use crate::{MESSAGE_BYTES_MAX, proto};

/// Largest HTTP/2 frame that is taken: each takes a system call or two, so that the smallest allowed, 16 KiB, costs time.
const FRAME_BYTES_MAX: u32 = 1 << 18;

/// How links behave.
#[derive(Clone)]
pub struct LinksConfig {
    /// Who we are.
    pub hello: proto::Hello,
    /// Certificates; none only on loopback.
    pub tls: Option<TlsFiles>,
    /// Pause between pings.
    pub ping: Duration,
    /// A link without any pong for this long is lost.
    pub silence: Duration,
    /// How long making a connection may take.
    pub connect: Duration,
    /// Frames that may wait for one peer; more means it does not keep up, and the link is given up.
    pub queue_max: usize,
}

impl LinksConfig {
    /// Pings five times a second, lost after three unanswered.
    #[must_use]
    pub fn new(hello: proto::Hello, tls: Option<TlsFiles>) -> Self {
        Self {
            hello,
            tls,
            ping: Duration::from_millis(200),
            silence: Duration::from_millis(650),
            connect: Duration::from_millis(1000),
            queue_max: 4096,
        }
    }
}

/// What happens on links.
#[derive(Debug)]
pub enum LinkEvent {
    /// The stream works.
    Up(PeerName),
    /// A frame, pongs included.
    Frame(PeerName, Frame),
    /// The stream broke, fell silent or could not be made; it is being dialled again.
    Lost(PeerName, String),
}

/// All outgoing streams of a process. Used from one task.
pub struct Links {
    config: Arc<LinksConfig>,
    events: mpsc::Sender<LinkEvent>,
    links: BTreeMap<PeerName, Link>,
    epoch: Arc<AtomicU64>,
}

struct Link {
    frames: mpsc::Sender<proto::Frame>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Links {
    /// No links yet; `events` is where they report.
    #[must_use]
    pub fn new(config: LinksConfig, events: mpsc::Sender<LinkEvent>) -> Self {
        Self { config: Arc::new(config), events, links: BTreeMap::new(), epoch: Arc::default() }
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
        let (frames, queue) = mpsc::channel(self.config.queue_max);
        let keeper = Keeper {
            config: Arc::clone(&self.config),
            events: self.events.clone(),
            peer: peer.clone(),
            addr: addr.to_owned(),
            epoch: Arc::clone(&self.epoch),
        };
        let task = tokio::spawn(keeper.run(queue)).abort_handle();
        self.links.insert(peer.clone(), Link { frames, task });
    }

    /// Gives the link up.
    pub fn hang_up(&mut self, peer: &PeerName) {
        self.links.remove(peer);
    }

    /// Sends a frame. False when there is no such link or its queue is full: then the frame is lost, and the caller treats the link as down.
    #[must_use]
    pub fn send(&self, peer: &PeerName, frame: &Frame) -> bool {
        self.links.get(peer).is_some_and(|link| link.frames.try_send(to_wire(frame)).is_ok())
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
}

/// First and longest pause before dialling again.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1000));

impl Keeper {
    async fn run(self, mut queue: mpsc::Receiver<proto::Frame>) {
        let mut pause = REDIAL.0;
        loop {
            let began = Instant::now();
            let why = self.once(&mut queue).await;
            if self.events.send(LinkEvent::Lost(self.peer.clone(), why)).await.is_err() {
                return;
            }
            // Frames for the broken stream are of attempts that are over.
            while queue.try_recv().is_ok() {}
            if began.elapsed() > REDIAL.1 {
                pause = REDIAL.0;
            }
            sleep(pause).await;
            pause = (pause * 2).min(REDIAL.1);
        }
    }

    /// One stream from its beginning to its end; why it ended.
    async fn once(&self, queue: &mut mpsc::Receiver<proto::Frame>) -> String {
        let channel =
            match timeout(self.config.connect, connect(&self.config, &self.peer.0, &self.addr)).await {
                Err(_) => return "connecting took too long".to_owned(),
                Ok(Err(error)) => return chain(&error),
                Ok(Ok(channel)) => channel,
            };
        let (outgoing, stream) = mpsc::channel(64);
        let hello = proto::Frame { body: Some(Body::Hello(self.config.hello.clone())) };
        if outgoing.send(hello).await.is_err() {
            return "the stream closed".to_owned();
        }
        let mut client = StageClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opened = timeout(self.config.connect, client.exchange(ReceiverStream::new(stream))).await;
        let mut incoming = match opened {
            Err(_) => return "opening the stream took too long".to_owned(),
            Ok(Err(status)) => return chain(&status),
            Ok(Ok(response)) => response.into_inner(),
        };
        if self.events.send(LinkEvent::Up(self.peer.clone())).await.is_err() {
            return "stopped".to_owned();
        }
        let mut pings = interval(self.config.ping);
        let (mut seq, mut heard) = (0, Instant::now());
        loop {
            tokio::select! {
                biased;
                frame = incoming.message() => match frame {
                    Err(status) => return chain(&status),
                    Ok(None) => return "the peer closed the stream".to_owned(),
                    Ok(Some(frame)) => {
                        heard = Instant::now();
                        let frame = match from_wire(frame) {
                            Ok(frame) => frame,
                            Err(error) => return error.to_string(),
                        };
                        if self.events.send(LinkEvent::Frame(self.peer.clone(), frame)).await.is_err() {
                            return "stopped".to_owned();
                        }
                    }
                },
                frame = queue.recv() => {
                    let Some(frame) = frame else { return "hung up".to_owned() };
                    // The stream's own queue is short: a peer that reads nothing for as long as a lost one would is lost.
                    match timeout(self.config.silence, outgoing.send(frame)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return "the stream closed".to_owned(),
                        Err(_) => return "the peer does not read".to_owned(),
                    }
                },
                _ = pings.tick() => {
                    if heard.elapsed() > self.config.silence {
                        return format!("silent for {} ms", heard.elapsed().as_millis());
                    }
                    seq += 1;
                    let ping = Frame::Ping { seq, epoch: self.epoch.load(Ordering::Relaxed) };
                    // A full stream needs no ping to show that it is alive, or dead.
                    let _ = outgoing.try_send(to_wire(&ping));
                },
            }
        }
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

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}
