//! What mates pull from this peer: state, updates, sums, parts of averages.
//!
//! The engine's thread only says what there is: values are shared, not copied there, and travel piece by piece, at the mate's pace. So training goes on while others join.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_kernels::Pool;
use dunlin_train::root;
use dunlin_train::stage::Snapshot;
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::{PIECE_BYTES, PieceSender};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tonic::Status;

use super::super::values::{Word, to_bytes};
use super::average::{self, Formed};
use super::engine::{Bench, Engine};
use super::happened::Event;

/// Pulls that are served at once; more are refused, and asked again.
const PULLS_MAX: usize = 64;
/// A mate that takes nothing for so long gets nothing more.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer without values.
pub fn refuse(pieces: &PieceSender, why: &str) {
    // The channel is new, and the mate may have gone.
    let _ = pieces.try_send(Err(Status::failed_precondition(why)));
}

/// Where it is told that memory has changed by itself.
#[derive(Clone)]
pub struct Alarm(Option<mpsc::Sender<Event>>);

impl Alarm {
    /// Tells a peer.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self(Some(events))
    }

    /// Tells nobody: whoever has no conductor.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Memory has changed.
    pub async fn raise(&self, what: String) {
        if let Some(events) = &self.0 {
            // The receiver is gone only when the process ends.
            let _ = events.send(Event::Corrupt(what)).await;
        }
    }

    /// The same from a thread that may wait.
    pub fn raise_blocking(&self, what: String) {
        if let Some(events) = &self.0 {
            let _ = events.blocking_send(Event::Corrupt(what));
        }
    }
}

/// Gives mates what they pull.
#[derive(Clone)]
pub struct Giver {
    engine: Engine,
    formed: Arc<Formed>,
    alarm: Alarm,
    pulls: Arc<Semaphore>,
}

impl Giver {
    /// Of what the engine has, and of the averages that are formed.
    pub fn new(engine: Engine, formed: Arc<Formed>, alarm: Alarm) -> Self {
        Self { engine, formed, alarm, pulls: Arc::new(Semaphore::new(PULLS_MAX)) }
    }

    /// Answers as soon as the engine gets to it, piece by piece, at the mate's pace.
    pub fn serve(&self, request: proto::PullRequest, pieces: PieceSender) {
        let Some(what) = request.what else { return refuse(&pieces, "nothing asked for") };
        let Ok(permit) = Arc::clone(&self.pulls).try_acquire_owned() else {
            return refuse(&pieces, "too many mates ask at once");
        };
        let giver = self.clone();
        tokio::spawn(async move {
            if let Err(why) = giver.give(what, &pieces).await {
                refuse(&pieces, &why);
            }
            drop(permit);
        });
    }

    async fn give(&self, what: What, pieces: &PieceSender) -> Result<(), String> {
        match what {
            What::Average(part) => average::give_result(&self.formed, part, pieces).await,
            What::Sums(part) => average::give_share(&self.engine, part, pieces, &self.alarm).await,
            What::AllSums(step) => {
                let alarm = self.alarm.clone();
                let sums = self.ask(move |Bench { stage, pool }| {
                    let sums = stage.as_mut()?.sums(pool, step);
                    sums.inspect_err(|error| alarm.raise_blocking(error.to_string())).ok()?
                });
                let sums = sums.await?.ok_or("this peer is not at that step")?;
                send(sums.values(), step, pieces).await;
                Ok(())
            }
            What::Update(step) => {
                let update = self.ask(move |bench| bench.stage.as_ref()?.update(step)).await?;
                let update = update.ok_or_else(|| format!("the update of step {step} is not here"))?;
                send(&update.gradient, step, pieces).await;
                Ok(())
            }
            What::State(span) => {
                let state = self.state().await?;
                let (from, to) = (index(span.from), index(span.to));
                if from > to || to > state.parameters().len() {
                    return Err("the stage has fewer values".to_owned());
                }
                let (state, leaves) = self.intact(state).await?;
                for vector in state.vectors() {
                    if !send(&vector[from..to], state.step(), pieces).await {
                        return Ok(());
                    }
                }
                send_bytes(leaves, state.step(), pieces).await;
                Ok(())
            }
        }
    }

    /// The state as it is now.
    async fn state(&self) -> Result<Snapshot, String> {
        let state = self.ask(|bench| bench.stage.as_ref().map(|stage| stage.snapshot())).await?;
        state.ok_or_else(|| "this peer has no state".to_owned())
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
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Bench) -> T + Send + 'static,
    ) -> Result<T, String> {
        let (answer_in, answer) = oneshot::channel();
        self.engine.run(move |bench| {
            // The mate may have gone.
            let _ = answer_in.send(question(bench));
        });
        answer.await.map_err(|_| "the peer ends".to_owned())
    }
}

/// The root of a state, computed by the threads that have it.
pub fn root_of(state: &Snapshot, pool: &Pool) -> String {
    root::root(&state.leaves(pool)).to_string()
}

/// A peer's counts fit: they are bounded by what is in memory.
pub fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// One piece; false when the mate is gone or takes nothing.
pub async fn send_bytes(data: Bytes, step: u64, pieces: &PieceSender) -> bool {
    let sent = timeout(PATIENCE, pieces.send(Ok(proto::Piece { data, step }))).await;
    matches!(sent, Ok(Ok(())))
}

async fn send<const N: usize, T: Word<N>>(values: &[T], step: u64, pieces: &PieceSender) -> bool {
    for piece in values.chunks(PIECE_BYTES / N) {
        if !send_bytes(to_bytes(piece), step, pieces).await {
            return false;
        }
    }
    // A piece says the step, also when there is nothing else to say.
    !values.is_empty() || send_bytes(Bytes::new(), step, pieces).await
}
