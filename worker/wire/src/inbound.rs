//! Incoming streams: frames go to one task, answers find the stream of whoever asked. Pings are answered here, with what that task said
//! last of itself: it may be busy, and the peer is alive all the same.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_protocol::{Frame, GatewayId, HeldSession, Sender};
use dunlin_swarm::limits::MESSAGE_BYTES_MAX;
use dunlin_swarm::timing::GATEWAY_LEASE_RANGE;
use dunlin_swarm::{Load, NumericsClass, is_other_model};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use crate::access::Rpc;
use crate::convert::{from_wire, to_wire};
use crate::identity::{Caller, Role};
use crate::present::{Entry, Present};
use crate::proto::frame::Body;
use crate::runtime::Pulse;
use crate::{proto, queue};

/// Streams at once.
const STREAMS_MAX: usize = 4096;
/// Bytes that wait for one caller: tokens of all its sessions for as long as its lease, several times over.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A caller says who it is within this time.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// What arrives.
#[derive(Debug)]
pub struct InboundEvent {
    /// Who sent it: what the hello of its stream says, as far as its certificate agrees.
    pub from: Sender,
    /// How long the sessions of a gateway are to be kept without a word of it, if it says so.
    pub lease_ms: Option<u64>,
    /// What it sent.
    pub frame: Frame,
}

/// What pongs say; the main loop brings it up to date with each turn.
#[derive(Clone, Debug, Default)]
pub struct Vitals {
    /// How the peer is doing.
    pub load: Load,
    /// What it holds, by gateway.
    pub held: BTreeMap<GatewayId, Vec<HeldSession>>,
}

type Reply = Result<proto::Frame, Status>;

/// The way back to a caller.
#[derive(Clone)]
struct Back {
    replies: queue::QueueSender<Reply>,
    /// Nothing more is taken from it.
    closed: Arc<Notify>,
}

/// What a peer is to those who call it.
#[derive(Clone, Debug)]
pub struct InboundIdentity {
    /// Its name.
    pub name: String,
    /// Which bits it computes: who computes others sends it no rows.
    pub arithmetic: NumericsClass,
    /// Digest of its model's source: nobody of another model sends it anything. Empty: not known.
    pub model_digest: String,
}

/// The server of [`Stage`](proto::stage_server::Stage) and the way back to its callers.
#[derive(Clone)]
pub struct Inbound {
    own: InboundIdentity,
    events: mpsc::Sender<InboundEvent>,
    callers: Present<Sender, Back>,
    vitals: Arc<Mutex<Arc<Vitals>>>,
    pulse: Pulse,
}

/// The tonic service.
pub type StageServer = proto::stage_server::StageServer<Inbound>;

impl Inbound {
    /// Frames go to `events`; pings are answered for as long as the loop that takes them has a pulse. `own`: who this peer is.
    #[must_use]
    pub fn new(own: InboundIdentity, events: mpsc::Sender<InboundEvent>, pulse: Pulse) -> Self {
        Self { own, events, callers: Present::default(), vitals: Arc::default(), pulse }
    }

