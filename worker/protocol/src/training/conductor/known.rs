//! What is known of the checkpoints that there are.

use dunlin_swarm::PeerName;

use super::shell::Checkpoints;
use crate::training::ids::Step;

/// What is known of the checkpoints that there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) found: Option<Checkpoints>,
    /// The newest is being looked at: this peer says that it is damaged.
    pub(super) doubted_by: Option<PeerName>,
    /// It is not looked at again before.
    pub(super) doubt_not_before_ms: u64,
}

impl Known {
    /// Of a run that saves nothing there is nothing to find out.
    pub(super) fn new(saves: bool) -> Self {
        Self { found: (!saves).then_some(Checkpoints::None), ..Self::default() }
    }

    /// The newest sound checkpoint, if there is one.
    pub(super) fn newest(&self) -> Option<Step> {
        match self.found {
            Some(Checkpoints::Newest(step)) => Some(step),
            _ => None,
        }
    }

    /// Has anybody looked?
    pub(super) fn is_known(&self) -> bool {
        self.found.is_some()
    }

    /// Is the newest in doubt?
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted_by.is_some()
    }

    /// When there are checkpoints and none is sound: what to tell people.
    pub(super) fn all_damaged(&self) -> Option<String> {
        match &self.found {
            Some(Checkpoints::AllDamaged(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// A checkpoint is complete.
    pub(super) fn completed(&mut self, step: Step) {
        self.found = Some(Checkpoints::Newest(step));
    }
}
