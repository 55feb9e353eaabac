//! What is run, and what came of it.

use std::collections::BTreeMap;

use dunlin_protocol::training::Step;

use super::numbers::Shape;
use crate::model::mix;

/// Which faults may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// All of them.
    All,
    /// Peers leave with notice, and join.
    Notice,
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
    /// Of which kinds.
    pub kinds: Kinds,
    /// A forward call may take this long; a short time makes trainers call somebody else while the first still computes.
    pub forward_ms_max: u64,
    /// Most messages take no longer.
    pub latency_ms: u64,
    /// When this delivery is due, its receiver (true) or its sender is killed instead.
    pub kill_at: Option<(u64, bool)>,
    /// Keep a trace.
    pub trace: bool,
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
            },
            peers: peers as u32,
            trainers: draw(3, 1, 3) as u32,
            steps: draw(7, 4, 12),
            checkpoint_every: draw(8, 0, 4),
            validate_every: draw(9, 0, 3),
            faults: draw(10, 0, 8) as u32,
            kinds: Kinds::All,
            forward_ms_max: [100, 300, 800][draw(11, 0, 2) as usize],
            latency_ms: [12, 12, 40, 120][draw(12, 0, 3) as usize],
            kill_at: None,
            trace: false,
        }
    }

    /// A small one without faults of its own.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        let shape = Shape { stages: 2, tied: true, microbatches: 3, validation_batches: 1, clip: 25.0, seed };
        Self {
            seed,
            shape,
            peers: 4,
            trainers: 2,
            steps: 3,
            checkpoint_every: 2,
            validate_every: 2,
            faults: 0,
            kinds: Kinds::All,
            forward_ms_max: 800,
            latency_ms: 12,
            kill_at: None,
            trace: false,
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
    /// Times all went back to a checkpoint.
    pub went_back: u32,
    /// Messages and calls delivered.
    pub deliveries: u64,
    /// Messages lost with a stream.
    pub lost: u64,
    /// Virtual time at the end.
    pub ms: u64,
    /// Virtual time after the last fault.
    pub settled_ms: u64,
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
