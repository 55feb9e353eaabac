//! All of a peer that decides: what is computed and said ([`PeerNode`]), what is given to whom ([`Serving`]), how its state comes ([`Fetcher`]), and in which order
//! all of that is done.
//!
//! Processes and the simulation perform the same effects of the same driver, each one to its end before the next: a job is in the engine's queue, a message is
//! handed to its stream. What comes of it is an event. So an order of effects that is wrong is wrong in the simulation, too.
//!
//! Values are not in it, and neither is the arithmetic of an average: the driver says when an average begins, when its sums change and when nobody needs it, and
//! whoever performs that has a [`Butterfly`](super::reduce::Butterfly) for it. In a process that is a task of its own: a chunk takes longer to add than a peer
//! may be silent.

mod event;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use event::{DriverEffect, DriverEvent};

use super::fetch::{FetchConfig, FetchEffect, FetchEvent, Fetcher};
use super::ids::{AverageId, ShardId, StageId, Step};
use super::mates::Mates;
use super::message::{Hello, Mate, PeerReport, SaveFailure};
use super::peer::{Job, PeerConfig, PeerEffect, PeerNode};
use super::serve::{NotGiven, ServeConfig, ServeEffect, ServeEvent, Serving, Wanted};

/// One peer.
pub struct PeerDriver {
    node: PeerNode,
    serving: Serving,
    fetcher: Fetcher,
    /// The newest average of each shard that somebody may need.
    averages: BTreeMap<ShardId, AverageId>,
    /// Its memory has changed by itself.
    corrupt: bool,
}

impl PeerDriver {
    /// A newcomer.
    #[must_use]
    pub fn new(me: Mate, peer: PeerConfig, serve: ServeConfig, fetch: FetchConfig) -> Self {
        Self {
            node: PeerNode::new(me, peer),
            serving: Serving::new(serve),
            fetcher: Fetcher::new(fetch),
            averages: BTreeMap::new(),
            corrupt: false,
        }
    }

    /// Its stage, and the updates applied.
    #[must_use]
    pub fn position(&self) -> (Option<StageId>, Step) {
        self.node.position()
    }

    /// Has it the state of its stage?
    #[must_use]
    pub fn serving(&self) -> bool {
        self.node.serving()
    }

    /// Calls that wait or are computed.
    #[must_use]
    pub fn load(&self) -> usize {
        self.node.load()
    }

    /// Is an average that is complete of any use?
    #[must_use]
    pub fn wants(&self, id: AverageId) -> bool {
        self.averages.get(&id.shard) == Some(&id)
    }

    /// When [`DriverEvent::Deadline`] is due, if nothing happens before.
    #[must_use]
    pub fn wake_ms(&self) -> Option<u64> {
        self.serving.wake_ms().into_iter().chain(self.fetcher.wake_ms()).min()
    }

    /// The stream to the conductor is new: who we are is said first, then the questions that were not answered.
    pub fn connected(&mut self, now_ms: u64, out: &mut Vec<DriverEffect>) -> Hello {
        let mut effects = Vec::new();
        let hello = self.node.connected(&mut effects);
        self.settle(now_ms, effects, out);
        hello
    }

    /// Something happened.
    pub fn handle(&mut self, now_ms: u64, event: DriverEvent, out: &mut Vec<DriverEffect>) {
        let mut effects = Vec::new();
        match event {
            DriverEvent::Heard(message) => self.node.hear(message, &mut effects),
            DriverEvent::Notice { within_ms } => self.node.leave(within_ms, &mut effects),
            DriverEvent::Called(request, call) => self.node.call(request, call, &mut effects),
            DriverEvent::HungUp(request) => self.node.hang_up(request, &mut effects),
            DriverEvent::Computed { request, outcome, took_us } => {
                self.node.computed(request, outcome, took_us, &mut effects);
            }
            DriverEvent::Applied(step, state) => self.node.applied(step, state, &mut effects),
            DriverEvent::Added(take) => self.node.added(take, &mut effects),
            DriverEvent::Received(take, arrived) => self.node.received(take, arrived, &mut effects),
            DriverEvent::Averaged(AverageId { step, shard, round }, squares) => {
                self.node.averaged(step, shard, round, squares, &mut effects);
            }
            DriverEvent::AverageFailed { id: AverageId { step, shard, round }, why, mate } => {
                self.node.average_failed(step, shard, round, why, mate, &mut effects);
            }
            DriverEvent::Written(step, outcome) => {
                let failure = SaveFailure::Destination;
                out.push(DriverEffect::Tell(match outcome {
                    Ok(record) => PeerReport::Saved { step, record },
                    Err(why) => PeerReport::SaveFailed { step, failure, why },
                }));
            }
            DriverEvent::Corrupt(what) => self.corrupted(now_ms, what, out),
            DriverEvent::Asked { ask, by, stage, wanted } => {
                let here = self.node.position().0.filter(|_| self.node.serving());
                self.serve(now_ms, ServeEvent::Asked { ask, by, stage, wanted, here }, out);
            }
            DriverEvent::Served(ask) => self.serve(now_ms, ServeEvent::Ended(ask), out),
            DriverEvent::Fetch(event) => self.fetch(now_ms, event, out),
            DriverEvent::Deadline => {
                let due = |at: Option<u64>| at.is_some_and(|at| at <= now_ms);
                if due(self.serving.wake_ms()) {
                    self.serve(now_ms, ServeEvent::Deadline, out);
                }
                if due(self.fetcher.wake_ms()) {
                    self.fetch(now_ms, FetchEvent::Deadline, out);
                }
            }
        }
        self.settle(now_ms, effects, out);
    }

