//! The state of a stage: from several mates at once while they go on training, or from a checkpoint.
//!
//! Each mate gives a part of it as of the step it is at; when they are not all at the same one, it is asked for again. Updates that are made
//! meanwhile are collected, and followed one by one.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::ModelError;
use dunlin_protocol::training::{FetchFailure, Mate, PeerEffect, StageId, Step};
use dunlin_train::checkpoint::Destination;
use dunlin_train::{Run, Stage};
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use tracing::{info, warn};

use super::super::saved;
use super::super::values::Clients;
use super::{Bench, Collected, Event, Fetching, Peer};
use crate::exit::NeedsUser;

/// Mates that give state at once.
const MATES_MAX: usize = 4;
/// Attempts at a state that is of one step.
const ATTEMPTS: u32 = 20;
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a stage could not be had.
pub(super) enum Unfetched {
    /// The conductor is told.
    Failed(FetchFailure, String),
    /// The model that training goes on from cannot be used: that stays so.
    Unusable(anyhow::Error),
}

impl Unfetched {
    fn from_model(error: anyhow::Error) -> Self {
        let unusable = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<ModelError>().is_some_and(|e| !e.is_unreachable())
        };
        if error.chain().any(unusable) {
            return Self::Unusable(error.context("the model that training goes on from cannot be used"));
        }
        format!("{error:#}").into()
    }
}

impl From<String> for Unfetched {
    fn from(why: String) -> Self {
        Self::Failed(FetchFailure::Passing, why)
    }
}

impl Peer {
    /// Gets the first values of a stage, or those of a checkpoint.
    pub(super) fn load(&mut self, stage: StageId, step: Step, checkpoint: bool) {
        let ticket = self.new_ticket(stage, step, Vec::new());
        let (run, events, destination) =
            (Arc::clone(&self.run), self.events.clone(), self.destination.clone());
        self.engine.run(move |bench| {
            let loaded = match destination.filter(|_| checkpoint) {
                None => super::first(&run, stage, &bench.pool).map_err(Unfetched::from_model),
                Some(destination) => saved::read_stage(&destination, step, &run, stage, &bench.pool)
                    .map_err(|e| Unfetched::Failed(saved::blame(&e, step), format!("{e:#}"))),
            };
            let loaded = loaded.map(Box::new);
            // The receiver is gone only when the process ends.
            let _ = events.blocking_send(Event::Fetched(ticket, loaded));
        });
    }

    /// Gets a stage from mates, or the updates that are missing.
    pub(super) fn fetch(
        &mut self,
        stage: StageId,
        step: Step,
        from: Option<Step>,
        mates: Vec<Mate>,
        out: &mut Vec<PeerEffect>,
    ) {
        let ticket = self.new_ticket(stage, step, mates.clone());
        if let Some(have) = from {
            self.installed(ticket, Ok(have), out);
            return;
        }
        let (run, clients, events, engine) =
            (Arc::clone(&self.run), self.clients.clone(), self.events.clone(), self.engine.clone());
        let collected = Collected::start(clients.clone(), stage, step, mates.clone(), self.updates_bytes_max)
            .inspect_err(|error| warn!(%error, "updates cannot be kept while a state is fetched"));
        let task = tokio::spawn(async move {
            match state(&clients, &run, stage, &mates).await {
                Err(why) => drop(events.send(Event::Fetched(ticket, Err(why.into()))).await),
                Ok((step, parameters, slots)) => engine.run(move |bench| {
                    let stage = Stage::from_state(&run, stage, step, parameters, slots, &bench.pool);
                    let stage = stage.map(Box::new).map_err(|e| e.to_string().into());
                    let _ = events.blocking_send(Event::Fetched(ticket, stage));
                }),
            }
        });
        if let Some(fetching) = &mut self.fetching {
            fetching.task = Some(task.abort_handle());
            fetching.collected = collected.ok().map(Arc::new);
        }
    }

    fn new_ticket(&mut self, stage: StageId, wanted: Step, mates: Vec<Mate>) -> u64 {
        self.tickets += 1;
        self.averages.clear();
        for (_, task) in std::mem::take(&mut self.averaging) {
            task.abort();
        }
        self.fetching =
            Some(Fetching { ticket: self.tickets, stage, wanted, mates, collected: None, task: None });
        self.tickets
    }

    fn current(&mut self, ticket: u64) -> Option<&mut Fetching> {
        self.fetching.as_mut().filter(|f| f.ticket == ticket)
    }

    /// A state is here: the engine takes it.
    pub(super) fn fetched(
        &mut self,
        ticket: u64,
        stage: Result<Box<Stage>, Unfetched>,
        out: &mut Vec<PeerEffect>,
    ) -> anyhow::Result<()> {
        if self.current(ticket).is_none() {
            return Ok(());
        }
        match stage {
            Err(Unfetched::Unusable(error)) => return Err(error).needs_user(),
            Err(Unfetched::Failed(failure, why)) => self.give_up(failure, why, out),
            Ok(stage) => {
                let (events, step) = (self.events.clone(), stage.step());
                self.engine.run(move |bench| {
                    bench.stage = Some(*stage);
                    let _ = events.blocking_send(Event::Installed(ticket, Ok(step)));
                });
            }
        }
        Ok(())
    }

