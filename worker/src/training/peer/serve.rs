//! What mates pull from this peer: state, updates, sums, parts of averages.
//!
//! The engine's thread only says what there is: values are shared, not copied there, and travel piece by piece, at the mate's pace. So training goes on while others join.

use std::sync::Arc;

use bytes::Bytes;
use dunlin_kernels::Pool;
use dunlin_train::root;
use dunlin_train::stage::Snapshot;
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::PieceSender;
use tokio::sync::{Semaphore, oneshot};

use super::alarm::Alarm;
use super::average;
use super::engine::{Bench, Engine};
use super::formed::Formed;
use super::pieces::{index, refuse, send, send_bytes};

/// Pulls that are served at once; more are refused, and asked again.
const PULLS_MAX: usize = 64;
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
