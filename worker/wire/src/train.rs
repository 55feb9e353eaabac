//! Training: streams to the conductor, calls to peers, values pulled from mates. The other ends are in `services.rs`.
//!
//! A stream to the conductor is alive as long as something comes every [`SILENCE`]; both ends say nothing, if they have nothing to say,
//! several times in that time.

use std::time::Duration;

use dunlin_swarm::limits::MESSAGE_BYTES_MAX;
use dunlin_swarm::timing::{TRAINING_PING as PING, TRAINING_SILENCE as SILENCE};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tracing::warn;

use crate::keepalive::{Redial, Silence, chain, converse, within};
use crate::links::{LinksConfig, connect};
use crate::proto;
use crate::proto::train_client::TrainClient;
use crate::proto::train_stage_client::TrainStageClient;
pub use crate::services::{
    ConductorInbound, ConductorService, PieceSender, StageInbound, StreamId, TrainStageService,
};
pub use crate::streams::PIECE_BYTES;
use crate::streams::{PIECE_MESSAGE_MAX, QUEUE_MAX};
use crate::training::{ToConductor, ToMember};

/// What happens on the stream to the conductor.
#[derive(Debug)]
pub enum ConductorLinkEvent {
    /// It is open: say hello.
    Up(mpsc::Sender<ToConductor>),
    /// The conductor says something.
    Said(ToMember),
    /// It broke; it is being dialled again.
    Down(String),
}

/// Keeps a stream to the conductor at `addr` (`host:port`) until `events` is dropped.
pub fn dial_conductor(config: LinksConfig, addr: String, events: mpsc::Sender<ConductorLinkEvent>) {
    tokio::spawn(async move {
        let mut redial = Redial::default();
        loop {
            let began = Instant::now();
            let why = join(&config, &addr, &events).await.unwrap_or_else(|why| why);
            if events.send(ConductorLinkEvent::Down(why)).await.is_err() {
                return;
            }
            redial.pause(began).await;
        }
    });
}

/// One stream from its beginning to its end; why it ended.
async fn join(
    config: &LinksConfig,
    addr: &str,
    events: &mpsc::Sender<ConductorLinkEvent>,
) -> Result<String, String> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let channel = within(config.connect, "connecting", connect(config, host, addr)).await?;
    let (outgoing, stream) = mpsc::channel(64);
    let mut client = TrainClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let joined = client.join(ReceiverStream::new(stream));
    let incoming = within(config.connect, "opening the stream", joined).await?.into_inner();
    let (sayer, mut queue) = mpsc::channel(QUEUE_MAX);
    if events.send(ConductorLinkEvent::Up(sayer)).await.is_err() {
        return Ok("stopped".to_owned());
    }
    let heard = (events, |said| Ok(ConductorLinkEvent::Said(said)));
    let silence = Silence::new(PING, SILENCE);
    converse(incoming, (&outgoing, |said| said), &mut queue, silence, heard).await.map_err(|error| {
        let why = format!("the conductor at {addr} makes no sense: {error}");
        warn!("{why}");
        why
    })
}

/// A client of a peer at `addr` (`host:port`) whose certificate says `name`; a call or its answer has at most `call_bytes_max` bytes.
///
/// # Errors
/// When it cannot be reached.
pub async fn dial_stage(
    config: &LinksConfig,
    name: &str,
    addr: &str,
    call_bytes_max: usize,
) -> Result<TrainStageClient<tonic::transport::Channel>, String> {
    let channel =
        within(config.connect, &format!("connecting to {name}"), connect(config, name, addr)).await?;
    Ok(TrainStageClient::new(channel)
        .max_decoding_message_size(call_bytes_max.max(PIECE_MESSAGE_MAX))
        .max_encoding_message_size(call_bytes_max))
}

/// Why something does not come of a mate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PullError {
    /// It answers, and says why it gives nothing: the connection to it works.
    #[error("{0}")]
    Refused(String),
    /// It does not answer, ends without what was asked for, or cannot be reached.
    #[error("{0}")]
    Broken(String),
}

impl From<Status> for PullError {
    fn from(status: Status) -> Self {
        let why = chain(&status);
        match status.code() {
            Code::PermissionDenied | Code::FailedPrecondition => Self::Refused(why),
            _ => Self::Broken(why),
        }
    }
}

impl From<PullError> for String {
    fn from(error: PullError) -> Self {
        match error {
            PullError::Refused(why) | PullError::Broken(why) => why,
        }
    }
}

/// An answer that comes piece by piece. Nothing for `patience` is a failure.
pub struct Pieces {
    stream: Streaming<proto::Piece>,
    patience: Duration,
}

impl Pieces {
    /// Asks for values.
    ///
    /// # Errors
    /// What the peer said, or that it does not answer.
    pub async fn ask(
        client: &mut TrainStageClient<tonic::transport::Channel>,
        request: proto::PullRequest,
        patience: Duration,
    ) -> Result<Self, PullError> {
        let response = timeout(patience, client.pull(request)).await.map_err(|_| late())?;
        let stream = response?.into_inner();
        Ok(Self { stream, patience })
    }

    /// The next piece; none at the end. May be dropped while it waits.
    ///
    /// # Errors
    /// What the peer said, or that it says nothing more.
    pub async fn next(&mut self) -> Result<Option<proto::Piece>, PullError> {
        let piece = timeout(self.patience, self.stream.next()).await.map_err(|_| late())?;
        Ok(piece.transpose()?)
    }
}

fn late() -> PullError {
    PullError::Broken("the mate does not answer".to_owned())
}
