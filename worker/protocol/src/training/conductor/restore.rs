//! Beginning from a checkpoint, or from the first values when there is none: at the start of a run, and when a stage has lost all its peers.
//!
//! A manifest that is being written when the last peer of a stage is lost may yet become complete, and is newer than any other: what comes of it is waited for. Should
//! something newer turn up while everybody loads, everybody loads that.

use dunlin_swarm::PeerName;

use super::gathering::Gathering;
use super::peer_state::Place;
use super::{Conductor, ConductorEffect, Phase};
use crate::training::ids::StageId;
use crate::training::message::{Load, ToPeer, ToTrainer};

/// A manifest that takes longer is not waited for.
pub(super) const SEAL_MS_MAX: u64 = 60_000;

impl Conductor {
    /// Is there something that peers can begin with, now? When every checkpoint is damaged the run ends here: it would lose all steps without a
    /// word if it began anew.
    pub(super) fn may_load(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) -> bool {
        if let Some(why) = self.saving.all_damaged() {
            self.fail(why, out);
        }
        let seals = self.saving.seals().is_some() && now_ms < self.gathering.seal_until_ms;
        self.phase == Phase::Gathering && self.saving.is_certain() && !seals
    }

    /// Peers without a stage load one. When a stage has nobody then, and another more than it needs, somebody moves.
    pub(super) fn load_all(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        for (name, stage) in self.places(now_ms, false, out) {
            let has = [Place::Member { stage }, Place::Fetching { stage }];
            if self.peers.get(&name).is_some_and(|p| !has.contains(&p.place)) {
                self.load(name, stage, out);
            }
        }
    }

    /// A peer begins with a stage, from the newest checkpoint if there is one.
    fn load(&mut self, name: PeerName, stage: StageId, out: &mut Vec<ConductorEffect>) {
        self.place(&name, Place::Fetching { stage });
        let checkpoint = self.saving.newest().is_some();
        out.push(ConductorEffect::ToPeer(name, ToPeer::Load(Load { stage, step: self.step, checkpoint })));
    }

    /// The last peer of a stage is gone, with the newest state of its layers.
    pub(super) fn stage_lost(&mut self, now_ms: u64, stage: StageId, out: &mut Vec<ConductorEffect>) {
        let step = self.step;
        out.push(ConductorEffect::Note(format!(
            "stage {stage} has no peer left at step {step}: all go back"
        )));
        self.restore(now_ms, out);
    }

    /// Everybody loads the newest checkpoint, once it is known which that is.
    pub(super) fn restore(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        for name in self.trainers.keys() {
            out.push(ConductorEffect::ToTrainer(name.clone(), ToTrainer::Anew));
        }
        self.step = self.saving.newest().unwrap_or(0);
        self.phase = Phase::Gathering;
        self.states.clear();
        self.last_scale = None;
        for stage in &mut self.stages {
            stage.lost_ms = None;
        }
        self.saving.forget();
        self.in_doubt.clear();
        self.gathering = Gathering {
            since_ms: Some(now_ms),
            restore: true,
            seal_until_ms: now_ms + SEAL_MS_MAX,
            ..Gathering::default()
        };
        self.open_anew();
        self.roster_changed = true;
        for peer in self.peers.values_mut() {
            peer.held = None;
            peer.claims.clear();
            peer.moving = None;
        }
        if !self.may_load(now_ms, out) {
            if let Some(step) = self.saving.seals() {
                out.push(ConductorEffect::Note(format!(
                    "the checkpoint of step {step} is being completed: nobody goes back to an older one before that is over"
                )));
            }
            for peer in self.peers.values_mut().filter(|p| p.place != Place::Retired) {
                peer.place = Place::Idle;
            }
            return;
        }
        let from = match self.saving.newest() {
            Some(step) => format!("the checkpoint of step {step}"),
            None => "the first values".to_owned(),
        };
        out.push(ConductorEffect::Note(format!("everybody begins from {from}")));
        let places = self.places(now_ms, true, out);
        let names: Vec<PeerName> = self.peers.keys().cloned().collect();
        for name in names {
            let Some(peer) = self.peers.get(&name) else { continue };
            match (places.get(&name), &peer.place) {
                (Some(stage), _) => self.load(name, *stage, out),
                (None, Place::Retired | Place::Idle) => {}
                (None, _) => {
                    self.place(&name, Place::Retired);
                    out.push(ConductorEffect::ToPeer(name, ToPeer::Retire));
                }
            }
        }
    }

    /// The newest checkpoint has changed: whoever is loading an older one loads that instead.
    pub(super) fn follow_newest(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        let newest = self.saving.newest().unwrap_or(0);
        if self.phase == Phase::Gathering && self.gathering.restores() && newest != self.step {
            self.restore(now_ms, out);
        }
    }
}
