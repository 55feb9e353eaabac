//! The shell around a peer: an engine that does one job after the other, averages pulled from mates, state fetched from mates.
//!
//! What a real shell must keep to as well: what an average is of is fixed behind the jobs that were given before it; a checkpoint is of the
//! state behind the jobs given before it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use dunlin_protocol::training::driver::PeerDriver;
use dunlin_protocol::training::fetch::FetchId;
use dunlin_protocol::training::serve::Wanted;
use dunlin_protocol::training::{AskId, AverageId, Job, RequestId, ShardId, StageId, StateDigest, Step};
use dunlin_swarm::PeerName;

use super::averaging::Averaging;
use super::events::{Answer, Asked, Requests};
use super::flaw::Flaw;
use super::got::{Got, Update};
use super::numbers::{Shape, State, Sums};
use super::pulling::{Pull, Taker};
use crate::serving::model::mix;

/// Updates that are kept for those that fetch.
const KEEP: Step = 4;

/// What the engine is given.
pub(super) enum Work {
    Job(Job),
    /// Make an update; is its root to be said?
    Apply(Update, bool),
    /// Fix what is contributed to an average.
    Share(AverageId),
    /// Give a mate its part of the sums.
    GiveSums {
        ask: AskId,
        id: AverageId,
        range: Range<usize>,
    },
    /// Give a mate all sums of a step, the state, or the averages of a step that is past.
    GiveStage {
        ask: AskId,
        wanted: Wanted,
    },
    /// An average is complete but for its squares.
    Squares(AverageId),
    Save {
        step: Step,
        check: bool,
    },
    /// Say which state it has: that of this step.
    Where(FetchId, Step),
    /// Take a state that was got.
    Install(FetchId, StageId, Vec<FetchId>),
    /// Follow an update that was got.
    Follow(FetchId, FetchId),
}

pub(super) struct PeerShell {
    pub(super) driver: PeerDriver,
    pub(super) stream: Option<u64>,
    pub(super) retired: bool,
    /// Its engine hangs.
    pub(super) deaf: bool,
    /// All of it hangs.
    pub(super) silent: bool,
    pub(super) leaving: bool,
    /// The next checkpoint that it writes fails.
    pub(super) broken_disk: bool,
    /// What is wrong with it, if it was not noticed yet.
    pub(super) flaw: Option<Flaw>,
    pub(super) slowness: u64,
    pub(super) engine: VecDeque<Work>,
    pub(super) requests: Requests,
    /// What was computed for calls that are not answered yet.
    pub(super) answers: BTreeMap<RequestId, (Asked, Answer)>,
    pub(super) stage: StageId,
    pub(super) step: Step,
    pub(super) state: State,
    /// Of this step, and the one behind it.
    pub(super) sums: BTreeMap<Step, Sums>,
    /// Who takes what it gives, and what it pulls from others.
    pub(super) takers: BTreeMap<AskId, Taker>,
    pub(super) pulls: BTreeMap<AskId, Pull>,
    /// The newest average of every shard.
    pub(super) averages: BTreeMap<ShardId, Averaging>,
    /// When its machines are woken next.
    pub(super) wakes: Option<u64>,
    /// The last updates, for those that fetch.
    pub(super) history: BTreeMap<Step, Update>,
    /// Sums of mates that have come, and those that the engine is given to add, in its order.
    pub(super) arrived: BTreeMap<PeerName, Sums>,
    pub(super) adding: VecDeque<Sums>,
    /// What it gets of its stage, until the engine takes it, and updates that are kept meanwhile.
    pub(super) got: BTreeMap<FetchId, Got>,
    pub(super) kept: BTreeMap<Step, Update>,
}

impl PeerShell {
    /// Alive and working.
    pub(super) fn healthy(&self) -> bool {
        !self.deaf && !self.silent
    }

    pub(super) fn engine_idle(&self) -> bool {
        self.engine.is_empty()
    }

    /// Has it all that the update of a step needs?
    pub(super) fn has_averages(&self, shape: &Shape, step: Step) -> bool {
        let held = |shard| self.averages.get(&shard).is_some_and(|a| a.id().step == step && a.complete);
        shape.shards(self.stage).into_iter().all(held)
    }

    /// Has it added anything to its sums in this step or behind it?
    pub(super) fn has_sums_of(&self, step: Step) -> bool {
        self.sums.range(step..).next().is_some()
    }

    /// Has made or followed an update.
    pub(super) fn remember(&mut self, update: Update) {
        let step = update.step;
        self.history.insert(step, update);
        self.history.retain(|s, _| s + KEEP > step);
    }

    /// Adds to the sums of a step, if that is not over. Averages are of the oldest.
    pub(super) fn add(&mut self, step: Step, sums: &Sums) {
        if step < self.step {
            return;
        }
        self.sums.entry(step).or_default().add(sums);
    }
}

/// What a peer says that its state is.
pub(super) fn digest(state: &State, prove: bool) -> StateDigest {
    let fingerprint = mix(state.now.hash(), state.before.hash());
    StateDigest { fingerprint, root: prove.then(|| format!("{fingerprint:x}")) }
}