    /// What the node wants, in its order: some of it is for the other machines.
    fn settle(&mut self, now_ms: u64, effects: Vec<PeerEffect>, out: &mut Vec<DriverEffect>) {
        for effect in effects {
            match effect {
                PeerEffect::Run(job) => {
                    if matches!(job, Job::Compute { .. } | Job::Apply { .. }) {
                        self.fetch(now_ms, FetchEvent::TakesPart, out);
                    }
                    out.push(DriverEffect::Run(job));
                }
                PeerEffect::Reply(request) => out.push(DriverEffect::Reply(request)),
                PeerEffect::Refuse(request, why) => out.push(DriverEffect::Refuse(request, why)),
                PeerEffect::Tell(report) => out.push(DriverEffect::Tell(report)),
                PeerEffect::Load(load) => {
                    self.leave(now_ms, out);
                    self.fetch(now_ms, FetchEvent::Load(load), out);
                }
                PeerEffect::Fetch { fetch, from } => {
                    self.leave(now_ms, out);
                    self.fetch(now_ms, FetchEvent::Fetch(fetch, from), out);
                }
                PeerEffect::Average { step, shard, round, group } => {
                    let id = AverageId { step, shard, round };
                    self.fetch(now_ms, FetchEvent::TakesPart, out);
                    // Its own share is ordered before those that it gives to others: all are of the same sums.
                    self.averages.insert(shard, id);
                    out.push(DriverEffect::Begin(id, group));
                    self.serve(now_ms, ServeEvent::Opened(id), out);
                }
                PeerEffect::Close => {
                    self.serve(now_ms, ServeEvent::Closed, out);
                    out.push(DriverEffect::CancelAverages);
                }
                PeerEffect::Take(take) => out.push(DriverEffect::Take(take)),
                PeerEffect::Discard(take) => out.push(DriverEffect::Discard(take)),
                PeerEffect::Save { step, check } => out.push(DriverEffect::Save { step, check }),
                PeerEffect::GiveTo(mates) => self.serve(now_ms, ServeEvent::Mates(mates), out),
                PeerEffect::Retire => out.push(DriverEffect::Retire),
                PeerEffect::End(why) => out.push(DriverEffect::End(why)),
            }
        }
    }

    /// What is here is served no more, and no average of it is of any use to anybody.
    fn leave(&mut self, now_ms: u64, out: &mut Vec<DriverEffect>) {
        self.averages.clear();
        out.push(DriverEffect::DropAverages);
        self.serve(now_ms, ServeEvent::Left, out);
    }

    /// Nothing here is to be trusted: nobody gets any of it, and the conductor hears of it.
    fn corrupted(&mut self, now_ms: u64, what: String, out: &mut Vec<DriverEffect>) {
        if std::mem::replace(&mut self.corrupt, true) {
            return;
        }
        self.fetch(now_ms, FetchEvent::Left, out);
        self.serve(now_ms, ServeEvent::Mates(Mates::default()), out);
        self.leave(now_ms, out);
        let mut effects = Vec::new();
        self.node.corrupt(what, &mut effects);
        self.settle(now_ms, effects, out);
    }

    fn serve(&mut self, now_ms: u64, event: ServeEvent, out: &mut Vec<DriverEffect>) {
        let mut effects: Vec<ServeEffect> = Vec::new();
        self.serving.handle(now_ms, event, &mut effects);
        for effect in effects {
            out.push(DriverEffect::Serve(match effect {
                // A mate that is given what was added since would take it for what it asked for, and what it asked for would be lost.
                ServeEffect::Give(ask, Wanted::AllSums(step, of)) if !self.node.has_sums_of(step, &of) => {
                    self.serving.handle(now_ms, ServeEvent::Ended(ask), &mut Vec::new());
                    ServeEffect::Refuse(ask, NotGiven::OtherSums)
                }
                effect => effect,
            }));
        }
    }

    fn fetch(&mut self, now_ms: u64, event: FetchEvent, out: &mut Vec<DriverEffect>) {
        let mut effects = Vec::new();
        self.fetcher.handle(now_ms, event, &mut effects);
        for effect in effects {
            let mut of_node = Vec::new();
            match effect {
                FetchEffect::Ready { stage, step, state, from } => {
                    self.node.ready(stage, step, state, from, &mut of_node);
                }
                FetchEffect::GiveUp(stage, failure, why) => {
                    self.node.fetch_failed(stage, failure, why, &mut of_node);
                }
                FetchEffect::Wrong(mate, what) => {
                    out.push(DriverEffect::Tell(PeerReport::Wrong { mate, what }));
                }
                FetchEffect::Do(id, work) => out.push(DriverEffect::Fetch(id, work)),
                FetchEffect::Drop(id) => out.push(DriverEffect::DropFetched(id)),
                FetchEffect::Forget(steps) => out.push(DriverEffect::ForgetUpdates(steps)),
                FetchEffect::Note(text) => out.push(DriverEffect::Note(text)),
            }
            self.settle(now_ms, of_node, out);
        }
    }
}
