//! What comes of what was begun: the engine has computed, a mate has answered, files are written. The driver hears of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use dunlin_protocol::training::driver::DriverEvent;
use tokio::time::Instant;
use tracing::warn;

use super::Peer;
use super::event::Event;

/// A peer that cannot trust its memory tells the conductor, and waits so long for its answer.
const LAST_WORDS: Duration = Duration::from_secs(30);

impl Peer {
    /// What the driver hears of it, if anything.
    pub(super) fn happened(&mut self, event: Event) -> anyhow::Result<Option<DriverEvent>> {
        Ok(Some(match event {
            Event::Computed(request, took_us, computed) => {
                let outcome = computed.map(|computed| {
                    let loss = computed.loss;
                    if let Some(waiting) = self.calls.get_mut(&request) {
                        waiting.computed = Some(computed);
                    }
                    loss
                });
                DriverEvent::Computed { request, outcome, took_us }
            }
            Event::Applied(step, Ok(digest)) => {
                let applied = std::mem::take(&mut self.averages).into_iter();
                self.spare = applied
                    .filter_map(|(shard, (_, average))| Some((shard, Arc::try_unwrap(average).ok()?.values)))
                    .collect();
                DriverEvent::Applied(step + 1, digest)
            }
            Event::Corrupt(what) => {
                if self.corrupt.is_none() {
                    warn!("{what}");
                    self.leaving = Some(Instant::now() + LAST_WORDS);
                    self.corrupt = Some(what.clone());
                }
                DriverEvent::Corrupt(what)
            }
            Event::Sound => {
                self.retired = true;
                return Ok(None);
            }
            Event::Applied(step, Err(why)) => bail!("the update of step {step} failed: {why}"),
            Event::Added(take, Ok(())) => DriverEvent::Added(take),
            Event::Added(take, Err(why)) => bail!("the sums of {} do not fit: {why}", take.from.name),
            Event::Fetched(id, outcome) => {
                return Ok(self.fetching.came(id, outcome)?.map(DriverEvent::Fetch));
            }
            // It was complete just before it was given up.
            Event::Averaged(id, Ok(_)) if !self.driver.wants(id) => return Ok(None),
            Event::Averaged(id, Ok((average, squares))) => {
                self.averages.insert(id.shard, (id.round, Arc::new(average)));
                DriverEvent::Averaged(id, squares)
            }
            Event::Averaged(id, Err(fault)) => {
                let (why, mate) = (fault.to_string(), fault.mate);
                DriverEvent::AverageFailed { id, why, mate }
            }
            Event::Received(take, Ok(sums)) => {
                self.arrived.insert(take.from.name.clone(), sums);
                DriverEvent::Received(take, true)
            }
            Event::Received(take, Err(fault)) => {
                warn!(%fault, "sums could not be taken over");
                DriverEvent::Received(take, false)
            }
            Event::Saved(step, outcome) => DriverEvent::Written(step, outcome),
        }))
    }
}
