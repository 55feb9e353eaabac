//! Incoming streams: frames go to one task, answers find the stream of whoever asked.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_protocol::{Frame, GatewayId};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::convert::{from_wire, to_wire};
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
    /// Who sent it: a gateway, or a peer (whose incarnation is 0).
    pub from: GatewayId,
    /// The caller is a gateway.
    pub gateway: bool,
    /// What it sent.
    pub frame: Frame,
}

type Callers = Arc<Mutex<BTreeMap<GatewayId, mpsc::Sender<Result<proto::Frame, Status>>>>>;

/// The server of [`Stage`](proto::stage_server::Stage) and the way back to its callers.
#[derive(Clone)]
pub struct Inbound {
    events: mpsc::Sender<InboundEvent>,
    callers: Callers,
}

/// The tonic service.
pub type StageServer = proto::stage_server::StageServer<Inbound>;

impl Inbound {
    /// Frames go to `events`.
    #[must_use]
    pub fn new(events: mpsc::Sender<InboundEvent>) -> Self {
        Self { events, callers: Callers::default() }
    }

    /// The service to add to a server.
    #[must_use]
    pub fn service(&self) -> StageServer {
        StageServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Sends a frame to a caller. False when it has no stream or does not keep up; it then learns from the gap, or from silence.
    #[must_use]
    pub fn reply(&self, to: &GatewayId, frame: &Frame) -> bool {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.get(to).is_some_and(|caller| caller.try_send(Ok(to_wire(frame))).is_ok())
    }
}

#[tonic::async_trait]
impl proto::stage_server::Stage for Inbound {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<proto::Frame, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::Frame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut incoming = request.into_inner();
        let hello = timeout(HELLO_LIMIT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??
            .and_then(|frame| frame.body);
        let Some(Body::Hello(hello)) = hello else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        let id = GatewayId { name: hello.name, incarnation: hello.incarnation };
        let (replies, outgoing) = mpsc::channel(QUEUE_MAX);
        {
            let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
            if callers.len() >= STREAMS_MAX {
                return Err(Status::resource_exhausted("too many streams"));
            }
            callers.insert(id.clone(), replies.clone());
        }
        let (events, callers) = (self.events.clone(), Arc::clone(&self.callers));
        tokio::spawn(async move {
            while let Ok(Some(frame)) = incoming.message().await {
                let Ok(frame) = from_wire(frame) else { break };
                let event = InboundEvent { from: id.clone(), gateway: hello.gateway, frame };
                if events.send(event).await.is_err() {
                    break;
                }
            }
            let mut callers = callers.lock().unwrap_or_else(PoisonError::into_inner);
            // A caller that has dialled again has another stream under its name.
            if callers.get(&id).is_some_and(|known| known.same_channel(&replies)) {
                callers.remove(&id);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
