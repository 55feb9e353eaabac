//! Gets the state of a stage as the driver wants it: pulls, files, and work of the engine, each of which ends with an event of the same number.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use dunlin_protocol::training::fetch::{FetchConfig, FetchEvent, FetchId, FetchWork, StageSize};
use dunlin_protocol::training::{FetchFailure, StageStart, StateDigest, Step};
use dunlin_train::checkpoint::Destination;
use dunlin_train::{Run, Stage, root};
use dunlin_wire::proto::pull_request::What;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};

use super::super::saved;
use super::super::values::{Clients, asking};
use super::engine::{TrainingEngine, Workbench};
use super::event::Event;
use super::fetched::{Fetched, Outcome};
use super::kept::Kept;
use super::serve::root_of;
use super::state::{self, Part};
use super::unfetched::Unfetched;
use crate::exit::NeedsUser;

/// Values that are here, until they are used or dropped.
enum Got {
    Stage(Box<Stage>),
    Part(Box<Part>),
    Update(Vec<f32>),
}

/// Under way. Dropped, it is given up, if it is no work of the engine.
struct Begun(Option<AbortHandle>);

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// What is got of a stage's state.
pub(super) struct Fetching {
    run: Arc<Run>,
    clients: Clients,
    engine: TrainingEngine,
    events: mpsc::Sender<Event>,
    destination: Option<Destination>,
    begun: BTreeMap<FetchId, Begun>,
    got: BTreeMap<FetchId, Got>,
    /// Updates that are made meanwhile, from when the first is to be kept.
    kept: Option<Arc<Kept>>,
}

/// Bounds of a fetch, where updates may take so many bytes on disk.
pub(super) fn config(run: &Run, updates_bytes_max: u64) -> FetchConfig {
    let size = |stage| {
        let len = run.layout(stage).len();
        let bytes = (len * size_of::<f32>()).max(1) as u64;
        StageSize { chunks: root::chunks(len).len(), updates_max: updates_bytes_max / bytes }
    };
    FetchConfig::new((0..run.config.stages).map(size).collect())
}

impl Fetching {
    /// Nothing is wanted yet.
    pub fn new(run: Arc<Run>, clients: Clients, engine: TrainingEngine, events: mpsc::Sender<Event>) -> Self {
        let destination = run.config.checkpoint.as_ref().map(|c| c.destination.clone());
        let (begun, got) = (BTreeMap::new(), BTreeMap::new());
        Self { run, clients, engine, events, destination, begun, got, kept: None }
    }

    /// Something has come of what was begun: what the driver is told, unless it has dropped that.
    ///
    /// # Errors
    /// When the model that training goes on from cannot be used.
    pub fn came(&mut self, id: FetchId, outcome: Outcome) -> anyhow::Result<Option<FetchEvent>> {
        if self.begun.remove(&id).is_none() {
            return Ok(None);
        }
        Ok(Some(match outcome {
            Ok(Fetched::Stage(stage)) => self.has(id, Got::Stage(stage)),
            Ok(Fetched::Update(update)) => self.has(id, Got::Update(update)),
            Ok(Fetched::Part(part, says)) => {
                let step = part.step;
                self.got.insert(id, Got::Part(part));
                FetchEvent::Part(id, step, says)
            }
            Ok(Fetched::Kept) => FetchEvent::Came(id),
            Ok(Fetched::Checked(parts, wrong)) => {
                self.got.extend(parts.into_iter().map(|(id, part)| (id, Got::Part(part))));
                FetchEvent::Checked(id, wrong)
            }
            Ok(Fetched::At(step, state)) => FetchEvent::At(id, step, state),
            Err(Unfetched::Failed(failure, why)) => FetchEvent::Failed(id, failure, why),
            Err(Unfetched::Unusable(error)) => return Err(error).needs_user(),
        }))
    }

    fn has(&mut self, id: FetchId, got: Got) -> FetchEvent {
        self.got.insert(id, got);
        FetchEvent::Came(id)
    }

    /// Nobody waits for it, and what has come of it is not needed.
    pub fn forget(&mut self, id: FetchId) {
        self.begun.remove(&id);
        self.got.remove(&id);
    }

