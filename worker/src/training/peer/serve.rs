//! What mates pull from this peer: state, updates, sums, parts of averages. The driver says who gets what, and when.
//!
//! The engine's thread only says what there is: values are shared, not copied there, and travel piece by piece, at the mate's pace. So training goes on while others join.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use dunlin_kernels::Pool;
use dunlin_protocol::training::serve::{NotGiven, PULLS_MAX, ServeEffect, Wanted};
use dunlin_protocol::training::{AskId, AverageId, Microbatch, ShardId, StageId};
use dunlin_swarm::PeerName;
use dunlin_train::average::{CHUNK, Share, chunks};
use dunlin_train::codec::CodecError;
use dunlin_train::root;
use dunlin_train::stage::Snapshot;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::PieceSender;
use dunlin_wire::{Caller, proto};
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use tracing::warn;

use super::alarm::Alarm;
use super::average::{Asking, Averaging, share_of};
use super::engine::{TrainingEngine, Workbench};
use super::pieces::{index, refuse, send, send_bytes};

/// Pulls that were served to the end.
pub type Served = mpsc::Receiver<AskId>;

/// The pulls of mates, and the averages that they take parts of.
pub struct Pulls {
    giver: Giver,
    waiting: BTreeMap<AskId, PieceSender>,
    asked: AskId,
    averages: BTreeMap<ShardId, Averaging>,
    served: mpsc::Sender<AskId>,
}

/// Somebody asks for something of a stage.
pub struct Pulled {
    /// The pull.
    pub ask: AskId,
    /// Who asks.
    pub by: PeerName,
    /// The stage whose values it wants.
    pub stage: StageId,
    /// Which of them.
    pub wanted: Wanted,
}

impl Pulls {
    /// Nobody asks yet. What comes of `Served` the driver has to hear.
    pub fn new(engine: TrainingEngine, alarm: Alarm) -> (Self, Served) {
        let (served_in, served) = mpsc::channel(PULLS_MAX);
        let pulls = Self {
            giver: Giver { engine, alarm },
            waiting: BTreeMap::new(),
            asked: 0,
            averages: BTreeMap::new(),
            served: served_in,
        };
        (pulls, served)
    }

    /// Somebody asks, and waits until [`Self::perform`] gives or refuses it.
    pub fn asked(
        &mut self,
        caller: &Caller,
        request: proto::PullRequest,
        pieces: PieceSender,
    ) -> Option<Pulled> {
        let microbatches = request.microbatches.into_iter().collect();
        let Some(wanted) = request.what.map(|what| wanted(what, microbatches)) else {
            refuse(&pieces, "nothing asked for");
            return None;
        };
        self.asked += 1;
        self.waiting.insert(self.asked, pieces);
        Some(Pulled { ask: self.asked, by: PeerName::from(&*caller.name), stage: request.stage, wanted })
    }

    /// An average has begun. The one before it of the same shard is given up.
    pub fn open(&mut self, averaging: Averaging) {
        if let Some(old) = self.averages.insert(averaging.id().shard, averaging) {
            old.abort();
        }
    }

    /// The sums are about to change: averages that are not complete fail.
    pub fn cancel(&mut self) {
        self.averages.clear();
    }

    /// No average is of any use to anybody.
    pub fn abandon(&mut self) {
        for (_, averaging) in std::mem::take(&mut self.averages) {
            averaging.abort();
        }
    }

    /// Gives something to whoever asked, or nothing.
    pub fn perform(&mut self, effect: ServeEffect) {
        match effect {
            ServeEffect::Give(ask, wanted) => self.give(ask, wanted),
            ServeEffect::Refuse(ask, why) => {
                let status = if matches!(why, NotGiven::NoMate(_)) {
                    warn!("a pull is refused: {why}");
                    Status::permission_denied(why.to_string())
                } else {
                    Status::failed_precondition(why.to_string())
                };
                if let Some(pieces) = self.waiting.remove(&ask) {
                    // The channel is new, and the caller may have gone.
                    let _ = pieces.try_send(Err(status));
                }
            }
        }
    }

