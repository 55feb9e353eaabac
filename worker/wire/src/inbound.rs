//! Incoming streams: frames go to one task, answers find the stream of whoever asked.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{Frame, GatewayId, Sender};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use crate::access::Rpc;
use crate::convert::{from_wire, to_wire};
use crate::identity::{Caller, Role};
use crate::present::Present;
use crate::proto::frame::Body;
use crate::{MESSAGE_BYTES_MAX, proto};

/// Streams at once.
const STREAMS_MAX: usize = 4096;
/// Frames that wait for one caller.
const QUEUE_MAX: usize = 4096;
/// A caller says who it is within this time.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// What arrives.
#[derive(Debug)]
pub struct InboundEvent {
    /// Who sent it: what the hello of its stream says, as far as its certificate agrees.
    pub from: Sender,
    /// What it sent.
    pub frame: Frame,
}

/// The way back to a caller.
struct Back {
    replies: mpsc::Sender<Result<proto::Frame, Status>>,
    /// Nothing more is taken from it.
    closed: Arc<Notify>,
}

/// The server of [`Stage`](proto::stage_server::Stage) and the way back to its callers.
#[derive(Clone)]
pub struct Inbound {
    events: mpsc::Sender<InboundEvent>,
    callers: Present<Sender, Back>,
}

/// The tonic service.
pub type StageServer = proto::stage_server::StageServer<Inbound>;

impl Inbound {
    /// Frames go to `events`.
    #[must_use]
    pub fn new(events: mpsc::Sender<InboundEvent>) -> Self {
        Self { events, callers: Present::default() }
    }

    /// The service to add to a server.
    #[must_use]
    pub fn service(&self) -> StageServer {
        StageServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Sends a frame to a caller. False when it has no stream or does not keep up; it then learns from the gap, or from silence.
    #[must_use]
    pub fn reply(&self, to: &Sender, frame: &Frame) -> bool {
        let sent = self.callers.with(to, |back| back.replies.try_send(Ok(to_wire(frame))).is_ok());
        sent.unwrap_or(false)
    }

    /// Ends the stream of a caller that broke `rule`.
    pub fn close(&self, caller: &Sender, rule: &'static str) {
        warn!("the stream of {caller} is closed: {rule}");
        self.callers.with(caller, |back| {
            // A caller that does not read learns from the end of the stream.
            let _ = back.replies.try_send(Err(Status::permission_denied(rule)));
            back.closed.notify_one();
        });
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
        let from = sender(&caller, hello)?;
        let (replies, outgoing) = mpsc::channel(QUEUE_MAX);
        let closed = Arc::<Notify>::default();
        let back = Back { replies, closed: Arc::clone(&closed) };
        let entry = self.callers.enter(from.clone(), &caller, back, STREAMS_MAX)?;
        let events = self.events.clone();
        tokio::spawn(async move {
            // As long as this runs, answers find the stream.
            let _entry = entry;
            loop {
                let frame = tokio::select! {
                    biased;
                    () = closed.notified() => break,
                    frame = incoming.message() => frame,
                };
                let Ok(Some(frame)) = frame else { break };
                let Ok(frame) = from_wire(frame) else { break };
                if events.send(InboundEvent { from: from.clone(), frame }).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Who sends the frames behind `hello`, which must say what the certificate says.
fn sender(caller: &Caller, hello: proto::Hello) -> Result<Sender, Status> {
    let gateway = caller.role == Role::Gateway;
    if hello.gateway != gateway || !caller.is_called(&hello.name) {
        let said = if hello.gateway { "gateway" } else { "stage" };
        let why = format!("{caller} says hello as {said} {}, which its certificate does not say", hello.name);
        warn!("a stream is refused: {why}");
        return Err(Status::permission_denied(why));
    }
    Ok(if gateway {
        Sender::Gateway(GatewayId { name: hello.name, incarnation: hello.incarnation })
    } else {
        Sender::Peer(hello.name.as_str().into())
    })
}