    /// These updates need not be kept any more.
    pub fn forget_updates(&self, steps: std::ops::Range<Step>) {
        if let Some(kept) = self.kept.clone() {
            spawn_blocking(move || steps.for_each(|step| kept.remove(step)));
        }
    }

    /// Begins something.
    ///
    /// # Errors
    /// When what it is to be done with is not here.
    pub fn begin(&mut self, id: FetchId, work: FetchWork) -> anyhow::Result<()> {
        match work {
            FetchWork::Read(load) => self.read(id, load),
            FetchWork::Where(_) => self.by_engine(id, |bench| {
                let stage = bench.stage.as_ref().ok_or_else(|| "there is no state here".to_owned())?;
                Ok(here(stage))
            }),
            FetchWork::PullState(mate, stage, chunks) => {
                let (run, clients) = (Arc::clone(&self.run), self.clients.clone());
                self.by_task(id, async move {
                    let (len, width) = (run.layout(stage).len(), 1 + run.state_slots());
                    let part = state::part(&clients, stage, &mate, chunks, (len, width)).await;
                    let part = part.map_err(|fault| fault.to_string())?;
                    let says = root::root(&part.leaves).to_string();
                    Ok(Fetched::Part(Box::new(part), says))
                });
            }
            FetchWork::Check(of) => {
                let parts = self.parts(&of)?;
                self.by_task(id, async move {
                    let checked = spawn_blocking(move || {
                        let wrong = |(id, part): &(FetchId, Box<Part>)| Some((*id, part.differs()?));
                        (parts.iter().filter_map(wrong).collect(), parts)
                    });
                    let (wrong, parts) = checked.await.map_err(|e| e.to_string())?;
                    Ok(Fetched::Checked(parts, wrong))
                });
            }
            FetchWork::Install(stage, of) => self.install(id, stage, &of)?,
            FetchWork::PullUpdate(mate, stage, step) => {
                let (clients, len) = (self.clients.clone(), self.run.layout(stage).len());
                self.by_task(id, async move {
                    let update = clients.pull(&mate, asking(stage, What::Update(step)), len).await;
                    Ok(Fetched::Update(update.map_err(|fault| fault.to_string())?.1))
                });
            }
            FetchWork::Keep(update, step) => {
                let (update, kept) = (self.update(update)?, self.kept());
                self.by_task(id, async move {
                    kept?.write(step, &update).await.map_err(|e| e.to_string())?;
                    Ok(Fetched::Kept)
                });
            }
            FetchWork::TakeKept(step) => {
                let kept = self.kept();
                self.by_task(id, async move {
                    Ok(Fetched::Update(kept?.take(step).await.map_err(|e| e.to_string())?))
                });
            }
            FetchWork::Follow(update) => self.follow(id, update)?,
        }
        Ok(())
    }

    /// The engine follows an update.
    fn follow(&mut self, id: FetchId, update: FetchId) -> anyhow::Result<()> {
        let update = Arc::new(self.update(update)?);
        self.by_engine(id, move |bench| {
            let stage = bench.stage.as_mut().ok_or_else(|| "there is no state here".to_owned())?;
            match stage.follow(&bench.pool, update) {
                Ok(_) => Ok(here(stage)),
                Err(error) if error.is_of_memory() => Err(Stopped::Corrupt(error.to_string())),
                Err(error) => Err(error.to_string().into()),
            }
        });
        Ok(())
    }

    /// First values or a checkpoint.
    fn read(&mut self, id: FetchId, StageStart { stage, step, checkpoint }: StageStart) {
        let (run, destination) = (Arc::clone(&self.run), self.destination.clone());
        self.by_engine(id, move |bench| {
            let loaded = match destination.filter(|_| checkpoint) {
                None => super::super::first(&run, stage, &bench.pool).map_err(Unfetched::from_model),
                Some(destination) => saved::read_stage(&destination, step, &run, stage, &bench.pool)
                    .map_err(|e| Unfetched::Failed(saved::blame(&e, step), format!("{e:#}"))),
            };
            Ok(Fetched::Stage(Box::new(loaded?)))
        });
    }

