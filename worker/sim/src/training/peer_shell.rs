//! The shell around a peer: an engine that does one job after the other, averages pulled from mates, state fetched from mates.
//!
//! What a real shell must keep to as well: an average begins behind the jobs that were given before it; whatever changes the sums ends it
//! (a mate that asks for its part then gets none); a checkpoint is of the state behind the jobs given before it.

use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::training::mates::Mates;
use dunlin_protocol::training::peer::Take;
use dunlin_protocol::training::{Job, Mate, PeerNode, RequestId, ShardId, StageId, Step};
use dunlin_swarm::PeerName;

use super::events::{Answer, Asked, Requests};
use super::flaw::Flaw;
use super::numbers::{Keys, Shape, State, Sums};

/// What the engine is given.
pub(super) enum Work {
    Job(Job),
    /// From here on mates may have the sums of this shard.
    Open {
        shard: ShardId,
        round: u64,
    },
    /// Sums for the mate that takes them.
    Hand {
        to: PeerName,
        take: Take,
    },
    Save {
        step: Step,
        check: bool,
    },
    /// A fetch that begins with what is here.
    Begin {
        fetch: u64,
        from: Step,
    },
    Set {
        fetch: u64,
        stage: StageId,
        step: Step,
        state: State,
    },
}

/// State on its way.
pub(super) struct Fetching {
    pub(super) fetch: u64,
    pub(super) stage: StageId,
    pub(super) wanted: Step,
    pub(super) mates: Vec<Mate>,
    /// The state that was here is brought up to date.
    pub(super) from: Option<Step>,
    pub(super) have: Option<(Step, State)>,
    pub(super) until: u64,
}

/// An average that is being formed.
pub(super) struct Average {
    pub(super) round: u64,
    pub(super) group: Vec<Mate>,
    pub(super) sum: i64,
    pub(super) keys: Keys,
    pub(super) complete: bool,
}

pub(super) struct PeerShell {
    pub(super) node: PeerNode,
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
    pub(super) open: BTreeMap<ShardId, u64>,
    /// The peers that it gives values to. Another one that asks waits until it is one of them.
    pub(super) mates: Mates,
    pub(super) averages: BTreeMap<ShardId, (Step, Average)>,
    pub(super) history: BTreeMap<Step, (BTreeMap<ShardId, i64>, f32)>,
    pub(super) arrived: BTreeMap<PeerName, Sums>,
    pub(super) fetching: Option<Fetching>,
    /// Sums that are expected.
    pub(super) taking: Vec<Take>,
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
        let held = |shard| self.averages.get(&shard).is_some_and(|(s, a)| *s == step && a.complete);
        shape.shards(self.stage).into_iter().all(held)
    }

    /// Has it added anything to its sums in this step or behind it?
    pub(super) fn has_sums_of(&self, step: Step) -> bool {
        self.sums.range(step..).next().is_some()
    }

    pub(super) fn changed(&mut self) {
        self.open.clear();
    }

    /// Adds to the sums of a step, if that is not over. Averages are of the oldest.
    pub(super) fn add(&mut self, step: Step, sums: &Sums) {
        if step < self.step {
            return;
        }
        self.sums.entry(step).or_default().add(sums);
        if step == self.step {
            self.changed();
        }
    }
}
