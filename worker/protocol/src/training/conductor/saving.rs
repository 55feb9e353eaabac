//! How far the writing of a checkpoint is.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

use super::known::Known;
use super::trouble::Trouble;
use crate::training::ids::{StageId, Step};

/// What is there, and what is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Saving {
    pub(super) known: Known,
    /// One is due at the next edge of a step.
    pub(super) due: bool,
    pub(super) under_way: Option<UnderWay>,
    pub(super) place: Destination,
    /// Step of an attempt that nobody waits for any longer: its files may be there.
    pub(super) abandoned: Option<Step>,
    /// The next attempt is not before.
    pub(super) not_before_ms: u64,
    pub(super) trouble: Option<Trouble>,
    /// Attempts in a row in which peers of a stage would have written different things.
    pub(super) differed: u32,
    pub(super) confirmation: Confirmation,
}

/// Can the destination take a checkpoint?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Destination {
    /// As far as is known.
    #[default]
    Ready,
    /// Files of an attempt that came to nothing may be there.
    Unready,
    /// It is being made ready.
    Asked,
}

/// Was the checkpoint that a run ends with read again?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Confirmation {
    #[default]
    Open,
    Asked,
    Given,
}

#[derive(Clone, Debug)]
pub(super) struct UnderWay {
    pub(super) step: Step,
    pub(super) writers: BTreeMap<StageId, Writer>,
    /// Others of the same stages, who say what should have been written.
    pub(super) checkers: Vec<(StageId, Writer)>,
    pub(super) sealing: bool,
}

/// The peer that writes a stage, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    pub(super) name: PeerName,
    pub(super) host: String,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Open,
    Written(String),
    /// The destination takes it not.
    Refused(String),
    /// Through no fault of the destination.
    Missed,
}

impl Saving {
    pub(super) fn new(saves: bool) -> Self {
        Self { known: Known::new(saves), ..Self::default() }
    }

    /// The newest sound checkpoint, if there is one.
    pub(super) fn newest(&self) -> Option<Step> {
        self.known.newest()
    }

    /// Has anybody looked which checkpoints there are?
    pub(super) fn is_known(&self) -> bool {
        self.known.is_known()
    }

    /// Can peers be told what to begin with?
    pub(super) fn is_certain(&self) -> bool {
        self.known.is_known() && !self.known.is_doubted()
    }

    /// When there are checkpoints and none is sound: what to tell people.
    pub(super) fn all_damaged(&self) -> Option<String> {
        self.known.all_damaged()
    }

    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    pub(super) fn trouble_since(&mut self, begin: impl FnOnce() -> Trouble) -> &mut Trouble {
        self.trouble.get_or_insert_with(begin)
    }

    pub(super) fn end_trouble(&mut self) -> Option<Trouble> {
        self.trouble.take()
    }

    /// Is an attempt after one that came to nothing to wait?
    pub(super) fn pauses(&self, now_ms: u64) -> bool {
        now_ms < self.not_before_ms || self.trouble.as_ref().is_some_and(|trouble| trouble.pauses(now_ms))
    }

    pub(super) fn want_now(&mut self, saves: bool) {
        self.due |= saves;
    }

    /// Nobody writes any longer. A manifest that is being written may yet become complete.
    pub(super) fn forget(&mut self) {
        if let Some(under_way) = self.under_way.take_if(|u| !u.sealing) {
            (self.place, self.abandoned) = (Destination::Unready, Some(under_way.step));
        }
    }

    /// The manifest of this step is being written.
    pub(super) fn seals(&self) -> Option<Step> {
        self.under_way.as_ref().filter(|u| u.sealing).map(|u| u.step)
    }

    pub(super) fn waits_for(&self, name: &PeerName) -> bool {
        let writes = |w: &Writer| w.name == *name && w.outcome == Outcome::Open;
        let all = |u: &UnderWay| u.writers.values().chain(u.checkers.iter().map(|(_, c)| c)).any(writes);
        self.under_way.as_ref().is_some_and(all)
    }
}
