//! What happens to a fetch, and what is to be done.

use std::ops::Range;

use dunlin_swarm::PeerName;

use super::super::ids::{StageId, Step};
use super::super::message::{Fetch, FetchFailure, Mate, StageStart, StateDigest};

/// Something that was begun, and the values that have come of it. Never used again.
pub type FetchId = u64;

/// What a stage takes.
#[derive(Clone, Copy, Debug)]
pub struct StageSize {
    /// Chunks that each vector of its state is divided in.
    pub chunks: usize,
    /// Updates that may be kept.
    pub updates_max: u64,
}

/// Bounds of a fetch.
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Of every stage.
    pub stages: Vec<StageSize>,
    /// Mates that give state at once.
    pub mates_max: usize,
    /// Attempts at a state that is of one step, and at an update.
    pub attempts_max: u32,
    /// All of a state is fetched so often at most because an update is missing: updates are made faster than they are followed, if that does not suffice.
    pub wholes_max: u32,
    /// Between two attempts.
    pub pause_ms: u64,
    /// Between two looks whether mates have made the next update that is kept, at first.
    pub collect_ms: u64,
}

impl FetchConfig {
    /// For stages of these sizes.
    #[must_use]
    pub fn new(stages: Vec<StageSize>) -> Self {
        Self { stages, mates_max: 4, attempts_max: 20, wholes_max: 3, pause_ms: 20, collect_ms: 100 }
    }
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum FetchEvent {
    /// The conductor wants this peer to have first values or a checkpoint.
    Load(StageStart),
    /// The conductor wants it to have what mates have. With the step of what is here, where that is only brought up to date.
    Fetch(Fetch, Option<Step>),
    /// It takes part in the steps of its stage, and makes the updates itself from now on.
    TakesPart,
    /// Nothing more is wanted.
    Left,
    /// A part of a state is here, of this step; and what its giver says that all of the state is, the root of its tree.
    Part(FetchId, Step, String),
    /// What was begun is done: what was read or pulled is here, what was to be kept is kept.
    Came(FetchId),
    /// The parts were compared with what their givers say that all of the state is: those that differ, and how.
    Checked(FetchId, Vec<(FetchId, String)>),
    /// The engine has this state.
    At(FetchId, Step, StateDigest),
    /// It came to nothing, and why.
    Failed(FetchId, FetchFailure, String),
    /// The time of [`Fetcher::wake_ms`](super::Fetcher::wake_ms) has come.
    Deadline,
}

/// What is begun, with a number. Each ends with an event of the same, unless it is dropped before.
#[derive(Clone, Debug, PartialEq)]
pub enum FetchWork {
    /// Read first values or a checkpoint. Then [`FetchEvent::Came`].
    Read(StageStart),
    /// Ask the engine which state it has, which is that of this step behind an update that is under way. Then [`FetchEvent::At`].
    Where(Step),
    /// Pull these chunks of every vector of the state. Then [`FetchEvent::Part`].
    PullState(Mate, StageId, Range<usize>),
    /// Compare these parts with what their givers say, which is all the same. Then [`FetchEvent::Checked`].
    Check(Vec<FetchId>),
    /// The engine takes what these have brought: the parts of a state, in their order, or what was read. Then [`FetchEvent::At`].
    Install(StageId, Vec<FetchId>),
    /// Pull an update. Then [`FetchEvent::Came`].
    PullUpdate(Mate, StageId, Step),
    /// Keep the update of this step, which that number has brought, where it takes no memory. Then [`FetchEvent::Came`].
    Keep(FetchId, Step),
    /// Take an update back that was kept. Then [`FetchEvent::Came`].
    TakeKept(Step),
    /// The engine follows the update that this has brought. Then [`FetchEvent::At`].
    Follow(FetchId),
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum FetchEffect {
    /// Begin something.
    Do(FetchId, FetchWork),
    /// Nobody waits for it, and what has come of it is not needed.
    Drop(FetchId),
    /// The updates of these steps need not be kept any more.
    Forget(Range<Step>),
    /// A mate gave what is not right.
    Wrong(PeerName, String),
    /// The engine has what is wanted.
    Ready {
        /// Of which stage.
        stage: StageId,
        /// Updates in it.
        step: Step,
        /// What it is.
        state: StateDigest,
        /// Updates in what was here and was only brought up to date.
        from: Option<Step>,
    },
    /// It cannot be had.
    GiveUp(StageId, FetchFailure, String),
    /// Nothing is to be done: people want to know.
    Note(String),
}
