//! What the driver wants done beside the engine's work: answers, reports, averages, sums and files.

use std::sync::Arc;

use anyhow::bail;
use dunlin_protocol::training::driver::DriverEffect;
use dunlin_protocol::training::peer::Take;
use dunlin_protocol::training::{AverageId, Mate, Refused, Step};
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use tracing::warn;

use super::super::saved;
use super::super::values::asking;
use super::average::{self, Exchange};
use super::engine::Workbench;
use super::event::Event;
use super::{Peer, Waiting};

impl Peer {
    /// Does it, or begins it: what has an order is in the queue of the engine or of a stream when this returns.
    pub(super) fn perform(&mut self, effect: DriverEffect) -> anyhow::Result<()> {
        match effect {
            DriverEffect::Tell(report) => {
                if let Some(conductor) = &self.conductor
                    && conductor.try_send(report.into()).is_err()
                {
                    self.conductor = None;
                }
            }
            DriverEffect::Run(job) => self.job(job)?,
            DriverEffect::Reply(id) => {
                // A caller that has hung up waits no longer.
                if let Some(Waiting { reply, computed: Some(computed), .. }) = self.calls.remove(&id) {
                    let (data, loss) = (computed.data.into(), computed.loss);
                    let _ = reply.send(proto::ComputeReply { data, loss, ..Default::default() });
                }
            }
            DriverEffect::Refuse(id, why) => {
                if let Some(waiting) = self.calls.remove(&id) {
                    let (refusal, message) = match why {
                        Refused::NotServing => (proto::ComputeRefusal::ComputeNotServing, String::new()),
                        Refused::Stale => (proto::ComputeRefusal::ComputeStale, String::new()),
                        Refused::Busy => (proto::ComputeRefusal::ComputeBusy, String::new()),
                        Refused::Failed(what) => (proto::ComputeRefusal::ComputeFailed, what),
                    };
                    let reply =
                        proto::ComputeReply { refusal: refusal.into(), message, ..Default::default() };
                    let _ = waiting.reply.send(reply);
                }
            }
            DriverEffect::Begin(id, group) => self.average(id, group),
            DriverEffect::CancelAverages => self.pulls.cancel(),
            DriverEffect::DropAverages => {
                self.averages.clear();
                self.pulls.abandon();
            }
            DriverEffect::Serve(effect) => self.pulls.perform(effect),
            DriverEffect::Fetch(id, work) => self.fetching.begin(id, work)?,
            DriverEffect::DropFetched(id) => self.fetching.forget(id),
            DriverEffect::ForgetUpdates(steps) => self.fetching.forget_updates(steps),
            DriverEffect::Note(text) => warn!("{text}"),
            DriverEffect::Take(take) => self.take(take),
            DriverEffect::Discard(take) => drop(self.arrived.remove(&take.from.name)),
            DriverEffect::Save { step, check } => self.save(step, check),
            DriverEffect::Retire => {
                // The last chance to say that what others got from here was not right.
                let (events, alarm) = (self.events.clone(), self.alarm.clone());
                self.engine.run(move |Workbench { stage, pool }| {
                    match stage.as_mut().map(|stage| stage.check(pool)) {
                        Some(Err(error)) => alarm.raise_blocking(error.to_string()),
                        _ => drop(events.blocking_send(Event::Sound)),
                    }
                });
            }
            DriverEffect::End(why) => bail!("expelled: {why}"),
        }
        Ok(())
    }

    fn average(&mut self, id: AverageId, group: Vec<Mate>) {
        let (Some(stage), _) = self.driver.position() else { return };
        let exchange = Exchange {
            clients: self.clients.clone(),
            engine: self.engine.clone(),
            alarm: self.alarm.clone(),
            wire: self.run.config.wire.gradients,
            stage,
        };
        let spare = self.spare.remove(&id.shard).unwrap_or_default();
        let (averaging, done) = average::begin(exchange, id, group, &self.me.name, spare);
        self.pulls.open(averaging);
        let (engine, events) = (self.engine.clone(), self.events.clone());
        tokio::spawn(async move {
            match done.await {
                Ok(Ok(mut average)) => engine.run(move |bench| {
                    let Some(stage) = &bench.stage else { return };
                    let squares = stage.squares(&bench.pool, id.shard, &average.values);
                    average.seal();
                    let _ = events.blocking_send(Event::Averaged(id, Ok((average, squares))));
                }),
                Ok(Err(fault)) => drop(events.send(Event::Averaged(id, Err(fault))).await),
                // It was given up.
                Err(_) => {}
            }
        });
    }

    fn take(&mut self, take: Take) {
        let (Some(stage), _) = self.driver.position() else { return };
        let (clients, events) = (self.clients.clone(), self.events.clone());
        let len = self.run.layout(stage).len();
        tokio::spawn(async move {
            let microbatches = take.contributions.iter().map(|c| c.microbatch).collect();
            let request = proto::PullRequest { microbatches, ..asking(stage, What::AllSums(take.step)) };
            let sums = clients.pull(&take.from, request, len).await;
            let sums = sums.map(|(_, sums)| sums);
            let _ = events.send(Event::Received(take, sums)).await;
        });
    }

    /// Writes the present state, or says what would be written.
    fn save(&self, step: Step, check: bool) {
        let events = self.events.clone();
        let (run, Some(destination)) = (Arc::clone(&self.run), self.destination.clone()) else {
            tokio::spawn(async move {
                let why = "the run has no `checkpoint.destination`".to_owned();
                events.send(Event::Saved(step, Err(why))).await
            });
            return;
        };
        self.engine.run(move |bench| {
            let Some(stage) = &bench.stage else { return };
            // Training goes on while it is written.
            let snapshot = stage.snapshot();
            std::thread::spawn(move || {
                let place = (!check).then_some(&destination);
                let record = saved::write_stage(place, &run, &snapshot).map_err(|e| format!("{e:#}"));
                // What was written is what updates have made, or it is of no use.
                let event = match snapshot.changed() {
                    Some(chunk) => Event::Corrupt(format!(
                        "memory has changed: values {} to {} of the state are not what was written",
                        chunk.start, chunk.end
                    )),
                    None => Event::Saved(step, record),
                };
                let _ = events.blocking_send(event);
            });
        });
    }
}