    /// The engine is at `step`: done, or the next update is needed.
    pub(super) fn installed(&mut self, ticket: u64, step: Result<Step, String>, out: &mut Vec<PeerEffect>) {
        let (clients, events) = (self.clients.clone(), self.events.clone());
        let Some(fetching) = self.current(ticket) else { return };
        let stage = fetching.stage;
        match step {
            Err(why) => self.give_up(FetchFailure::Passing, why, out),
            Ok(step) if step >= fetching.wanted => {
                self.fetching = None;
                info!(stage, step, "has the state of its stage");
                self.node.ready(stage, step, out);
            }
            Ok(step) => {
                let (mates, collected) = (fetching.mates.clone(), fetching.collected.clone());
                let task = tokio::spawn(async move {
                    let update = update(&clients, stage, step, &mates, collected.as_deref()).await;
                    let _ = events.send(Event::Update(ticket, update)).await;
                });
                fetching.task = Some(task.abort_handle());
            }
        }
    }

    /// An update that was missed is here: the engine follows it. When nobody has it any more, the whole state is needed.
    pub(super) fn follow(
        &mut self,
        ticket: u64,
        update: Result<Vec<f32>, String>,
        out: &mut Vec<PeerEffect>,
    ) {
        let Some(fetching) = self.current(ticket) else { return };
        let (stage, wanted, mates) = (fetching.stage, fetching.wanted, fetching.mates.clone());
        match update {
            Err(why) => {
                warn!(why, "an update is missing: the whole state is fetched");
                self.fetch(stage, wanted, None, mates, out);
            }
            Ok(gradient) => {
                let events = self.events.clone();
                self.engine.run(move |Bench { stage, pool }| {
                    let Some(stage) = stage else { return };
                    let followed = stage.follow(pool, Arc::new(gradient)).map_err(|e| e.to_string());
                    let _ = events.blocking_send(Event::Installed(ticket, followed.map(|_| stage.step())));
                });
            }
        }
    }

    fn give_up(&mut self, failure: FetchFailure, why: String, out: &mut Vec<PeerEffect>) {
        if let Some(fetching) = self.fetching.take() {
            self.node.fetch_failed(fetching.stage, failure, why, out);
        }
    }
}

/// A copy of a stage's state, to be written.
pub struct Snapshot {
    stage: u32,
    step: Step,
    parameters: Vec<f32>,
    slots: Vec<Vec<f32>>,
}

impl Snapshot {
    /// As it is now.
    pub fn of(stage: &Stage) -> Self {
        let (parameters, slots) = stage.state();
        Self {
            stage: stage.index(),
            step: stage.step(),
            parameters: parameters.to_vec(),
            slots: slots.into_iter().map(<[f32]>::to_vec).collect(),
        }
    }

    /// Writes the stage's files; the record for the manifest.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(self, run: &Run, destination: &Destination) -> anyhow::Result<String> {
        saved::write_stage(destination, self.step, run, self.stage, &self.parameters, &self.slots)
    }
}

/// A whole state of one step: its step, parameters, and what is kept beside them.
async fn state(
    clients: &Clients,
    run: &Run,
    stage: StageId,
    mates: &[Mate],
) -> Result<(Step, Vec<f32>, Vec<Vec<f32>>), String> {
    let layout = run.layout(stage);
    let (len, width) = (layout.len(), 1 + run.state_slots());
    let mut why = "there is nobody to get it from".to_owned();
    for attempt in 0..ATTEMPTS {
        // Each attempt leaves another one out, should one of them be lost.
        let count = mates.len().min(MATES_MAX);
        let chosen: Vec<&Mate> = (0..count.saturating_sub(usize::from(attempt > 2 && count > 1)))
            .map(|i| &mates[(i + attempt as usize) % mates.len()])
            .collect();
        if chosen.is_empty() {
            break;
        }
        let parts = chosen.iter().enumerate().map(|(i, mate)| {
            let range = len * i / chosen.len()..len * (i + 1) / chosen.len();
            part(clients, stage, mate, range, width)
        });
        match futures::future::try_join_all(parts).await {
            Err(error) => why = error,
            Ok(parts) => {
                let step = parts[0].0;
                if parts.iter().all(|(s, ..)| *s == step) {
                    let mut vectors = vec![vec![0.0; len]; width];
                    for (_, range, values) in parts {
                        for (vector, part) in vectors.iter_mut().zip(values.chunks_exact(range.len().max(1)))
                        {
                            vector[range.clone()].copy_from_slice(part);
                        }
                    }
                    let parameters = vectors.remove(0);
                    return Ok((step, parameters, vectors));
                }
                why = "the mates are not at one step".to_owned();
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(why)
}

async fn part(
    clients: &Clients,
    stage: StageId,
    mate: &Mate,
    range: Range<usize>,
    width: usize,
) -> Result<(Step, Range<usize>, Vec<f32>), String> {
    let span = proto::Span { from: range.start as u64, to: range.end as u64 };
    let (step, values) = clients.pull(mate, stage, What::State(span), Some(range.len() * width)).await?;
    Ok((step, range, values))
}

/// The scaled average that led from `step` to the next: one that was collected, or else of a mate, which may be making it now.
async fn update(
    clients: &Clients,
    stage: StageId,
    step: Step,
    mates: &[Mate],
    collected: Option<&Collected>,
) -> Result<Vec<f32>, String> {
    if let Some(collected) = collected
        && let Some(gradient) = collected.take(step).await
    {
        return Ok(gradient);
    }
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match made_update(clients, stage, step, mates).await {
            Ok(gradient) => return Ok(gradient),
            Err(error) => why = error,
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(why)
}

/// The same from the first mate that has it.
pub(super) async fn made_update(
    clients: &Clients,
    stage: StageId,
    step: Step,
    mates: &[Mate],
) -> Result<Vec<f32>, String> {
    let mut why = "there is nobody to get it from".to_owned();
    for mate in mates {
        match clients.pull(mate, stage, What::Update(step), None).await {
            Ok((_, values)) => return Ok(values),
            Err(error) => why = error,
        }
    }
    Err(why)
}
