//! What is known of a peer. Everybody may look at it, and [`super::membership`] alone changes it: it gives nobody else the means.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use crate::training::conductor::shell::MemberView;
use crate::training::ids::{MicrobatchClaim, StageId, Step};
use crate::training::mates::Mates;
use crate::training::message::{Held, Mate};
use crate::training::speed::Speed;
use crate::training::wiring::BACKWARD_ROWS;

/// A peer, as far as is known.
#[derive(Clone, Debug)]
pub struct PeerRecord {
    pub mate: Mate,
    pub place: Place,
    /// When it will be gone, once it said so.
    pub doomed_ms: Option<u64>,
    /// That is soon: it hands over, or has to be relieved.
    pub leaving: bool,
    /// Where it goes once a mate has its sums.
    pub moving: Option<Moving>,
    /// When it last went to another stage.
    pub moved_ms: Option<u64>,
    /// Since when it is there.
    pub since_ms: u64,
    /// Since when it fetches the whole state of its stage.
    pub fetch_since_ms: Option<u64>,
    /// At stages of cost 1.
    pub speed: Speed,
    /// Updates it has applied, as far as is known.
    pub step: Step,
    /// What it holds, while the conductor has not begun.
    pub held: Option<Held>,
    /// Since when it has brought nothing, or owes nothing.
    pub quiet_since_ms: u64,
    /// What it asked for meanwhile.
    pub claims: BTreeSet<MicrobatchClaim>,
    /// How often it got a state that is not the right one.
    pub wrong_states: u32,
    /// The newest step of which a mate has taken its sums, since they were emptied without an update.
    pub gave: Option<Step>,
    /// The peers that it gives values to, as it was told last.
    pub mates: Mates,
}

impl PeerRecord {
    /// A peer that comes with what it holds, if it is anything.
    pub fn new(now_ms: u64, mate: Mate, held: Option<Held>) -> Self {
        Self {
            mate,
            place: Place::Idle,
            doomed_ms: None,
            leaving: false,
            moving: None,
            moved_ms: None,
            since_ms: now_ms,
            fetch_since_ms: None,
            speed: Speed::default(),
            step: held.as_ref().map_or(0, |h| h.step),
            held,
            quiet_since_ms: now_ms,
            claims: BTreeSet::new(),
            wrong_states: 0,
            gave: None,
            mates: Mates::default(),
        }
    }

    /// As people see it.
    pub fn view(&self, name: &PeerName) -> MemberView {
        MemberView { name: name.clone(), host: self.mate.host.clone(), rows_per_s: self.rows_per_s() }
    }

    /// Rows of a stage of cost 1 that it takes forward and back in a second; 0 as long as that is not known.
    pub fn rows_per_s(&self) -> f64 {
        self.speed.seconds_per_row().map_or(0.0, |forward| 1.0 / (forward * (1.0 + BACKWARD_ROWS)).max(1e-9))
    }
}

/// A peer on its way out of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moving {
    pub from: StageId,
    pub to: StageId,
    pub reason: String,
}

impl Place {
    /// The stage whose values a peer gets, has or hands over.
    pub fn stage(&self) -> Option<StageId> {
        match self {
            Self::Fetching { stage } | Self::Parked { stage } => Some(*stage),
            Self::Idle | Self::Retired => None,
            _ => self.held_stage(),
        }
    }

    /// The stage whose state a peer has, and which it serves, or is about to, or has served until now.
    pub fn held_stage(&self) -> Option<StageId> {
        match self {
            Self::Member { stage } | Self::Clearing { stage } | Self::HandingOver { stage, .. } => {
                Some(*stage)
            }
            _ => None,
        }
    }
}

/// What a peer does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
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
