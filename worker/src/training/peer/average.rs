//! Averages among the peers of a shard: performs what [`Butterfly`] decides, on streams and tensors. See [`dunlin_train::average`] for what is
//! added and kept.
//!
//! An average takes the memory of its result, and of what may be on its way on a stream (16 MiB a mate).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::training::reduce::{Butterfly, Half, PartRef, ReduceConfig, ReduceEffect, ReduceEvent};
use dunlin_protocol::training::serve::PULLS_MAX;
use dunlin_protocol::training::{AskId, AverageId, Mate, ShardId, StageId};
use dunlin_swarm::PeerName;
use dunlin_train::average::{Average, CHUNK, Share, Total, part, result_codec};
use dunlin_train::codec::{Codec, CodecError};
use dunlin_train::config::GradientWire;
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::{Pieces, PullError};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::super::values::{Clients, Fault, asking};
use super::alarm::Alarm;
use super::clock::Clock;
use super::engine::{TrainingEngine, Workbench};

/// The machine of an average says when a mate is lost.
const UNLIMITED: Duration = Duration::MAX;

/// What averages are formed with.
#[derive(Clone)]
pub struct Exchange {
    /// Connections to mates.
    pub clients: Clients,
    /// The thread that has the sums.
    pub engine: TrainingEngine,
    /// Who hears that memory has changed.
    pub alarm: Alarm,
    /// How gradients travel.
    pub wire: GradientWire,
    /// The stage of this peer.
    pub stage: StageId,
}

/// Somebody asks for the part that is formed here: chunks of it go to `to`, or why it gets no more.
pub struct Asking {
    /// The pull.
    pub ask: AskId,
    /// The part.
    pub range: Range<usize>,
    /// Takes all chunks of the part without waiting.
    pub to: mpsc::Sender<Result<Bytes, String>>,
}

/// An average that is being formed, or is complete and given to others. Dropped, it is given up.
pub struct Averaging {
    id: AverageId,
    asks: mpsc::Sender<Asking>,
    task: AbortHandle,
}

impl Averaging {
    /// Which one it is.
    pub fn id(&self) -> AverageId {
        self.id
    }

    /// Gives the part that is formed here; the same back when there is nobody any more who could.
    pub fn give(&self, asking: Asking) -> Result<(), Asking> {
        self.asks.try_send(asking).map_err(|error| match error {
            mpsc::error::TrySendError::Full(asking) | mpsc::error::TrySendError::Closed(asking) => asking,
        })
    }

    /// Ends it, and nobody hears how.
    pub fn abort(self) {
        self.task.abort();
    }
}

/// Begins an average of `group`, in which this peer is `me`; what it contributes is ordered from the engine before this returns. `spare` is that
/// of an average that is no longer needed, if there is one: what is in it does not matter, and as much memory need not be cleared anew.
pub fn begin(
    exchange: Exchange,
    id: AverageId,
    group: Vec<Mate>,
    me: &PeerName,
    spare: Vec<f32>,
) -> (Averaging, oneshot::Receiver<Result<Average, Fault>>) {
    let mut out = Vec::new();
    let machine = Butterfly::begin(ReduceConfig::new(CHUNK), id, group, me, &mut out);
    let (asks_in, asks) = mpsc::channel(PULLS_MAX);
    let (done_in, done) = oneshot::channel();
    let count = machine.group().len();
    let mut forming = Forming {
        codec: result_codec(exchange.wire),
        total: Total::new(exchange.wire, count),
        exchange,
        machine,
        share: None,
        values: spare,
        own: 0..0,
        lost: Vec::new(),
        here: BTreeMap::new(),
        streams: BTreeMap::new(),
        begun: FuturesUnordered::new(),
        formed: Vec::new(),
        takers: BTreeMap::new(),
        refused: BTreeSet::new(),
        events: VecDeque::new(),
        done: Some(done_in),
    };
    for effect in out {
        forming.perform(effect);
    }
    let task = tokio::spawn(forming.run(asks)).abort_handle();
    (Averaging { id, asks: asks_in, task }, done)
}

/// What comes of what was begun.
enum Come {
    Share(Result<Share, String>),
    Piece(PartRef, Result<Option<(Bytes, Box<Pieces>)>, PullError>),
}