    /// The service to add to a server.
    #[must_use]
    pub fn service(&self) -> StageServer {
        StageServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// What pongs say from now on.
    pub fn publish(&self, vitals: Vitals) {
        *self.vitals.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(vitals);
        self.pulse.beat();
    }

    /// Sends a frame to a caller; it waits for as long as the caller takes to read what is before it. A caller that has no stream learns
    /// from that; one that reads nothing while far more waits than it may ask for loses its stream. False in both cases.
    pub fn reply(&self, to: &Sender, frame: &Frame) -> bool {
        let sent = self.callers.with(to, |back| back.replies.send(Ok(to_wire(frame)), frame.bytes()));
        if sent == Some(false) {
            self.close(to, "nothing is read of what it asked for");
        }
        sent.unwrap_or(false)
    }

    /// Ends the stream of a caller that broke `rule`.
    pub fn close(&self, caller: &Sender, rule: &'static str) {
        warn!("the stream of {caller} is closed: {rule}");
        self.callers.with(caller, |back| {
            // A caller that does not read learns from the end of the stream.
            let _ = back.replies.send(Err(Status::permission_denied(rule)), 0);
            back.closed.notify_one();
        });
    }

    /// A caller of another model, or a stage that computes with another arithmetic, says so before it sends anything.
    fn check(&self, hello: &proto::Hello) -> Result<(), Status> {
        let InboundIdentity { name, arithmetic: own, model_digest } = &self.own;
        let (caller, theirs) = (&hello.name, NumericsClass::from_number(hello.arithmetic));
        let why = if is_other_model(model_digest, &hello.model_digest) {
            format!(
                "{caller} is of the model {:.64}, {name} of {model_digest}: tokens and rows of one mean nothing to the other",
                hello.model_digest
            )
        } else if !hello.gateway && theirs != Some(*own) {
            format!(
                "{caller} computes with version {} of the arithmetic, {name} with version {own}: rows of one mean nothing to the other",
                NumericsClass::number_of(theirs)
            )
        } else {
            return Ok(());
        };
        warn!("a stream is refused: {why}");
        Err(Status::failed_precondition(why))
    }

    /// Takes what a caller says, to the end of its stream.
    async fn serve(
        self,
        (from, lease_ms): (Sender, Option<u64>),
        back: Back,
        mut incoming: Streaming<proto::Frame>,
        entry: Entry<Sender, Back>,
    ) {
        // As long as this runs, answers find the stream.
        let _entry = entry;
        loop {
            let frame = tokio::select! {
                biased;
                () = back.closed.notified() => return,
                frame = incoming.message() => frame,
            };
            let Ok(Some(frame)) = frame else { return };
            let Ok(frame) = from_wire(frame) else { return };
            let ping = if let Frame::Ping { seq, .. } = frame { Some(seq) } else { None };
            let event = InboundEvent { from: from.clone(), lease_ms, frame };
            let Some(seq) = ping else {
                if self.events.send(event).await.is_err() {
                    return;
                }
                continue;
            };
            // The loop hears of pings, too, for its leases; when it has no time to, it has others to hear.
            let _ = self.events.try_send(event);
            if self.pulse.is_stuck() {
                continue;
            }
            let vitals = Arc::clone(&self.vitals.lock().unwrap_or_else(PoisonError::into_inner));
            let held = match &from {
                Sender::Gateway(gateway) => vitals.held.get(gateway).cloned().unwrap_or_default(),
                Sender::Peer(_) => Vec::new(),
            };
            let pong = Frame::Pong { seq, load: vitals.load.clone(), held };
            if !back.replies.send(Ok(to_wire(&pong)), pong.bytes()) {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl proto::stage_server::Stage for Inbound {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<proto::Frame, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::Frame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let caller = Rpc::Exchange.admit(&request)?;
        let mut incoming = request.into_inner();
        let hello = timeout(HELLO_LIMIT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??
            .and_then(|frame| frame.body);
        let Some(Body::Hello(hello)) = hello else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        let from = sender(&caller, &hello)?;
        self.check(&hello)?;
        let lease_ms = lease(&hello)?;
        let (replies, outgoing) = queue::queue(QUEUE_BYTES_MAX);
        let back = Back { replies, closed: Arc::default() };
        let entry = self.callers.enter(from.clone(), &caller, back.clone(), STREAMS_MAX)?;
        tokio::spawn(self.clone().serve((from, lease_ms), back, incoming, entry));
        Ok(Response::new(Box::pin(outgoing)))
    }
}

/// The lease that a gateway asks for, if it asks for one.
fn lease(hello: &proto::Hello) -> Result<Option<u64>, Status> {
    let (least, most) = (GATEWAY_LEASE_RANGE.0.as_millis(), GATEWAY_LEASE_RANGE.1.as_millis());
    match hello.lease_ms {
        0 => Ok(None),
        said if (least..=most).contains(&u128::from(said)) => Ok(Some(said)),
        said => {
            let why = format!("{} asks for lease_ms {said}: it can be {least} to {most}", hello.name);
            warn!("a stream is refused: {why}");
            Err(Status::invalid_argument(why))
        }
    }
}

/// Who sends the frames behind `hello`, which must say what the certificate says.
fn sender(caller: &Caller, hello: &proto::Hello) -> Result<Sender, Status> {
    let gateway = caller.role == Role::Gateway;
    if hello.gateway != gateway || !caller.is_called(&hello.name) {
        let said = if hello.gateway { "gateway" } else { "stage" };
        let why = format!("{caller} says hello as {said} {}, which its certificate does not say", hello.name);
        warn!("a stream is refused: {why}");
        return Err(Status::permission_denied(why));
    }
    Ok(if gateway {
        Sender::Gateway(GatewayId { name: hello.name.clone(), incarnation: hello.incarnation })
    } else {
        Sender::Peer(hello.name.as_str().into())
    })
}
