//! Getting a stage: from mates while they go on training ([`state`]), or from a checkpoint. Updates that are made meanwhile are collected, and followed one by one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::training::{Fetch, FetchFailure, Load, Mate, PeerEffect, StageId, StateDigest, Step};
use dunlin_train::Stage;
use tracing::{info, warn};

use super::super::saved;
use super::super::values::Clients;
use super::collect::{Collected, made_update};
use super::event::Event;
use super::serve::root_of;
use super::unfetched::Unfetched;
use super::{Fetching, Peer, state};
use crate::exit::NeedsUser;

/// How often mates are asked for an update.
const ATTEMPTS: u32 = 20;
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(20);

impl Peer {
    /// Gets the first values of a stage, or those of a checkpoint.
    pub(super) fn load(&mut self, Load { stage, step, checkpoint }: Load) {
        let ticket = self.new_ticket(stage, step, Vec::new(), None);
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

    /// Gets a stage from mates, or the updates that are missing where there is a state.
    pub(super) fn fetch(&mut self, fetch: Fetch, from: Option<Step>) {
        let Fetch { stage, step, mates, .. } = fetch;
        let ticket = self.new_ticket(stage, step, mates.clone(), from);
        if from.is_some() {
            // Behind an update that is under way.
            return self.with_stage(move |stage, _| Event::Installed(ticket, Ok(here(stage))));
        }
        let (run, clients, events, engine) =
            (Arc::clone(&self.run), self.clients.clone(), self.events.clone(), self.engine.clone());
        let (len, bytes_max) = (run.layout(stage).len(), self.updates_bytes_max);
        let collected = Collected::start(clients.clone(), stage, step, mates.clone(), len, bytes_max)
            .inspect_err(|error| warn!(%error, "updates cannot be kept while a state is fetched"));
        let task = tokio::spawn(async move {
            let mut wrong = BTreeMap::new();
            let got = state::get(&clients, &run, stage, &mates, &mut wrong).await;
            for blamed in wrong {
                let _ = events.send(Event::Wrong(blamed.0, blamed.1)).await;
            }
            match got {
                Err(why) => drop(events.send(Event::Fetched(ticket, Err(why.into()))).await),
                Ok(got) => engine.run(move |bench| {
                    let stage =
                        Stage::from_state(&run, stage, got.step, got.parameters, got.slots, &bench.pool);
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

    fn new_ticket(&mut self, stage: StageId, wanted: Step, mates: Vec<Mate>, from: Option<Step>) -> u64 {
        self.tickets += 1;
        self.averages.clear();
        self.pulls.abandon();
        self.fetching =
            Some(Fetching { ticket: self.tickets, stage, wanted, mates, from, collected: None, task: None });
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
                let events = self.events.clone();
                self.engine.run(move |bench| {
                    let (_, digest) = here(&stage);
                    let root = Some(root_of(&stage.snapshot(), &bench.pool));
                    let at = (stage.step(), StateDigest { root, ..digest });
                    bench.stage = Some(*stage);
                    let _ = events.blocking_send(Event::Installed(ticket, Ok(at)));
                });
            }
        }
        Ok(())
    }

    /// The engine is at `step`: done, or the next update is needed.
    pub(super) fn installed(
        &mut self,
        ticket: u64,
        at: Result<(Step, StateDigest), String>,
        out: &mut Vec<PeerEffect>,
    ) {
        let (clients, events) = (self.clients.clone(), self.events.clone());
        let Some(fetching) = self.current(ticket) else { return };
        let (stage, from) = (fetching.stage, fetching.from);
        match at {
            Err(why) => self.give_up(FetchFailure::Passing, why, out),
            Ok((step, digest)) if step >= fetching.wanted => {
                self.fetching = None;
                info!(stage, step, "has the state of its stage");
                self.node.ready(stage, step, digest, from, out);
            }
            Ok((step, _)) => {
                let len = self.run.layout(stage).len();
                let Some(fetching) = self.current(ticket) else { return };
                let (mates, collected) = (fetching.mates.clone(), fetching.collected.clone());
                let task = tokio::spawn(async move {
                    let update = update(&clients, (stage, len), step, &mates, collected.as_deref()).await;
                    let _ = events.send(Event::Update(ticket, update)).await;
                });
                fetching.task = Some(task.abort_handle());
            }
        }
    }

    /// An update that was missed is here: the engine follows it. When nobody has it any more, the whole state is needed.
    pub(super) fn follow(&mut self, ticket: u64, update: Result<Vec<f32>, String>) {
        let Some(fetching) = self.current(ticket) else { return };
        let (stage, step, mates) = (fetching.stage, fetching.wanted, fetching.mates.clone());
        match update {
            Err(why) => {
                warn!(why, "an update is missing: the whole state is fetched");
                self.fetch(Fetch { stage, step, mates, whole: true }, None);
            }
            Ok(gradient) => {
                self.with_stage(move |stage, pool| match stage.follow(pool, Arc::new(gradient)) {
                    Ok(_) => Event::Installed(ticket, Ok(here(stage))),
                    Err(error) if error.is_of_memory() => Event::Corrupt(error.to_string()),
                    Err(error) => Event::Installed(ticket, Err(error.to_string())),
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

/// Where a stage is, without a root.
fn here(stage: &Stage) -> (Step, StateDigest) {
    (stage.step(), StateDigest { fingerprint: stage.fingerprint(), root: None })
}

/// The scaled average that led from `step` to the next: one that was collected, or else of a mate, which may be making it now.
async fn update(
    clients: &Clients,
    (stage, len): (StageId, usize),
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
        match made_update(clients, (stage, len), step, mates).await {
            Ok(gradient) => return Ok(gradient),
            Err(fault) => why = fault.to_string(),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(why)
}