    /// The engine takes a state, with its root: others may get it from here.
    fn install(&mut self, id: FetchId, stage: u32, of: &[FetchId]) -> anyhow::Result<()> {
        let run = Arc::clone(&self.run);
        let take = |bench: &mut Workbench, stage: Stage| {
            let root = Some(root_of(&stage.snapshot(), &bench.pool));
            let at = Fetched::At(stage.step(), StateDigest { fingerprint: stage.fingerprint(), root });
            bench.stage = Some(stage);
            at
        };
        if let [read] = of
            && matches!(self.got.get(read), Some(Got::Stage(_)))
            && let Some(Got::Stage(stage)) = self.got.remove(read)
        {
            self.by_engine(id, move |bench| Ok(take(bench, *stage)));
            return Ok(());
        }
        let parts: Vec<Part> = self.parts(of)?.into_iter().map(|(_, part)| *part).collect();
        self.by_engine(id, move |bench| {
            let got = state::put_together(parts, run.layout(stage).len(), 1 + run.state_slots());
            let stage = Stage::from_state(&run, stage, got.step, got.parameters, got.slots, &bench.pool);
            Ok(take(bench, stage.map_err(|e| e.to_string())?))
        });
        Ok(())
    }

    fn parts(&mut self, of: &[FetchId]) -> anyhow::Result<Vec<(FetchId, Box<Part>)>> {
        let part = |id: &FetchId| match self.got.remove(id) {
            Some(Got::Part(part)) => Some((*id, part)),
            _ => None,
        };
        let parts: Option<Vec<_>> = of.iter().map(part).collect();
        parts.context("a part of a state is wanted that is not here")
    }

    fn update(&mut self, of: FetchId) -> anyhow::Result<Vec<f32>> {
        match self.got.remove(&of) {
            Some(Got::Update(update)) => Some(update),
            _ => None,
        }
        .context("an update is wanted that is not here")
    }

    /// Where updates are kept.
    fn kept(&mut self) -> Result<Arc<Kept>, String> {
        if let Some(kept) = &self.kept {
            return Ok(Arc::clone(kept));
        }
        let kept = Arc::new(Kept::new().map_err(|e| e.to_string())?);
        self.kept = Some(Arc::clone(&kept));
        Ok(kept)
    }

    #[cfg(test)]
    pub fn kept_now(&self) -> Option<&Kept> {
        self.kept.as_deref()
    }

    fn by_task(&mut self, id: FetchId, work: impl Future<Output = Outcome> + Send + 'static) {
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let outcome = work.await;
            // The receiver is gone only when the process ends.
            let _ = events.send(Event::Fetched(id, outcome)).await;
        });
        self.begun.insert(id, Begun(Some(task.abort_handle())));
    }

    fn by_engine(
        &mut self,
        id: FetchId,
        work: impl FnOnce(&mut Workbench) -> Result<Fetched, Stopped> + Send + 'static,
    ) {
        let events = self.events.clone();
        self.engine.run(move |bench| {
            let event = match work(bench) {
                Ok(fetched) => Event::Fetched(id, Ok(fetched)),
                Err(Stopped::Unfetched(why)) => Event::Fetched(id, Err(why)),
                Err(Stopped::Corrupt(what)) => Event::Corrupt(what),
            };
            let _ = events.blocking_send(event);
        });
        self.begun.insert(id, Begun(None));
    }
}

/// Why the engine has not done it.
enum Stopped {
    Unfetched(Unfetched),
    Corrupt(String),
}

impl From<Unfetched> for Stopped {
    fn from(why: Unfetched) -> Self {
        Self::Unfetched(why)
    }
}

impl From<String> for Stopped {
    fn from(why: String) -> Self {
        Self::Unfetched(Unfetched::Failed(FetchFailure::Passing, why))
    }
}

/// Where a stage is, without a root.
fn here(stage: &Stage) -> Fetched {
    Fetched::At(stage.step(), StateDigest { fingerprint: stage.fingerprint(), root: None })
}
