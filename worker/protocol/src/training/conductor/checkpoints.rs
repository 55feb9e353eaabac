//! What there is to go on from, and what is said when that cannot be read or written.

use dunlin_swarm::PeerName;

use super::trouble::Trouble;
use super::turn::Turn;
use super::{Checkpoints, Conductor, ConductorEffect, Phase};
use crate::training::ids::Step;

/// A checkpoint that was found sound is not read again before, whoever says that it is damaged.
const DOUBT_MS: u64 = 60_000;

impl Conductor {
    /// Is it known which checkpoints there are?
    #[must_use]
    pub fn knows_checkpoints(&self) -> bool {
        self.saving.known.is_known()
    }

    /// What there is to go on from is known, or known better.
    pub(super) fn found(&mut self, turn: &mut Turn<'_>, found: Checkpoints) {
        let known = &mut self.saving.known;
        let (first, same) = (known.found.is_none(), known.found.as_ref() == Some(&found));
        known.found = Some(found);
        if let Some(name) = known.doubted_by.take().filter(|_| same) {
            turn.note(format!(
                "{name} says that the newest checkpoint is damaged, and it is sound as read from here: see to that machine"
            ));
        }
        if first {
            self.trouble_is_over(turn, "it is known which checkpoints there are");
        }
        match self.phase {
            Phase::Gathering if self.gathering.restores() => self.follow_newest(turn),
            Phase::Gathering => {
                self.begin_at(self.saving.newest().unwrap_or(0), None);
            }
            // The run goes on from the memory of its peers; what they have wants to be in a sound checkpoint soon.
            Phase::Running => self.save_for_one_left(),
            Phase::Finishing => self.plan_save(),
            _ => {}
        }
    }

    /// The destination could not be read. The shell tries to open it again by itself.
    pub(super) fn unread(&mut self, turn: &mut Turn<'_>, why: String) {
        if self.saving.known.is_known() {
            self.saving.known.doubted_by = None;
        } else {
            self.in_trouble(turn, why);
        }
    }

    /// A peer says that a checkpoint is damaged, which may be so or may be its own view: it is looked at from here.
    pub(super) fn doubt_checkpoint(&mut self, turn: &mut Turn<'_>, name: &PeerName, step: Step) {
        let known = &mut self.saving.known;
        let asked = known.doubted_by.is_some() || turn.now_ms < known.doubt_not_before_ms;
        if known.newest() == Some(step) && !asked {
            known.doubted_by = Some(name.clone());
            known.doubt_not_before_ms = turn.now_ms + DOUBT_MS;
            turn.push(ConductorEffect::Inspect);
        }
    }

    /// What is wrong with the destination of checkpoints, in a sentence that stays the same as long as it is.
    #[must_use]
    pub fn checkpoint_trouble(&self) -> Option<String> {
        let trouble = self.saving.trouble()?;
        let known = self.saving.is_known();
        let what = if known {
            "checkpoints cannot be written"
        } else {
            "it cannot be read which checkpoints there are"
        };
        let meanwhile = match self.phase {
            Phase::Finishing => "all steps are done, and the run ends when the last checkpoint is written",
            Phase::Gathering => "the run begins when that is known",
            _ => "training goes on, and what it does is in the memory of its peers",
        };
        Some(format!("{what}: {}; {meanwhile}. It is tried again at least once a minute", trouble.why))
    }

    /// An attempt to read or write came to nothing: the next one is after a pause.
    pub(super) fn in_trouble(&mut self, turn: &mut Turn<'_>, why: String) {
        let new = self.saving.trouble().is_none();
        self.saving.trouble_since(|| Trouble::new(turn.now_ms)).again(turn.now_ms, why);
        if new && let Some(text) = self.checkpoint_trouble() {
            turn.note(text);
        }
    }

    /// `what` has worked.
    pub(super) fn trouble_is_over(&mut self, turn: &mut Turn<'_>, what: &str) {
        if let Some(Trouble { since_ms, attempts, .. }) = self.saving.end_trouble() {
            let seconds = turn.now_ms.saturating_sub(since_ms).div_ceil(1000);
            turn.note(format!("{what}, after {seconds} s and {attempts} attempts that failed"));
        }
    }
}
