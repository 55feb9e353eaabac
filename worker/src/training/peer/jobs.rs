//! The node's jobs as work of the engine, each of which ends with an event.

use std::sync::Arc;

use anyhow::Context;
use dunlin_kernels::Pool;
use dunlin_protocol::training::{CallKind, Job, StateDigest};
use dunlin_train::Stage;
use dunlin_train::stage::Purpose;
use tokio::time::Instant;

use super::Peer;
use super::engine::Workbench;
use super::event::Event;
use super::serve::root_of;

impl Peer {
    /// Work of the engine that ends with an event. Without a stage there is none to do.
    pub(super) fn with_stage(&self, work: impl FnOnce(&mut Stage, &Pool) -> Event + Send + 'static) {
        let events = self.events.clone();
        self.engine.run(move |Workbench { stage, pool }| {
            if let Some(stage) = stage {
                // The receiver is gone only when the process ends.
                let _ = events.blocking_send(work(stage, pool));
            }
        });
    }

    pub(super) fn job(&mut self, job: Job) -> anyhow::Result<()> {
        match job {
            Job::Compute { request, call, accumulate, check } => {
                // A call that hangs up while it waits is no longer in the node's queue.
                let waiting =
                    self.calls.get_mut(&request).context("a call was chosen that nobody waits for")?;
                let input = std::mem::take(&mut waiting.request.input);
                let output = std::mem::take(&mut waiting.request.output);
                let validation = call.microbatch as usize >= self.run.config.microbatches();
                let purpose = Purpose { step: call.step, validation };
                self.with_stage(move |stage, pool| {
                    let started = Instant::now();
                    let computed = match call.kind {
                        CallKind::Forward => stage.forward(pool, purpose, &input),
                        CallKind::Loss => stage.loss(pool, purpose, &input, &output),
                        CallKind::Backward => stage.backward(pool, call.step, &input, &output, accumulate),
                    };
                    let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                    // What cannot be computed may be the fault of what it was computed with.
                    let computed = match computed {
                        Ok(computed) if !check => Ok(computed),
                        computed => stage.check(pool).and(computed),
                    };
                    match computed {
                        Err(error) if error.is_of_memory() => Event::Corrupt(error.to_string()),
                        computed => Event::Computed(request, took_us, computed.map_err(|e| e.to_string())),
                    }
                });
            }
            Job::Check => {
                let alarm = self.alarm.clone();
                self.engine.run(move |Workbench { stage, pool }| {
                    if let Some(Err(error)) = stage.as_mut().map(|stage| stage.check(pool)) {
                        alarm.raise_blocking(error.to_string());
                    }
                });
            }
            Job::Clear => self.engine.run(|bench| {
                if let Some(stage) = &mut bench.stage {
                    stage.clear();
                }
            }),
            Job::Apply { step, scale, prove } => {
                let averages = self.averages.iter().map(|(&shard, (_, a))| (shard, Arc::clone(a))).collect();
                self.with_stage(move |stage, pool| match stage.apply(pool, scale, &averages) {
                    Ok(fingerprint) => {
                        let root = prove.then(|| root_of(&stage.snapshot(), pool));
                        Event::Applied(step, Ok(StateDigest { fingerprint, root }))
                    }
                    Err(error) if error.is_of_memory() => Event::Corrupt(error.to_string()),
                    Err(error) => Event::Applied(step, Err(error.to_string())),
                });
            }
            Job::Add(take) => {
                let sums = self.arrived.remove(&take.from.name).context("there are no sums to add")?;
                self.with_stage(move |stage, _| {
                    let added = stage.add_sums(take.step, &sums).map_err(|e| e.to_string());
                    Event::Added(take, added)
                });
            }
        }
        Ok(())
    }
}
