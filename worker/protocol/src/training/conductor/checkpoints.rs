//! What there is to go on from, and what is said when that cannot be read or written.

use super::turn::Turn;
use super::{Checkpoints, Conductor, Phase};

impl Conductor {
    /// Is it known which checkpoints there are?
    #[must_use]
    pub fn knows_checkpoints(&self) -> bool {
        self.saving.known().is_known()
    }

    /// What is wrong with the destination of checkpoints, in a sentence that stays the same as long as it is.
    #[must_use]
    pub fn checkpoint_trouble(&self) -> Option<String> {
        self.saving.trouble(&self.phase)
    }

    /// What there is to go on from is known, or known better.
    pub(super) fn found(&mut self, turn: &mut Turn<'_>, found: Checkpoints) {
        self.saving.found(turn, found);
        match self.phase {
            Phase::Gathering if self.gathering.restores() => self.follow_newest(turn),
            Phase::Gathering => self.begin_at(self.saving.newest().unwrap_or(0), None),
            // The run goes on from the memory of its peers; what they have wants to be in a sound checkpoint soon.
            Phase::Running => self.save_unless_recent(),
            Phase::Finishing => self.plan_save(),
            _ => {}
        }
    }
}
