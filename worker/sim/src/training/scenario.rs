//! What is run, and what came of it.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::training::{StageId, Step};
use dunlin_swarm::PeerName;

use super::numbers::Shape;
use super::order::{Order, Pair};
use crate::serving::model::mix;

/// Which faults may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// All of them.
    All,
    /// Peers leave with notice, and join.
    Notice,
    /// Peers compute, remember or say what is wrong; the conductor is killed, streams break, others join.
    Wrong,
}

/// The process that is killed at a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Struck {
    /// The process that the message would reach.
    Receiver,
    /// The process that sent the message.
    Sender,
    /// All peers; as many others come.
    AllPeers,
}

/// Peers of one stage that go.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Virtual time, from the start of the run.
    pub at_ms: u64,
    /// The stage that loses them.
    pub stage: StageId,
    /// Peers that are lost.
    pub peers: usize,
    /// They are told then, and are gone so much later; 0: gone at once.
    pub notice_ms: u64,
    /// Others come, if they go at once.
    pub replaced: bool,
}

/// Peers that come and go at given times, until the time is up; there is nothing random about them, and no faults are needed.
#[derive(Clone, Debug)]
pub struct Script {
    /// When each is there, and when it is gone. Those that are there at 0 begin.
    pub lives: Vec<(u64, Option<u64>)>,
    /// How long before their end they are told; 0: never.
    pub notice_ms: u64,
    /// Time in which the state of a stage is fetched.
    pub fetch_ms: u64,
    /// Time that a forward pass takes.
    pub forward_ms: u64,
    /// Time in which the sums of one mate arrive for an average, besides that of messages.
    pub average_ms: u64,
    /// Time that every message takes; `None`: as [`Scenario::latency_ms`] says.
    pub one_way_ms: Option<u64>,
    /// Virtual time at which the run is over.
    pub end_ms: u64,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything random follows from it.
    pub seed: u64,
    /// Shape of the model.
    pub shape: Shape,
    /// Peers at the start.
    pub peers: u32,
    /// Machines that peers run on; 0 when nobody knows which.
    pub hosts: u64,
    /// Trainers.
    pub trainers: u32,
    /// Updates.
    pub steps: Step,
    /// A checkpoint every so many steps; 0 for the end only.
    pub checkpoint_every: Step,
    /// Validation every so many steps; 0 for never.
    pub validate_every: Step,
    /// Faults in all.
    pub faults: u32,
    /// Kinds of faults that are drawn.
    pub kinds: Kinds,
    /// What happens besides.
    pub losses: Vec<Loss>,
    /// Who comes and goes, if that is given.
    pub script: Option<Script>,
    /// Milliseconds that the peers need for a forward pass, in the order of their names; random for those behind.
    pub slowness: Vec<u64>,
    /// A forward call may take this long; a short time makes trainers call somebody else while the first still computes.
    pub forward_ms_max: u64,
    /// A peer that went to another stage stays there for so long.
    pub cooldown_ms: u64,
    /// Most messages take no longer.
    pub latency_ms: u64,
    /// Every other checkpoint is damaged as soon as it is complete, as long as there is an older sound one.
    pub damages: bool,
    /// From when until when the destination of checkpoints takes nothing.
    pub away_ms: (u64, u64),
    /// When this delivery is due, somebody is killed instead.
    pub kill_at: Option<(u64, Struck)>,
    /// Keep a trace.
    pub trace: bool,
    /// The order in which peers do what they decide.
    pub order: Order,
}

