//! The beginning of a run, and beginning again: after a restart of the conductor from what the peers hold, after the loss of a stage
//! from the last checkpoint.

use std::collections::BTreeMap;

use dunlin_planner::PeerName;

use super::{Conductor, ConductorEffect, Phase, Place};
use crate::training::ledger::Claimed;
use crate::training::message::{Held, Microbatch, PeerReport, StageId, Step, ToPeer, ToTrainer};

/// Peers that hold a stage nobody else has are waited for this many times as long.
const PATIENCE: u64 = 10;

/// Since when peers report, and whether what they hold was looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathering {
    since_ms: Option<u64>,
    /// Nobody is asked to load before that.
    not_before_ms: u64,
    /// What peers hold is of no use: everybody loads the checkpoint.
    restore: bool,
}

impl Gathering {
    /// Does everybody load a checkpoint, or the first values?
    pub(super) fn restores(&self) -> bool {
        self.restore
    }

    pub(super) fn seen(&mut self, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
    }

    pub(super) fn again(&mut self, at_ms: u64) {
        self.not_before_ms = at_ms;
    }
}

impl Conductor {
    /// Begins as soon as every stage has somebody.
    pub(super) fn try_begin(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        let Some(since) = self.gathering.since_ms else { return };
        if now_ms < self.gathering.not_before_ms {
            return;
        }
        let waited = now_ms >= since + self.config.gather_ms;
        if !self.gathering.restore {
            if self.peers.values().any(|p| p.held.is_some()) {
                // How many there are nobody knows: whoever comes too late begins the step anew.
                if waited {
                    self.go_on(now_ms, out);
                }
                return;
            }
            if !waited && self.peers.len() < self.config.stages as usize {
                return;
            }
            if !waited && self.gathering.not_before_ms == 0 {
                // Let those that start together be placed together.
                return;
            }
            self.gathering.restore = true;
        }
        if !self.may_load(out) {
            return;
        }
        self.load_all(now_ms, out);
        if (0..self.config.stages).all(|s| self.members_of(s).next().is_some()) {
            self.phase = Phase::Running;
            self.roster_changed = true;
            self.open_anew();
            self.answer_claims(now_ms, out);
            self.plan_save();
        }
    }

    /// Is there something that peers can begin with? When every checkpoint is damaged the run ends here: it would lose all steps without a
    /// word if it began anew.
    fn may_load(&mut self, out: &mut Vec<ConductorEffect>) -> bool {
        if let Some(why) = self.saving.all_damaged() {
            self.fail(why, out);
        }
        self.phase == Phase::Gathering && self.saving.is_certain()
    }

    /// What was asked before there were steps.
    fn answer_claims(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        let asked: Vec<(PeerName, Vec<(Step, Microbatch)>)> =
            self.peers.iter_mut().map(|(n, p)| (n.clone(), std::mem::take(&mut p.claims))).collect();
        for (name, claims) in asked {
            for (step, microbatch) in claims {
                self.claim(now_ms, &name, step, microbatch, out);
            }
        }
    }

    /// What peers say while what they hold is being gathered belongs to what they hold. Is there more to do with it?
    pub(super) fn hear_gathering(&mut self, name: &PeerName, report: &PeerReport) -> bool {
        let Some(peer) = self.peers.get_mut(name) else { return false };
        match (report, &mut peer.held) {
            (PeerReport::Claim { step, microbatch }, _) => peer.claims.push((*step, *microbatch)),
            (PeerReport::Released { step, microbatch }, _) => {
                peer.claims.retain(|claim| claim != &(*step, *microbatch));
            }
            (PeerReport::Done { step, contribution, .. }, Some(held)) => {
                held.add(*step, contribution.clone())
            }
            (PeerReport::Applied { step, scale, .. }, Some(held)) => {
                held.applied(*step, *scale);
                peer.step = *step;
            }
            (PeerReport::Ready { stage, step }, None) if peer.place == Place::Idle => {
                peer.held = Some(Held { stage: *stage, step: *step, ..Held::default() });
                peer.step = *step;
            }
            (PeerReport::Ready { .. } | PeerReport::FetchFailed { .. } | PeerReport::Leaving { .. }, _) => {
                return true;
            }
            _ => {}
        }
        false
    }