/// What a member has of an average.
struct Forming {
    exchange: Exchange,
    machine: Butterfly,
    share: Option<Share>,
    total: Total,
    codec: Codec,
    values: Vec<f32>,
    /// The part that is added here, and what its encoding lost.
    own: Range<usize>,
    lost: Vec<f32>,
    /// Pieces that are not used yet: one of each stream.
    here: BTreeMap<PartRef, Bytes>,
    /// Streams that are not being read.
    streams: BTreeMap<PartRef, Box<Pieces>>,
    begun: FuturesUnordered<BoxFuture<'static, Come>>,
    /// Chunks of the own part, encoded.
    formed: Vec<Bytes>,
    takers: BTreeMap<AskId, mpsc::Sender<Result<Bytes, String>>>,
    /// Members that said why they give nothing.
    refused: BTreeSet<usize>,
    events: VecDeque<ReduceEvent>,
    done: Option<oneshot::Sender<Result<Average, Fault>>>,
}

impl Forming {
    async fn run(mut self, mut asks: mpsc::Receiver<Asking>) {
        let (clock, mut out, mut closed) = (Clock::start(), Vec::new(), false);
        loop {
            while let Some(event) = self.events.pop_front() {
                self.machine.handle(clock.now_ms(), event, &mut out);
                for effect in out.drain(..) {
                    self.perform(effect);
                }
                // Whoever carries chunks to others gets its turn.
                tokio::task::yield_now().await;
            }
            if closed {
                return;
            }
            tokio::select! {
                Some(come) = self.begun.next() => self.come(come),
                asking = asks.recv() => match asking {
                    Some(Asking { ask, range, to }) => {
                        self.takers.insert(ask, to);
                        self.events.push_back(ReduceEvent::Asked(ask, range));
                    }
                    None => {
                        closed = true;
                        let why = "the gradient sums have changed".to_owned();
                        self.events.push_back(ReduceEvent::Cancelled(why));
                    }
                },
                () = clock.until(self.machine.wake_ms()) => self.events.push_back(ReduceEvent::Deadline),
            }
        }
    }

    fn come(&mut self, come: Come) {
        self.events.push_back(match come {
            Come::Share(Err(why)) => ReduceEvent::Unusable(None, why),
            Come::Share(Ok(share)) => {
                let (len, count) = (share.len(), self.machine.group().len());
                self.values.resize(len, 0.0);
                self.own = part(len, self.machine.me(), count);
                self.share = Some(share);
                ReduceEvent::ShareReady((0..count).map(|member| part(len, member, count)).collect())
            }
            Come::Piece(part, Ok(Some((bytes, stream)))) => {
                self.here.insert(part, bytes);
                self.streams.insert(part, stream);
                ReduceEvent::PieceArrived(part)
            }
            Come::Piece(part, Ok(None)) => ReduceEvent::PullEnded(part, None),
            Come::Piece(part, Err(error)) => {
                if matches!(error, PullError::Refused(_)) {
                    self.refused.insert(part.member);
                }
                ReduceEvent::PullEnded(part, Some(error.into()))
            }
        });
    }

    fn perform(&mut self, effect: ReduceEffect) {
        match effect {
            ReduceEffect::Share => self.begun.push(share(&self.exchange, self.machine.id())),
            ReduceEffect::Pull(part, range) => self.pull(part, &range),
            ReduceEffect::Read(part) => {
                if let Some(stream) = self.streams.remove(&part) {
                    self.begun.push(Box::pin(async move { Come::Piece(part, next(stream).await) }));
                }
            }
            ReduceEffect::Add { member, range } => {
                let added = self.add(member, &range);
                let member = (member != self.machine.me()).then_some(member);
                self.check(member, added);
            }
            ReduceEffect::Combine(range) => match self.total.end(&mut self.values[range], &mut self.lost) {
                Ok(bytes) => {
                    self.formed.push(bytes.into());
                    self.events.push_back(ReduceEvent::Combined);
                }
                error => self.check(None, error.map(drop)),
            },
            ReduceEffect::Place { member, range } => {
                let bytes = self.here.remove(&PartRef { member, half: Half::Result }).unwrap_or_default();
                let placed = self.codec.decode_to(&bytes, &mut self.values[range]);
                self.check(Some(member), placed);
            }
            ReduceEffect::Give(ask, range) => {
                let chunk = self.formed.get((range.start - self.own.start) / CHUNK);
                if let Some((to, chunk)) = self.takers.get(&ask).zip(chunk) {
                    // It has room for all of them, or nobody takes them any more.
                    let _ = to.try_send(Ok(chunk.clone()));
                }
            }
            ReduceEffect::End(ask) => drop(self.takers.remove(&ask)),
            ReduceEffect::Refuse(ask, why) => {
                if let Some(to) = self.takers.remove(&ask) {
                    let _ = to.try_send(Err(why));
                }
            }
            ReduceEffect::Done => {
                // Nobody else has the sums any more when the engine goes on.
                self.share = None;
                let average = Average {
                    values: std::mem::take(&mut self.values),
                    index: self.machine.me(),
                    count: self.machine.group().len(),
                    lost: std::mem::take(&mut self.lost),
                    bits: 0,
                };
                self.tell(Ok(average));
            }
            ReduceEffect::Failed(mate, why) => {
                (self.share, self.begun) = (None, FuturesUnordered::new());
                self.streams.clear();
                let member = |name: &PeerName| self.machine.group().iter().position(|m| m.name == *name);
                let has_refused = |name: &PeerName| member(name).is_some_and(|m| self.refused.contains(&m));
                // A refusal came over a sound connection.
                if let Some(mate) = mate.as_ref().filter(|mate| !has_refused(mate)) {
                    self.exchange.clients.forget(mate);
                }
                self.tell(Err(Fault { mate, why }));
            }
        }
    }

