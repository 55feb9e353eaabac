//! What is known of a peer.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::shell::MemberView;
use crate::training::ids::{Attempt, Microbatch, StageId, Step};
use crate::training::mates::Mates;
use crate::training::message::{Held, Mate};
use crate::training::speed::Speed;
use crate::training::wiring::BACKWARD_ROWS;

/// A peer, as far as is known.
#[derive(Clone, Debug)]
pub(super) struct PeerState {
    pub(super) mate: Mate,
    pub(super) place: Place,
    /// When it will be gone, once it said so.
    pub(super) doomed_ms: Option<u64>,
    /// That is soon: it hands over, or has to be relieved.
    pub(super) leaving: bool,
    /// Where it goes once a mate has its sums.
    pub(super) moving: Option<Moving>,
    /// When it last went to another stage.
    pub(super) moved_ms: Option<u64>,
    /// Since when it is there.
    pub(super) since_ms: u64,
    /// Since when it fetches the whole state of its stage.
    pub(super) fetch_since_ms: Option<u64>,
    /// At stages of cost 1.
    pub(super) speed: Speed,
    /// Updates it has applied, as far as is known.
    pub(super) step: Step,
    /// What it holds, while the conductor has not begun.
    pub(super) held: Option<Held>,
    /// Since when it has brought nothing, or owes nothing.
    pub(super) quiet_since_ms: u64,
    /// What it asked for meanwhile.
    pub(super) claims: BTreeSet<(Step, Microbatch, Attempt)>,
    /// How often it got a state that is not the right one.
    pub(super) wrong_states: u32,
    /// The newest step of which a mate has taken its sums, since they were emptied without an update.
    pub(super) gave: Option<Step>,
    /// The peers that it gives values to, as it was told last.
    pub(super) mates: Mates,
}

impl PeerState {
    /// As people see it.
    pub(super) fn view(&self, name: &PeerName) -> MemberView {
        MemberView { name: name.clone(), host: self.mate.host.clone(), rows_per_s: self.rows_per_s() }
    }

    /// Rows of a stage of cost 1 that it takes forward and back in a second; 0 as long as that is not known.
    pub(super) fn rows_per_s(&self) -> f64 {
        self.speed.seconds_per_row().map_or(0.0, |forward| 1.0 / (forward * (1.0 + BACKWARD_ROWS)).max(1e-9))
    }
}

/// A peer on its way out of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moving {
    pub(super) from: StageId,
    pub(super) to: StageId,
    pub(super) reason: String,
}

/// What a peer does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing yet.
    Idle,
    /// Gets the state of a stage.
    Fetching { stage: StageId },
    /// Has it, and waits for the edge of the step.
    Parked { stage: StageId },
    /// Serves a stage.
    Member { stage: StageId },
    /// Has it, and empties its sums; then it serves.
    Clearing { stage: StageId },
    /// Serves no longer; its sums are being handed over.
    HandingOver { stage: StageId, to: Option<PeerName> },
    /// May go.
    Retired,
}