    /// What the engine has to say to it is ordered before this returns.
    #[expect(clippy::too_many_lines, reason = "an arm for each thing that is asked for")]
    fn give(&mut self, ask: AskId, wanted: Wanted) {
        let Some(pieces) = self.waiting.remove(&ask) else { return };
        let served = self.served.clone();
        let giver = self.giver.clone();
        let what: BoxFuture<'static, Result<(), String>> = match wanted {
            Wanted::Result(of, range) => {
                let (to, mut chunks) = mpsc::channel(range.len().div_ceil(CHUNK) + 1);
                let averaging = self.averages.get(&of.shard).filter(|averaging| averaging.id() == of);
                let asked = averaging.map(|averaging| averaging.give(Asking { ask, range, to }));
                let pieces = pieces.clone();
                Box::pin(async move {
                    let Some(Ok(())) = asked else { return Err("the average is given up".to_owned()) };
                    while let Some(chunk) = chunks.recv().await {
                        if !send_bytes(chunk?, of.step, &pieces).await {
                            break;
                        }
                    }
                    Ok(())
                })
            }
            Wanted::Sums(of, range) => {
                let share = share_of(&giver.engine, of, &giver.alarm);
                let pieces = pieces.clone();
                Box::pin(async move { giver.sums(share.await?, of, range, &pieces).await })
            }
            Wanted::AllSums(step, _) => {
                let alarm = giver.alarm.clone();
                let sums = giver.ask(move |Workbench { stage, pool }| {
                    let sums = stage.as_mut()?.sums(pool, step);
                    sums.inspect_err(|error| alarm.raise_blocking(error.to_string())).ok()?
                });
                let pieces = pieces.clone();
                Box::pin(async move {
                    let sums = sums.await?.ok_or("this peer is not at that step")?;
                    send(sums.values(), step, &pieces).await;
                    Ok(())
                })
            }
            Wanted::Update(step) => {
                let update = giver.ask(move |bench| bench.stage.as_ref()?.update(step));
                let pieces = pieces.clone();
                Box::pin(async move {
                    let update = update.await?;
                    let update = update.ok_or_else(|| format!("the update of step {step} is not here"))?;
                    send(&update.gradient, step, &pieces).await;
                    Ok(())
                })
            }
            Wanted::State(span) => {
                let state = giver.ask(|bench| bench.stage.as_ref().map(|stage| stage.snapshot()));
                let pieces = pieces.clone();
                Box::pin(async move {
                    let state = state.await?.ok_or("this peer has no state")?;
                    giver.state(state, index(span.start)..index(span.end), &pieces).await
                })
            }
        };
        tokio::spawn(async move {
            if let Err(why) = what.await {
                refuse(&pieces, &why);
            }
            // The receiver is gone only when the process ends.
            let _ = served.send(ask).await;
        });
    }
}

/// What is asked for.
fn wanted(what: What, microbatches: BTreeSet<Microbatch>) -> Wanted {
    let average = |part: &proto::PartOf| AverageId { step: part.step, shard: part.shard, round: part.round };
    let range = |part: &proto::PartOf| index(part.from)..index(part.to);
    match what {
        What::State(span) => Wanted::State(span.from..span.to),
        What::Update(step) => Wanted::Update(step),
        What::AllSums(step) => Wanted::AllSums(step, microbatches),
        What::Sums(part) => Wanted::Sums(average(&part), range(&part)),
        What::Average(part) => Wanted::Result(average(&part), range(&part)),
    }
}

/// Gives mates what the engine has.
#[derive(Clone)]
struct Giver {
    engine: TrainingEngine,
    alarm: Alarm,
}

impl Giver {
    /// A part of a shard's sums, encoded chunk by chunk.
    async fn sums(
        &self,
        share: Share,
        of: AverageId,
        range: Range<usize>,
        pieces: &PieceSender,
    ) -> Result<(), String> {
        if range.start > range.end || range.end > share.len() {
            return Err("the shard has fewer values".to_owned());
        }
        let mut scratch = Vec::new();
        for chunk in chunks(range) {
            let encoded = share.encode(chunk, &mut scratch);
            if let Err(error @ CodecError::Changed(_)) = &encoded {
                self.alarm.raise(error.to_string()).await;
            }
            let bytes = encoded.map_err(|error| error.to_string())?;
            // The mate is gone when it no longer wants them.
            if !send_bytes(bytes.into(), of.step, pieces).await {
                break;
            }
        }
        Ok(())
    }

    /// A part of a state, and the leaves of its tree.
    async fn state(&self, state: Snapshot, span: Range<usize>, pieces: &PieceSender) -> Result<(), String> {
        if span.start > span.end || span.end > state.parameters().len() {
            return Err("the stage has fewer values".to_owned());
        }
        let (state, leaves) = self.intact(state).await?;
        for vector in state.vectors() {
            if !send(&vector[span.clone()], state.step(), pieces).await {
                return Ok(());
            }
        }
        send_bytes(leaves, state.step(), pieces).await;
        Ok(())
    }

    /// A state and the leaves of its tree, if it is what updates have written: what is wrong here is not passed on.
    async fn intact(&self, state: Snapshot) -> Result<(Snapshot, Bytes), String> {
        let checked = tokio::task::spawn_blocking(move || {
            let leaves: Vec<u8> = state.leaves(&Pool::new(1)).into_iter().flatten().collect();
            (state.changed(), leaves.into(), state)
        });
        let (changed, leaves, state) = checked.await.map_err(|e| e.to_string())?;
        if let Some(chunk) = changed {
            let what =
                format!("values {} to {} of the state are not what was written", chunk.start, chunk.end);
            self.alarm.raise(what.clone()).await;
            return Err(what);
        }
        Ok((state, leaves))
    }

    /// What the engine says, when it gets to it.
    fn ask<T: Send + 'static, Q: FnOnce(&mut Workbench) -> T + Send + 'static>(
        &self,
        question: Q,
    ) -> impl Future<Output = Result<T, String>> + use<T, Q> {
        let (answer_in, answer) = oneshot::channel();
        self.engine.run(move |bench| {
            // The mate may have gone.
            let _ = answer_in.send(question(bench));
        });
        async move { answer.await.map_err(|_| "the peer ends".to_owned()) }
    }
}

/// The root of a state, computed by the threads that have it.
pub fn root_of(state: &Snapshot, pool: &Pool) -> String {
    root::root(&state.leaves(pool)).to_string()
}
