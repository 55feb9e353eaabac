//! Pulls that are under way: what for, and to whom something is given.

use dunlin_protocol::training::AverageId;
use dunlin_protocol::training::peer::Take;
use dunlin_protocol::training::reduce::PartRef;
use dunlin_swarm::PeerName;

/// What a peer wants something for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// A part of an average.
    Average(AverageId, PartRef),
    /// The sums of a mate that leaves.
    Take(Take),
    /// The state of a stage.
    Fetch(u64),
}

/// A pull under way.
pub(super) struct Pull {
    pub(super) mate: PeerName,
    pub(super) purpose: Purpose,
}

/// Somebody who is given something.
pub(super) struct Taker {
    pub(super) by: PeerName,
    /// When the last of it arrives: a stream is first in, first out.
    pub(super) last: u64,
}
