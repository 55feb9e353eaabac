//! What is known of the checkpoints that there are.

use dunlin_swarm::PeerName;

use crate::training::conductor::shell::Checkpoints;
use crate::training::ids::Step;

/// A checkpoint that was found sound is not read again before, whoever says that it is damaged.
const DOUBT_MS: u64 = 60_000;

/// What is known of the checkpoints that there are.
pub struct Known {
    /// `None` as long as nobody has looked.
    found: Option<Checkpoints>,
    /// The newest is being looked at: this peer says that it is damaged.
    doubted_by: Option<PeerName>,
    /// It is not looked at again before.
    doubt_not_before_ms: u64,
}

impl Known {
    /// Of a run that saves nothing there is nothing to find out.
    pub fn new(saves: bool) -> Self {
        let found = (!saves).then_some(Checkpoints::None);
        Self { found, doubted_by: None, doubt_not_before_ms: 0 }
    }

    /// The newest sound checkpoint, if there is one.
    pub fn newest(&self) -> Option<Step> {
        match self.found {
            Some(Checkpoints::Newest(step)) => Some(step),
            _ => None,
        }
    }

    /// Has anybody looked?
    pub fn is_known(&self) -> bool {
        self.found.is_some()
    }

    /// Can peers be told what to begin with? Not as long as the newest is in doubt.
    pub fn is_certain(&self) -> bool {
        self.is_known() && self.doubted_by.is_none()
    }

    /// When there are checkpoints and none is sound: what to tell people.
    pub fn all_damaged(&self) -> Option<String> {
        match &self.found {
            Some(Checkpoints::AllDamaged(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// Somebody has looked. Returns who doubted what is as it was.
    pub fn found(&mut self, found: Checkpoints) -> Option<PeerName> {
        let before = self.found.replace(found);
        self.doubted_by.take().filter(|_| before == self.found)
    }

    /// A checkpoint is complete.
    pub fn completed(&mut self, step: Step) {
        self.found = Some(Checkpoints::Newest(step));
    }

    /// A peer says that a checkpoint is damaged. Is it to be looked at?
    pub fn doubt(&mut self, now_ms: u64, name: &PeerName, step: Step) -> bool {
        let looks =
            self.newest() == Some(step) && self.doubted_by.is_none() && now_ms >= self.doubt_not_before_ms;
        if looks {
            self.doubted_by = Some(name.clone());
            self.doubt_not_before_ms = now_ms + DOUBT_MS;
        }
        looks
    }

    /// It could not be looked at.
    pub fn doubt_is_over(&mut self) {
        self.doubted_by = None;
    }
}
