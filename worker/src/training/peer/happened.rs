//! What comes of what was begun: the engine has computed, a mate has answered, files are written. The node hears of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use dunlin_protocol::training::mates::Mates;
use dunlin_protocol::training::{PeerEffect, PeerReport, SaveFailure};
use tokio::time::Instant;
use tracing::warn;

use super::Peer;
use super::event::Event;

/// A peer that cannot trust its memory tells the conductor, and waits so long for its answer.
const LAST_WORDS: Duration = Duration::from_secs(30);

impl Peer {
    pub(super) fn happened(&mut self, event: Event, out: &mut Vec<PeerEffect>) -> anyhow::Result<()> {
        match event {
            Event::Computed(id, took_us, Ok(computed)) => {
                let loss = computed.loss;
                if let Some(waiting) = self.calls.get_mut(&id) {
                    waiting.computed = Some(computed);
                }
                self.node.computed(id, Ok(loss), took_us, out);
            }
            Event::Computed(id, took_us, Err(what)) => self.node.computed(id, Err(what), took_us, out),
            Event::Applied(step, Ok(digest)) => {
                let applied = std::mem::take(&mut self.averages).into_iter();
                self.spare = applied
                    .filter_map(|(shard, (_, average))| Some((shard, Arc::try_unwrap(average).ok()?.values)))
                    .collect();
                self.node.applied(step + 1, digest, out);
            }
            Event::Corrupt(what) => self.corrupted(what, out),
            Event::Sound => self.retired = true,
            Event::Wrong(mate, what) => out.push(PeerEffect::Tell(PeerReport::Wrong { mate, what })),
            Event::Applied(step, Err(why)) => bail!("the update of step {step} failed: {why}"),
            Event::Added(take, Ok(())) => self.node.added(take, out),
            Event::Added(take, Err(why)) => bail!("the sums of {} do not fit: {why}", take.from.name),
            Event::Fetched(ticket, stage) => self.fetched(ticket, stage, out)?,
            Event::Installed(ticket, at) => self.installed(ticket, at, out),
            Event::Update(ticket, update) => self.follow(ticket, update),
            Event::Averaged(which, Ok((average, squares))) => {
                self.averages.insert(which.shard, (which.round, Arc::new(average)));
                self.node.averaged(which.step, which.shard, which.round, squares, out);
            }
            Event::Averaged(which, Err(fault)) => {
                let (why, mate) = (fault.to_string(), fault.mate);
                self.node.average_failed(which.step, which.shard, which.round, why, mate, out);
            }
            Event::Received(take, Ok(sums)) => {
                self.arrived.insert(take.from.name.clone(), sums);
                self.node.received(take, true, out);
            }
            Event::Received(take, Err(fault)) => {
                warn!(%fault, "sums could not be taken over");
                self.node.received(take, false, out);
            }
            Event::Saved(step, Ok(record)) => {
                out.push(PeerEffect::Tell(PeerReport::Saved { step, record }));
            }
            Event::Saved(step, Err(why)) => {
                let failure = SaveFailure::Destination;
                out.push(PeerEffect::Tell(PeerReport::SaveFailed { step, failure, why }));
            }
        }
        Ok(())
    }

    /// Nothing here is to be trusted: the conductor hears of it, and nobody gets any of it.
    fn corrupted(&mut self, what: String, out: &mut Vec<PeerEffect>) {
        if self.corrupt.is_none() {
            warn!("{what}");
            self.fetching = None;
            self.pulls.mates(Mates::default());
            self.pulls.abandon();
            self.leaving = Some(Instant::now() + LAST_WORDS);
            self.corrupt = Some(what.clone());
            self.node.corrupt(what, out);
        }
    }
}
