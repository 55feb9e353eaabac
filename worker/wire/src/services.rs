//! Training: what a conductor and a peer answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_protocol::training::{Hello, PeerReport, TrainerReport, TrainingRole as HelloRole};
use dunlin_swarm::limits::MESSAGE_BYTES_MAX;
use dunlin_swarm::timing::{TRAINING_PING as PING, TRAINING_SILENCE as SILENCE};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use crate::access::Rpc;
use crate::identity::{Caller, Role};
use crate::keepalive::{Silence, converse};
use crate::present::{Entry, Present};
use crate::proto;
use crate::proto::train_server::{Train, TrainServer};
use crate::proto::train_stage_server::{TrainStage, TrainStageServer};
use crate::proto::training as wire;
use crate::streams::{PIECE_MESSAGE_MAX, QUEUE_MAX};
use crate::training::check::MessageError;
use crate::training::{Message, ToConductor, ToMember};

/// Streams to a conductor at once.
const STREAMS_MAX: usize = 4096;
/// A caller says who it is within this time.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Identifies an incoming stream.
pub type StreamId = u64;

/// What reaches a conductor.
#[derive(Debug)]
pub enum ConductorInbound {
    /// A peer or trainer is here, with a hello that its certificate agrees with.
    Opened(StreamId, Caller, Hello, mpsc::Sender<ToMember>),
    /// A peer says something.
    Peer(StreamId, PeerReport),
    /// A trainer says something.
    Trainer(StreamId, TrainerReport),
    /// A stream ended.
    Closed(StreamId),
    /// How is it going?
    Observe(Caller, oneshot::Sender<proto::Observation>),
    /// Save and stop.
    Suspend(Caller, oneshot::Sender<proto::Observation>),
}

/// The conductor's gRPC service; everything goes to one channel.
#[derive(Clone)]
pub struct ConductorService {
    events: mpsc::Sender<ConductorInbound>,
    next: Arc<AtomicU64>,
    callers: Present<String, ()>,
}

impl ConductorService {
    /// The service, reporting to `events`.
    #[must_use]
    pub fn service(events: mpsc::Sender<ConductorInbound>) -> TrainServer<Self> {
        let service = Self { events, next: Arc::default(), callers: Present::default() };
        TrainServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn ask(
        &self,
        question: impl FnOnce(oneshot::Sender<proto::Observation>) -> ConductorInbound,
    ) -> Result<Response<proto::Observation>, Status> {
        let (answer, wait) = oneshot::channel();
        let ends = |_| Status::unavailable("the conductor ends");
        self.events.send(question(answer)).await.map_err(|_| Status::unavailable("the conductor ends"))?;
        Ok(Response::new(wait.await.map_err(ends)?))
    }
}

type JoinStream = Pin<Box<dyn Stream<Item = Result<wire::ToMember, Status>> + Send>>;

#[tonic::async_trait]
impl Train for ConductorService {
    type JoinStream = JoinStream;

