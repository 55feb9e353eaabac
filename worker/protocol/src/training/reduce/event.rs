//! What happens to an average, and what is to be done.

use std::ops::Range;

use dunlin_swarm::PeerName;

use super::super::ids::AskId;

/// Which of the two halves of an average values belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// What a member contributes to the part that is added here (reduce-scatter).
    Sums,
    /// The part that a member has added (all-gather).
    Result,
}

/// Values that come from another member. Of each there is at most one piece at a time that was read and not used yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartRef {
    /// Who gives them: its index in the group.
    pub member: usize,
    /// What they are.
    pub half: Half,
}

/// Bounds of an average.
#[derive(Clone, Copy, Debug)]
pub struct ReduceConfig {
    /// Values that travel and are added together.
    pub chunk: usize,
    /// A member that gives nothing for so long is lost, and one that asks for what is not formed here by then gets nothing.
    pub patience_ms: u64,
    /// Pulls of others that may wait for the part that is added here.
    pub asks_max: usize,
}

impl ReduceConfig {
    /// With chunks of so many values.
    #[must_use]
    pub fn new(chunk: usize) -> Self {
        Self { chunk, patience_ms: 5_000, asks_max: 64 }
    }
}

/// What happens to an average.
#[derive(Clone, Debug, PartialEq)]
pub enum ReduceEvent {
    /// What this member contributes is fixed. The parts of the shard's values, in the order of the members that add them.
    ShareReady(Vec<Range<usize>>),
    /// A piece was read, and is kept until it is added or placed.
    PieceArrived(PartRef),
    /// Nothing more comes; why, if it was not the end.
    PullEnded(PartRef, Option<String>),
    /// The chunk that was added is encoded, and can be given.
    Combined,
    /// An effect cannot be performed; by the fault of this member, if of any.
    Unusable(Option<usize>, String),
    /// Somebody who may have it asks for the part that is added here.
    Asked(AskId, Range<usize>),
    /// The time of [`Butterfly::wake_ms`](super::Butterfly::wake_ms) has come.
    Deadline,
    /// The average is of no use any more.
    Cancelled(String),
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum ReduceEffect {
    /// Fix what this member contributes, behind all that was added before. Then [`ReduceEvent::ShareReady`].
    Share,
    /// Ask a member for values, and read the first piece of them.
    Pull(PartRef, Range<usize>),
    /// Read the next piece.
    Read(PartRef),
    /// Add the values of a member, from its piece or from this member's own share. The first member's begin a chunk.
    Add {
        /// Whose.
        member: usize,
        /// The chunk.
        range: Range<usize>,
    },
    /// Make the result of a chunk that was added, for this member and, encoded, for the others. Then [`ReduceEvent::Combined`].
    Combine(Range<usize>),
    /// What has come of the part of a member is the result there.
    Place {
        /// Who has added it.
        member: usize,
        /// The chunk.
        range: Range<usize>,
    },
    /// Give the next chunk of the part that is added here.
    Give(AskId, Range<usize>),
    /// It was given all.
    End(AskId),
    /// It gets nothing more.
    Refuse(AskId, String),
    /// The average is complete here. Others may still ask for their part of it.
    Done,
    /// It cannot be formed: who did not give what it should, if it was somebody else, and what happened.
    Failed(Option<PeerName>, String),
}