impl Scenario {
    /// A scenario drawn from its seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let draw = |n: u64, low: u64, high: u64| low + mix(seed, n) % (high - low + 1);
        let stages = draw(1, 2, 4);
        let peers = draw(2, stages, 9);
        let microbatches = draw(4, 3, 8);
        Self {
            seed,
            shape: Shape {
                stages: stages as u32,
                tied: draw(5, 0, 1) == 1,
                microbatches: microbatches as u32,
                validation_batches: draw(6, 1, 2) as u32,
                clip: 25.0,
                seed,
                delayed_updates: draw(16, 0, 2) == 0,
            },
            peers: peers as u32,
            hosts: draw(14, 0, 1) * draw(15, 1, 4),
            trainers: draw(3, 1, 3) as u32,
            steps: draw(7, 4, 12),
            checkpoint_every: draw(8, 0, 4),
            validate_every: draw(9, 0, 3),
            faults: draw(10, 0, 8) as u32,
            kinds: Kinds::All,
            losses: Vec::new(),
            script: None,
            slowness: Vec::new(),
            forward_ms_max: [100, 300, 800][draw(11, 0, 2) as usize],
            cooldown_ms: [0, 500, 3000][draw(13, 0, 2) as usize],
            latency_ms: [12, 12, 40, 120][draw(12, 0, 3) as usize],
            damages: false,
            away_ms: (0, 0),
            kill_at: None,
            trace: false,
            order: Order::Kept,
        }
    }

    /// One in which peers are wrong, two or three a stage, so that in some others can tell who is.
    #[must_use]
    pub fn wrong(seed: u64) -> Self {
        let scenario = Self::from_seed(seed);
        Self {
            kinds: Kinds::Wrong,
            peers: scenario.shape.stages * (2 + (seed % 2) as u32),
            faults: scenario.faults + 1,
            ..scenario
        }
    }

    /// A small one without faults of its own.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        let shape = Shape {
            stages: 2,
            tied: true,
            microbatches: 3,
            validation_batches: 1,
            clip: 25.0,
            seed,
            delayed_updates: false,
        };
        Self {
            seed,
            shape,
            peers: 4,
            hosts: 0,
            trainers: 2,
            steps: 3,
            checkpoint_every: 2,
            validate_every: 2,
            faults: 0,
            kinds: Kinds::All,
            losses: Vec::new(),
            script: None,
            slowness: Vec::new(),
            forward_ms_max: 800,
            cooldown_ms: 500,
            latency_ms: 12,
            damages: false,
            away_ms: (0, 0),
            kill_at: None,
            trace: false,
            order: Order::Kept,
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What does not hold.
    pub violations: Vec<String>,
    /// Faults that happened, by kind.
    pub faults: BTreeMap<&'static str, u32>,
    /// Steps decided, those done again included.
    pub commits: u32,
    /// Contributions computed again.
    pub redone: u32,
    /// Peers that went to another stage.
    pub moves: u32,
    /// Of those, peers whose sums of the step a mate took over.
    pub handed_over: u32,
    /// Peers that served each stage at the end.
    pub members: Vec<Vec<PeerName>>,
    /// Gradients that every peer added to its sums.
    pub added: BTreeMap<PeerName, u32>,
    /// Times all went back to a checkpoint.
    pub went_back: u32,
    /// Messages and calls delivered.
    pub deliveries: u64,
    /// Messages lost with a stream.
    pub lost: u64,
    /// When each step was decided.
    pub decided_ms: Vec<u64>,
    /// Updates that count at the end.
    pub steps: Step,
    /// Time with a stage that nobody served.
    pub downtime_ms: u64,
    /// Virtual time at the end.
    pub ms: u64,
    /// Virtual time after the last fault.
    pub settled_ms: u64,
    /// Pairs of effects side by side, if asked for.
    pub pairs: BTreeSet<Pair>,
    /// What happened, if asked for.
    pub trace: Vec<String>,
}

impl Outcome {
    /// `ok`, or the first thing that does not hold.
    #[must_use]
    pub fn verdict(&self) -> String {
        self.violations.first().cloned().unwrap_or_else(|| "ok".to_owned())
    }

    /// Faults of all kinds.
    #[must_use]
    pub fn fault_count(&self) -> u32 {
        self.faults.values().sum()
    }
}
