//! What there is to go on from.

use dunlin_swarm::PeerName;

use super::{Checkpoints, Conductor, ConductorEffect, Phase};
use crate::training::message::Step;

/// A checkpoint that was found sound is not read again before, whoever says that it is damaged.
const DOUBT_MS: u64 = 60_000;

/// What is known of the checkpoints that there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    found: Option<Checkpoints>,
    /// The newest is being looked at: this peer says that it is damaged.
    doubted_by: Option<PeerName>,
    /// It is not looked at again before.
    doubt_not_before_ms: u64,
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

impl Conductor {
    /// Is it known which checkpoints there are?
    #[must_use]
    pub fn knows_checkpoints(&self) -> bool {
        self.saving.known.is_known()
    }

    /// What there is to go on from is known, or known better.
    pub(super) fn found(&mut self, now_ms: u64, found: Checkpoints, out: &mut Vec<ConductorEffect>) {
        let known = &mut self.saving.known;
        let (first, same) = (known.found.is_none(), known.found.as_ref() == Some(&found));
        known.found = Some(found);
        if let Some(name) = known.doubted_by.take().filter(|_| same) {
            out.push(ConductorEffect::Note(format!(
                "{name} says that the newest checkpoint is damaged, and it is sound as read from here: see to that machine"
            )));
        }
        if first {
            self.trouble_is_over(now_ms, "it is known which checkpoints there are", out);
        }
        match self.phase {
            Phase::Gathering if self.gathering.restores() => self.follow_newest(now_ms, out),
            Phase::Gathering => {
                self.step = self.saving.newest().unwrap_or(0);
                self.open_anew();
            }
            // The run goes on from the memory of its peers; what they have wants to be in a sound checkpoint soon.
            Phase::Running => self.save_for_one_left(),
            Phase::Finishing => self.plan_save(),
            _ => {}
        }
    }

    /// The destination could not be read. The shell tries to open it again by itself.
    pub(super) fn unread(&mut self, now_ms: u64, why: String, out: &mut Vec<ConductorEffect>) {
        if self.saving.known.is_known() {
            self.saving.known.doubted_by = None;
        } else {
            self.in_trouble(now_ms, why, out);
        }
    }

    /// A peer says that a checkpoint is damaged, which may be so or may be its own view: it is looked at from here.
    pub(super) fn doubt_checkpoint(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        step: Step,
        out: &mut Vec<ConductorEffect>,
    ) {
        let known = &mut self.saving.known;
        let asked = known.doubted_by.is_some() || now_ms < known.doubt_not_before_ms;
        if known.newest() == Some(step) && !asked {
            known.doubted_by = Some(name.clone());
            known.doubt_not_before_ms = now_ms + DOUBT_MS;
            out.push(ConductorEffect::Inspect);
        }
    }
}
