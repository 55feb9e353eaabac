//! Pulls that are under way: what for, and to whom something is given.

use dunlin_protocol::training::fetch::FetchId;
use dunlin_protocol::training::peer::Take;
use dunlin_protocol::training::reduce::PartRef;
use dunlin_protocol::training::{AverageId, StageId};
use dunlin_swarm::PeerName;

/// What a peer wants something for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// A part of an average.
    Average(AverageId, PartRef),
    /// The sums of a mate that leaves.
    Take(Take),
    /// A part of the state of a stage, or an update.
    Fetch(FetchId),
}

/// A pull under way.
pub(super) struct Pull {
    pub(super) mate: PeerName,
    pub(super) purpose: Purpose,
}

/// Somebody who is given something.
pub(super) struct Taker {
    pub(super) by: PeerName,
    /// The stage whose values it wants.
    pub(super) stage: StageId,
    /// When the last of it arrives: a stream is first in, first out.
    pub(super) last: u64,
}