    /// Enters what the peers hold. A commit that not all have heard of is told again: it was decided only when every peer had every average.
    fn go_on(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        let held: BTreeMap<PeerName, Held> =
            self.peers.iter().filter_map(|(n, p)| Some((n.clone(), p.held.clone()?))).collect();
        let Some(newest) = held.values().map(|h| h.step).max() else { return };
        let scale = held.values().filter(|h| h.step == newest).find_map(|h| h.scale);
        let can_follow = |h: &Held| {
            h.step == newest || (h.step + 1 == newest && scale.is_some() && self.holds_all_averages(h))
        };
        let patience = self.gathering.since_ms.unwrap_or(now_ms) + PATIENCE * self.config.gather_ms;
        let missing =
            (0..self.config.stages).find(|s| !held.values().any(|h| h.stage == *s && can_follow(h)));
        if let Some(stage) = missing {
            if now_ms < patience {
                // Going back to a checkpoint costs more than waiting for who may yet come.
                return;
            }
            out.push(ConductorEffect::Note(format!("no peer holds stage {stage} at step {newest}")));
            self.restore(now_ms, out);
            return;
        }
        let follows: Vec<(PeerName, bool)> = held.iter().map(|(n, h)| (n.clone(), can_follow(h))).collect();
        self.step = newest;
        self.last_scale = scale;
        self.phase = Phase::Running;
        self.roster_changed = true;
        self.open_anew();
        for (name, follows) in follows {
            let Some(held) = held.get(&name) else { continue };
            if !follows {
                continue;
            }
            self.place(&name, Place::Member { stage: held.stage });
            if held.step < newest {
                let apply = ToPeer::Apply { step: held.step, scale: scale.unwrap_or(1.0) };
                out.push(ConductorEffect::ToPeer(name.clone(), apply));
            }
            if !self.restore_keys(now_ms, &name, held) {
                // Somebody else has added some of it as well: this peer begins the step anew.
                for open in &mut self.open {
                    open.ledgers[held.stage as usize].release(&name, now_ms);
                }
                self.place(&name, Place::Fetching { stage: held.stage });
                out.push(ConductorEffect::ToPeer(name, ToPeer::Clear { step: newest }));
            }
        }
        self.answer_claims(now_ms, out);
        // What is added already, or being added, comes back only when it is lost.
        let count = self.config.microbatches;
        for open in &mut self.open {
            let ledgers = &open.ledgers;
            open.todo.retain(|m| *m >= count || ledgers.iter().any(|ledger| ledger.is_open(*m)));
        }
        if (0..self.config.stages).any(|s| !self.stays(s)) {
            self.saving.want_now(self.config.saves);
        }
        self.settle(now_ms, out);
        self.plan_save();
    }

    /// Enters what a peer has added and is adding to the steps that are open; what was in a step before those is in its update. False when
    /// somebody else has some of it.
    fn restore_keys(&mut self, now_ms: u64, name: &PeerName, held: &Held) -> bool {
        (held.step..).zip(&held.sums).all(|(step, sums)| {
            let Some(ledger) = self.ledger(step, held.stage) else { return step < self.step };
            sums.done.iter().all(|c| ledger.restore(c, name))
                && sums.adding.iter().all(|&m| ledger.claim(m, name, now_ms) == Claimed::Granted)
        })
    }

    /// Has a peer every average that its update needs?
    pub(super) fn holds_all_averages(&self, held: &Held) -> bool {
        self.shards_of(held.stage).iter().all(|s| held.averaged.contains_key(s))
    }

    /// Peers without a stage load one. When a stage has nobody then, and another more than it needs, somebody moves.
    fn load_all(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
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
        out.push(ConductorEffect::ToPeer(name, ToPeer::Load { stage, step: self.step, checkpoint }));
    }

    /// The last peer of a stage is gone, with the newest state of its layers.
    pub(super) fn stage_lost(&mut self, now_ms: u64, stage: StageId, out: &mut Vec<ConductorEffect>) {
        let newest: Step = self.saving.newest().unwrap_or(0);
        out.push(ConductorEffect::Note(format!(
            "stage {stage} has no peer left at step {}: all go back to step {newest}",
            self.step
        )));
        self.restore(now_ms, out);
    }

    /// Everybody loads the newest checkpoint, once it is known which that is.
    pub(super) fn restore(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        for name in self.trainers.keys() {
            out.push(ConductorEffect::ToTrainer(name.clone(), ToTrainer::Committed { step: self.step }));
        }
        self.step = self.saving.newest().unwrap_or(0);
        self.phase = Phase::Gathering;
        self.hashes.clear();
        self.last_scale = None;
        for stage in &mut self.stages {
            stage.lost_ms = None;
        }
        self.saving.forget();
        self.in_doubt.clear();
        self.gathering = Gathering { since_ms: Some(now_ms), not_before_ms: 0, restore: true };
        self.open_anew();
        self.roster_changed = true;
        if !self.may_load(out) {
            for peer in self.peers.values_mut().filter(|p| p.place != Place::Retired) {
                (peer.place, peer.held) = (Place::Idle, None);
            }
            return;
        }
        let places = self.places(now_ms, true, out);
        let names: Vec<PeerName> = self.peers.keys().cloned().collect();
        for name in names {
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            peer.held = None;
            peer.claims.clear();
            peer.moving = None;
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
}
