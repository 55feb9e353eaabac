//! Checkpoints: which there are, and how far the next one is.
//!
//! [`known`] what there is to go on from · [`attempt`] one that is being written, [`writing`] it · [`trouble`] with the destination

mod attempt;
mod known;
mod trouble;
mod writing;

use dunlin_swarm::PeerName;

use crate::training::conductor::shell::{Checkpoints, ConductorEffect, Phase};
use crate::training::conductor::turn::Turn;
use crate::training::ids::Step;
use attempt::SavingAttempt;
pub use attempt::{WriterOutcome, Wrong};
use known::Known;
use trouble::Trouble;

/// After an attempt that came to nothing through no fault of the destination the next one is not before.
const AGAIN_MS: u64 = 500;
/// When nobody can tell who of those that write the same is wrong, it is written again so often.
const DIFFER_MAX: u32 = 2;

/// What is there, and what is being written.
pub struct Saving {
    /// Is there somewhere to save to?
    saves: bool,
    known: Known,
    /// One is due at the next edge of a step.
    due: bool,
    under_way: Option<SavingAttempt>,
    destination: Destination,
    /// Step of an attempt that nobody waits for any longer: its files may be there.
    abandoned: Option<Step>,
    /// The next attempt is not before.
    not_before_ms: u64,
    trouble: Option<Trouble>,
    /// Attempts in a row in which peers of a stage would have written different things.
    differed: u32,
    confirmation: Confirmation,
}

/// Can the destination take a checkpoint?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Destination {
    /// As far as is known.
    Ready,
    /// Files of an attempt that came to nothing may be there.
    Unready,
    /// It is being made ready.
    Asked,
}

/// Was the checkpoint that a run ends with read again?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Confirmation {
    Open,
    Asked,
    Given,
}

impl Saving {
    /// Nothing is written, and if the run `saves` it is not known what is there.
    pub fn new(saves: bool) -> Self {
        Self {
            saves,
            known: Known::new(saves),
            due: false,
            under_way: None,
            destination: Destination::Ready,
            abandoned: None,
            not_before_ms: 0,
            trouble: None,
            differed: 0,
            confirmation: Confirmation::Open,
        }
    }

    /// The newest sound checkpoint, if there is one.
    pub fn newest(&self) -> Option<Step> {
        self.known.newest()
    }

    /// What is known of the checkpoints that there are.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// What there is to go on from is known, or known better.
    pub fn found(&mut self, turn: &mut Turn<'_>, found: Checkpoints) {
        let first = !self.known.is_known();
        if let Some(name) = self.known.found(found) {
            turn.note(format!(
                "{name} says that the newest checkpoint is damaged, and it is sound as read from here: see to that machine"
            ));
        }
        if first {
            self.trouble_is_over(turn, "it is known which checkpoints there are");
        }
    }

    /// The destination could not be read. The shell tries to open it again by itself.
    pub fn unread(&mut self, turn: &mut Turn<'_>, phase: &Phase, why: String) {
        if self.known.is_known() {
            self.known.doubt_is_over();
        } else {
            self.in_trouble(turn, phase, why);
        }
    }

    /// A peer says that a checkpoint is damaged, which may be so or may be its own view: it is looked at from here.
    pub fn doubt(&mut self, turn: &mut Turn<'_>, name: &PeerName, step: Step) {
        if self.known.doubt(turn.now_ms, name, step) {
            turn.push(ConductorEffect::Inspect);
        }
    }

    /// What is wrong with the destination, in a sentence that stays the same as long as it is.
    pub fn trouble(&self, phase: &Phase) -> Option<String> {
        let trouble = self.trouble.as_ref()?;
        let what = if self.known.is_known() {
            "checkpoints cannot be written"
        } else {
            "it cannot be read which checkpoints there are"
        };
        let meanwhile = match phase {
            Phase::Finishing => "all steps are done, and the run ends when the last checkpoint is written",
            Phase::Gathering => "the run begins when that is known",
            _ => "training goes on, and what it does is in the memory of its peers",
        };
        Some(format!("{what}: {}; {meanwhile}. It is tried again at least once a minute", trouble.why()))
    }

    /// An attempt to read or write came to nothing: the next one is after a pause.
    fn in_trouble(&mut self, turn: &mut Turn<'_>, phase: &Phase, why: String) {
        let new = self.trouble.is_none();
        self.trouble.get_or_insert_with(|| Trouble::new(turn.now_ms)).again(turn.now_ms, why);
        if new && let Some(text) = self.trouble(phase) {
            turn.note(text);
        }
    }

    /// `what` has worked.
    fn trouble_is_over(&mut self, turn: &mut Turn<'_>, what: &str) {
        if let Some(trouble) = self.trouble.take() {
            turn.note(trouble.end(turn.now_ms, what));
        }
    }

    /// Is an attempt after one that came to nothing to wait?
    fn pauses(&self, now_ms: u64) -> bool {
        now_ms < self.not_before_ms || self.trouble.as_ref().is_some_and(|trouble| trouble.pauses(now_ms))
    }

    /// A checkpoint is to be written at the next edge of a step, if the run saves.
    pub fn want(&mut self) {
        self.due |= self.saves;
    }

    /// May an attempt begin? If one is due, and files of another may be there, the destination is made ready first.
    pub fn may_begin(&mut self, turn: &mut Turn<'_>) -> bool {
        if !self.due || !self.known.is_known() || self.under_way.is_some() || self.pauses(turn.now_ms) {
            return false;
        }
        if self.destination == Destination::Unready {
            self.destination = Destination::Asked;
            if let Some(step) = self.abandoned.take() {
                turn.push(ConductorEffect::Discard { step });
            }
            turn.push(ConductorEffect::Prepare);
        }
        self.destination == Destination::Ready
    }

    /// The destination can take a checkpoint, or why not.
    pub fn prepared(&mut self, turn: &mut Turn<'_>, phase: &Phase, error: Option<String>) {
        if self.destination != Destination::Asked {
            return;
        }
        self.destination = if error.is_none() { Destination::Ready } else { Destination::Unready };
        if let Some(why) = error {
            self.in_trouble(turn, phase, why);
        }
    }

    /// The last checkpoint was read again, or why it could not be.
    pub fn confirmed(&mut self, turn: &mut Turn<'_>, phase: &Phase, error: Option<String>) {
        if self.confirmation != Confirmation::Asked {
            return;
        }
        let Some(why) = error else {
            self.confirmation = Confirmation::Given;
            return self.trouble_is_over(turn, "the last checkpoint is there");
        };
        // What is there now is found out; then what is missing is written again.
        self.confirmation = Confirmation::Open;
        self.in_trouble(turn, phase, why);
        turn.push(ConductorEffect::Inspect);
    }

    /// Is the state after `step` in a checkpoint that was read again? If it only has to be read, that is asked for.
    pub fn confirm(&mut self, turn: &mut Turn<'_>, step: Step) -> bool {
        if !self.saves {
            return true;
        }
        if self.newest() != Some(step) || self.under_way.is_some() || !self.known.is_certain() {
            return false;
        }
        if self.confirmation == Confirmation::Open && !self.pauses(turn.now_ms) {
            self.confirmation = Confirmation::Asked;
            turn.push(ConductorEffect::Confirm { step });
        }
        self.confirmation == Confirmation::Given
    }

    /// Peers differ, and nobody can tell who is wrong. May it be written again?
    pub fn tie(&mut self) -> bool {
        self.differed += 1;
        let again = self.differed <= DIFFER_MAX;
        if !again {
            self.differed = 0;
        }
        again
    }
}
