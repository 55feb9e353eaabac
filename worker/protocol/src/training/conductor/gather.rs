//! The beginning of a run, and beginning again after a restart of the conductor, from what the peers hold.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::machines::gathering::Gathering;
use super::machines::peer::Place;
use super::turn::Turn;
use super::{Conductor, Phase};
use crate::training::ids::{StageId, Step};
use crate::training::message::{Held, ToPeer};

impl Conductor {
    /// Nobody is known any more; those who were there will say what they hold.
    pub(super) fn gather_again(&mut self, now_ms: u64, awaited: BTreeSet<PeerName>) {
        self.phase = Phase::Gathering;
        self.gathering = Gathering::of(now_ms, awaited);
        self.trust.forget_states();
        self.doubts.clear();
        self.saving.forget();
        self.peers.forget_losses();
    }

    /// Begins as soon as every stage has somebody.
    pub(super) fn try_begin(&mut self, turn: &mut Turn<'_>) {
        if !self.gathering.may_begin(turn.now_ms) {
            return;
        }
        let there = |name: &PeerName| self.peers.get(name).is_some_and(|p| p.held.is_some());
        let waited = self.gathering.has_waited(turn.now_ms, self.config.gather_ms, there);
        if !self.gathering.restores() {
            if self.peers.any(|p| p.held.is_some()) {
                // How many there are nobody knows: whoever comes too late begins the step anew.
                if waited {
                    self.go_on(turn);
                }
                return;
            }
            if !waited && self.peers.all().len() < self.config.stages as usize {
                return;
            }
            if !waited && !self.gathering.has_failed() {
                // Let those that start together be placed together.
                return;
            }
            self.gathering.restore();
            self.begin_at(self.saving.newest().unwrap_or(0), None);
        }
        if !self.may_load(turn) {
            return;
        }
        self.load_all(turn);
        if self.peers.serve_all() {
            self.phase = Phase::Running;
            self.peers.mark_changed();
            self.begin_at(self.work.step(), self.work.scale());
            self.answer_claims(turn);
            self.plan_save();
        }
    }

    /// What was asked before there were steps.
    fn answer_claims(&mut self, turn: &mut Turn<'_>) {
        for (name, claims) in self.peers.take_claims() {
            for claim in claims {
                self.claim(turn, &name, claim);
            }
        }
    }

    /// Enters what the peers hold. A commit that not all have heard of is told again: it was decided only when every peer had every average.
    fn go_on(&mut self, turn: &mut Turn<'_>) {
        let held: BTreeMap<PeerName, Held> =
            self.peers.all().iter().filter_map(|(n, p)| Some((n.clone(), p.held.clone()?))).collect();
        let Some((newest, scale)) = self.newest_whole(held.values()) else {
            // Going back to a checkpoint costs more than waiting for who may yet come.
            if self.gathering.has_waited_long(turn.now_ms, self.config.gather_ms) {
                let steps: BTreeSet<String> =
                    held.values().map(|h| format!("stage {} at step {}", h.stage, h.step)).collect();
                let steps: Vec<String> = steps.into_iter().collect();
                turn.note(format!(
                    "there is no step at which every stage has a peer: they hold {}",
                    steps.join(", ")
                ));
                self.restore(turn);
            }
            return;
        };
        self.phase = Phase::Running;
        self.peers.mark_changed();
        self.trust.forget_states();
        self.begin_at(newest, scale);
        let held_by_all: Vec<&Held> = held.values().collect();
        for (name, held) in &held {
            if !self.can_follow(held, newest, scale) {
                continue;
            }
            self.peers.place(name, Place::Member { stage: held.stage });
            self.hear_state(name, (held.stage, held.step), held.state.clone(), held.copied);
            if held.step < newest {
                let (step, prove) = (held.step, self.proves(newest));
                let apply = ToPeer::Apply { step, scale: scale.unwrap_or(1.0), prove };
                turn.tell(name, apply);
            }
            let given_up = held_by_all.iter().any(|other| held.is_behind(other));
            if given_up || !self.work.restore(turn.now_ms, name, held) {
                // Somebody else has added some of it as well, or was told that none of it counts: this peer begins the step anew.
                self.clear(turn, name, held.stage, newest);
            }
        }
        self.answer_claims(turn);
        self.work.restored();
        if (0..self.config.stages).any(|s| !self.peers.stay_at(s)) {
            self.saving.want();
        }
        self.settle(turn);
        self.plan_save();
    }

    /// The newest step at which every stage has a peer that is there or can follow, and the scale of the update before it. A step that somebody claims to be at and nobody
    /// else is, counts for nothing.
    fn newest_whole<'a>(&self, held: impl Iterator<Item = &'a Held> + Clone) -> Option<(Step, Option<f32>)> {
        let mut steps: BTreeSet<Step> = held.clone().map(|h| h.step).collect();
        // This life may have decided an update that nobody has heard of.
        let decided = self.work.scale().map(|scale| (self.work.step(), scale));
        steps.extend(decided.map(|(step, _)| step));
        steps.into_iter().rev().find_map(|step| {
            let mut scales: BTreeMap<u32, usize> = BTreeMap::new();
            if let Some((_, scale)) = decided.filter(|(s, _)| *s == step) {
                scales.insert(scale.to_bits(), usize::MAX / 2);
            }
            let said = held.clone().filter(|h| h.step == step).filter_map(|h| h.scale);
            for scale in said.chain(self.gathering.scales_of_gone(step)) {
                *scales.entry(scale.to_bits()).or_default() += 1;
            }
            let scale =
                scales.into_iter().max_by_key(|(_, count)| *count).map(|(bits, _)| f32::from_bits(bits));
            let whole = (0..self.config.stages)
                .all(|s| held.clone().any(|h| h.stage == s && self.can_follow(h, step, scale)));
            whole.then_some((step, scale))
        })
    }

    /// Is a peer at this step, or can it make the last update before it?
    fn can_follow(&self, held: &Held, step: Step, scale: Option<f32>) -> bool {
        held.step == step || (held.step + 1 == step && scale.is_some() && self.holds_all_averages(held))
    }

    /// A peer empties its sums, of which everybody else knows nothing or something else; then it serves.
    pub(super) fn clear(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId, step: Step) {
        self.peers.place(name, Place::Clearing { stage });
        let attempt = self.work.attempt();
        turn.tell(name, ToPeer::Clear { step, attempt });
    }

    /// Has a peer every average that its update needs?
    pub(super) fn holds_all_averages(&self, held: &Held) -> bool {
        self.averages.of_stage(held.stage).iter().all(|s| held.averaged.contains_key(s))
    }
}