    fn tell(&mut self, result: Result<Average, Fault>) {
        if let Some(done) = self.done.take() {
            // Nobody waits for it when the process ends.
            let _ = done.send(result);
        }
    }

    fn pull(&mut self, part: PartRef, range: &Range<usize>) {
        let Some(mate) = self.machine.group().get(part.member).cloned() else { return };
        let (clients, stage, of) = (self.exchange.clients.clone(), self.exchange.stage, self.machine.id());
        let wanted = proto::PartOf {
            step: of.step,
            shard: of.shard,
            round: of.round,
            from: range.start as u64,
            to: range.end as u64,
        };
        let what = match part.half {
            Half::Sums => What::Sums(wanted),
            Half::Result => What::Average(wanted),
        };
        self.begun.push(Box::pin(async move {
            let first =
                async { next(Box::new(clients.ask(&mate, asking(stage, what), UNLIMITED).await?)).await };
            Come::Piece(part, first.await)
        }));
    }

    fn add(&mut self, member: usize, range: &Range<usize>) -> Result<(), CodecError> {
        if member == 0 {
            self.total.begin(range.len());
        }
        if member != self.machine.me() {
            let bytes = self.here.remove(&PartRef { member, half: Half::Sums }).unwrap_or_default();
            return self.total.add(&bytes);
        }
        match &self.share {
            Some(share) => self.total.add_own(share, range),
            None => Ok(()),
        }
    }

    /// Sums that are not what was added to them are of no use, and neither is what cannot be read.
    fn check(&mut self, member: Option<usize>, outcome: Result<(), CodecError>) {
        if let Err(error) = outcome {
            if matches!(error, CodecError::Changed(_)) {
                self.exchange.alarm.raise_later(error.to_string());
            }
            self.events.push_back(ReduceEvent::Unusable(member, error.to_string()));
        }
    }
}

/// What this peer contributes, as of when the engine comes to it.
fn share(exchange: &Exchange, of: AverageId) -> BoxFuture<'static, Come> {
    let share = share_of(&exchange.engine, of, &exchange.alarm);
    Box::pin(async move { Come::Share(share.await) })
}

/// The same, for mates: it is ordered from the engine before this returns.
pub fn share_of(
    engine: &TrainingEngine,
    of: AverageId,
    alarm: &Alarm,
) -> impl Future<Output = Result<Share, String>> + use<> {
    let (share_in, share) = oneshot::channel();
    let alarm = alarm.clone();
    engine.run(move |Workbench { stage, pool }| {
        let stage = stage.as_mut().filter(|stage| stage.step() == of.step);
        let share = stage.map(|stage| stage.share(pool, of.shard)).transpose();
        let share = share.map_err(|error| {
            alarm.raise_blocking(error.to_string());
            error.to_string()
        });
        // The receiver is gone when the attempt was given up.
        let _ = share_in.send(share);
    });
    async move {
        let share = share.await.map_err(|_| "the engine ended")?;
        share?.ok_or_else(|| "this peer is not at that step".to_owned())
    }
}

async fn next(mut stream: Box<Pieces>) -> Result<Option<(Bytes, Box<Pieces>)>, PullError> {
    Ok(stream.next().await?.map(|piece| (piece.data, stream)))
}

/// What was formed in the present step: of every shard the newest attempt.
pub type FormedAverages = BTreeMap<ShardId, (u64, Arc<Average>)>;