    async fn join(
        &self,
        request: Request<Streaming<wire::ToConductor>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let caller = Rpc::Join.admit(&request)?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let incoming = request.into_inner();
        let (outgoing, stream) = mpsc::channel(64);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(status) = service.serve(id, caller.clone(), incoming, &outgoing).await {
                warn!("the stream of {caller} is closed: {}", status.message());
                // A caller that does not read learns from the end of the stream.
                let _ = outgoing.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn observe(
        &self,
        request: Request<proto::ObserveRequest>,
    ) -> Result<Response<proto::Observation>, Status> {
        let caller = Rpc::Observe.admit(&request)?;
        self.ask(|answer| ConductorInbound::Observe(caller, answer)).await
    }

    async fn suspend(
        &self,
        request: Request<proto::SuspendRequest>,
    ) -> Result<Response<proto::Observation>, Status> {
        let caller = Rpc::Suspend.admit(&request)?;
        self.ask(|answer| ConductorInbound::Suspend(caller, answer)).await
    }
}

impl ConductorService {
    /// One stream from its hello to its end.
    async fn serve(
        &self,
        id: StreamId,
        caller: Caller,
        mut incoming: Streaming<wire::ToConductor>,
        outgoing: &mpsc::Sender<Result<wire::ToMember, Status>>,
    ) -> Result<(), Status> {
        let greeting = timeout(HELLO_LIMIT, greeting(&mut incoming)).await;
        let Some(hello) = greeting.map_err(|_| Status::deadline_exceeded("no hello"))?? else {
            return Ok(());
        };
        let (role, _entry) = (caller.role, self.greet(&caller, &hello)?);
        let (sayer, mut queue) = mpsc::channel(QUEUE_MAX);
        if self.events.send(ConductorInbound::Opened(id, caller, hello, sayer)).await.is_err() {
            return Err(Status::unavailable("the conductor ends"));
        }
        let heard = (&self.events, |said| report(id, role, said));
        let ended = converse(incoming, (outgoing, Ok), &mut queue, Silence::new(PING, SILENCE), heard).await;
        let _ = self.events.send(ConductorInbound::Closed(id)).await;
        ended.map(|_why| ()).map_err(|error| senseless(&error))
    }

    /// The hello of a stream must say what the certificate says. Its name is taken as long as the stream is there.
    fn greet(&self, caller: &Caller, hello: &Hello) -> Result<Entry<String, ()>, Status> {
        let (role, name) = (role_of(&hello.role), hello.me.name.as_str());
        if caller.role != role || !caller.is_called(name) {
            return Err(Status::permission_denied(format!(
                "{caller} says hello as {role} {name}, which its certificate does not say"
            )));
        }
        self.callers.enter(name.to_owned(), caller, (), STREAMS_MAX)
    }
}

fn senseless(error: &MessageError) -> Status {
    Status::invalid_argument(format!("a message that makes no sense: {error}"))
}

/// The hello of a stream; none when it ends without any.
async fn greeting(incoming: &mut Streaming<wire::ToConductor>) -> Result<Option<Hello>, Status> {
    while let Some(message) = incoming.message().await? {
        match ToConductor::from_wire(message).map_err(|error| senseless(&error))? {
            None => {}
            Some(ToConductor::Hello(hello)) => return Ok(Some(hello)),
            Some(_) => return Err(Status::invalid_argument("the first message must be a hello")),
        }
    }
    Ok(None)
}

/// What somebody in this role says behind its hello.
fn report(id: StreamId, role: Role, said: ToConductor) -> Result<ConductorInbound, MessageError> {
    let what = match said {
        ToConductor::Peer(report) if role == Role::Peer => return Ok(ConductorInbound::Peer(id, report)),
        ToConductor::Trainer(report) if role == Role::Trainer => {
            return Ok(ConductorInbound::Trainer(id, report));
        }
        ToConductor::Hello(_) => "a second hello",
        ToConductor::Peer(_) => "the report of a peer",
        ToConductor::Trainer(_) => "the report of a trainer",
    };
    Err(MessageError::OutOfPlace { role, what })
}

/// The role that whoever says hello in this way must have a certificate for.
fn role_of(said: &HelloRole) -> Role {
    match said {
        HelloRole::Peer { .. } => Role::Peer,
        HelloRole::Trainer { .. } => Role::Trainer,
    }
}

/// What reaches a peer of a training swarm, beside the conductor.
#[derive(Debug)]
pub enum StageInbound {
    /// A trainer calls.
    Call(u64, Caller, proto::ComputeRequest, oneshot::Sender<proto::ComputeReply>),
    /// It no longer waits.
    HungUp(u64),
    /// A mate wants values.
    Pull(Caller, proto::PullRequest, PieceSender),
}

/// Where the pieces of an answer go.
pub type PieceSender = mpsc::Sender<Result<proto::Piece, Status>>;

/// A peer's gRPC service; everything goes to one channel.
#[derive(Clone)]
pub struct TrainStageService {
    events: mpsc::Sender<StageInbound>,
    next: Arc<AtomicU64>,
    /// Calls that are here; more are refused, so that their memory is bounded.
    calls: Arc<Semaphore>,
}

impl TrainStageService {
    /// The service, reporting to `events`; a call has at most `call_bytes_max` bytes, and at most `calls_max` are here at once.
    #[must_use]
    pub fn service(
        events: mpsc::Sender<StageInbound>,
        call_bytes_max: usize,
        calls_max: usize,
    ) -> TrainStageServer<Self> {
        let calls = Arc::new(Semaphore::new(calls_max));
        TrainStageServer::new(Self { events, next: Arc::default(), calls })
            .max_decoding_message_size(call_bytes_max)
            .max_encoding_message_size(call_bytes_max.max(PIECE_MESSAGE_MAX))
    }
}

/// Says that the caller is gone when the call's future is dropped.
struct HangUp(u64, Option<mpsc::Sender<StageInbound>>);

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(events) = self.1.take() {
            let id = self.0;
            tokio::spawn(async move { events.send(StageInbound::HungUp(id)).await });
        }
    }
}

type PieceStream = Pin<Box<dyn Stream<Item = Result<proto::Piece, Status>> + Send>>;

#[tonic::async_trait]
impl TrainStage for TrainStageService {
    type PullStream = PieceStream;

    async fn compute(
        &self,
        request: Request<proto::ComputeRequest>,
    ) -> Result<Response<proto::ComputeReply>, Status> {
        let caller = Rpc::Compute.admit(&request)?;
        let Ok(_permit) = self.calls.try_acquire() else {
            let refusal = proto::ComputeRefusal::ComputeBusy.into();
            return Ok(Response::new(proto::ComputeReply { refusal, ..Default::default() }));
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, wait) = oneshot::channel();
        let ends = || Status::unavailable("the peer ends");
        let call = StageInbound::Call(id, caller, request.into_inner(), reply);
        self.events.send(call).await.map_err(|_| ends())?;
        let mut guard = HangUp(id, Some(self.events.clone()));
        let answer = wait.await.map_err(|_| ends());
        guard.1 = None;
        Ok(Response::new(answer?))
    }

    async fn pull(&self, request: Request<proto::PullRequest>) -> Result<Response<PieceStream>, Status> {
        let caller = Rpc::Pull.admit(&request)?;
        let (pieces, stream) = mpsc::channel(4);
        let pull = StageInbound::Pull(caller, request.into_inner(), pieces);
        self.events.send(pull).await.map_err(|_| Status::unavailable("the peer ends"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
