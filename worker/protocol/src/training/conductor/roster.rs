//! The peers that are there, and what stage each serves: joining, and being lost.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::peer_state::{PeerState, Place};
use super::turn::Turn;
use super::{Conductor, Phase};
use crate::training::ids::{StageId, Step};
use crate::training::mates::Mates;
use crate::training::message::{Fetch, FetchFailure, Held, HeldSums, Mate, StateDigest, ToPeer, ToTrainer};
use crate::training::speed::Speed;

/// A fetch that failed is tried again after this long.
const RETRY_MS: u64 = 500;

impl Conductor {
    pub(super) fn peer_joins(&mut self, turn: &mut Turn<'_>, mate: Mate, held: Option<Held>) {
        let name = mate.name.clone();
        let state = PeerState {
            mate,
            place: Place::Idle,
            doomed_ms: None,
            leaving: false,
            moving: None,
            moved_ms: None,
            since_ms: turn.now_ms,
            fetch_since_ms: None,
            speed: Speed::default(),
            step: held.as_ref().map_or(0, |h| h.step),
            held: held.clone(),
            quiet_since_ms: turn.now_ms,
            claims: BTreeSet::new(),
            wrong_states: 0,
            gave: None,
            mates: Mates::default(),
        };
        self.peers.insert(name.clone(), state);
        match self.phase {
            Phase::Gathering => self.gathering.seen(turn.now_ms),
            Phase::Running | Phase::Finishing => match held {
                // It was away for a moment. Its keys went to others, its weights are right.
                Some(held) if held.step == self.work.step() && self.averages.collects(held.stage) => {
                    self.clear(turn, &name, held.stage, held.step);
                }
                // It has the update that a conductor without memory makes again: it waits for that step, with empty sums.
                Some(held) if held.step == self.work.step() + 1 => {
                    self.clear(turn, &name, held.stage, held.step);
                }
                // It missed the last decision, and has all that it needs to follow.
                Some(held)
                    if held.step + 1 == self.work.step()
                        && self.work.scale().is_some()
                        && self.holds_all_averages(&held)
                        && self.averages.collects(held.stage) =>
                {
                    let (scale, prove) = (self.work.scale().unwrap_or(1.0), self.proves(self.work.step()));
                    let apply = ToPeer::Apply { step: held.step, scale, prove };
                    turn.tell(&name, apply);
                    if held.sums.iter().skip(1).all(HeldSums::is_empty) {
                        self.place(&name, Place::Member { stage: held.stage });
                    } else {
                        // What it had added to the next step already went to others.
                        self.clear(turn, &name, held.stage, self.work.step());
                    }
                }
                // It is behind, or says that it is where nobody can be: what it has is brought up to date, or replaced.
                Some(held) if self.members_of(held.stage).next().is_some() => {
                    self.fetch(turn, &name, held.stage, false);
                }
                _ => self.settle(turn),
            },
            Phase::Finished | Phase::Suspended => turn.tell(&name, ToPeer::Retire),
            Phase::Failed(_) => {}
        }
    }

    /// Has anybody the state of a stage who serves it, or is about to?
    pub(super) fn is_held(&self, stage: StageId) -> bool {
        let holds = |place: &Place| matches!(place, Place::Member { stage: s } | Place::HandingOver { stage: s, .. } | Place::Clearing { stage: s } if *s == stage);
        self.peers.values().any(|p| holds(&p.place))
    }

    pub(super) fn place(&mut self, name: &PeerName, place: Place) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.place = place;
            self.roster_changed = true;
        }
    }

    /// A peer gets the state of a stage from its members; `whole`, or only what it misses.
    pub(super) fn fetch(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId, whole: bool) {
        let has = [Place::Member { stage }, Place::Clearing { stage }];
        let mates = self.peers.iter().filter(|(other, p)| *other != name && has.contains(&p.place));
        let mates: Vec<Mate> = mates.map(|(_, p)| p.mate.clone()).collect();
        self.place(name, Place::Fetching { stage });
        let step = self.work.step();
        turn.tell(name, ToPeer::Fetch(Fetch { stage, step, mates, whole }));
    }

    pub(super) fn ready(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        stage: StageId,
        step: Step,
        state: StateDigest,
    ) {
        let from_others = match self.peers.get(name).map(|p| &p.place) {
            Some(place) if *place == (Place::Fetching { stage }) => true,
            Some(place) if *place == (Place::Clearing { stage }) => false,
            _ => return,
        };
        if let Some(peer) = self.peers.get_mut(name) {
            peer.step = step;
            peer.gave = None;
        }
        if step > self.work.step() + 1 {
            let why =
                format!("it says that it is at step {step}, and the run is at step {}", self.work.step());
            self.expel(turn, [name.clone()], &why);
            return;
        }
        // What it has of its own counts as much as what others have, and so does an update that it has made itself.
        let copied = from_others && !self.trust.had_state(name, stage, step);
        let serves = |name: &PeerName| self.member_stage(name) == Some(stage);
        if copied && self.trust.differs((stage, step), &state, serves) {
            return self.wrong_state(turn, name, stage, step);
        }
        self.hear_state(name, (stage, step), state, copied);
        if self.phase == Phase::Gathering {
            // A start, or a start over, from a checkpoint: everybody serves once every stage is there.
            if step == self.work.step() {
                self.place(name, Place::Member { stage });
                if let Some(peer) = self.peers.get_mut(name) {
                    // Those were of what it had before.
                    peer.claims.clear();
                    peer.wrong_states = 0;
                }
            }
            return;
        }
        if step >= self.work.step() {
            self.fetched(turn.now_ms, name, stage);
        }
        if step == self.work.step() && self.averages.collects(stage) {
            self.place(name, Place::Member { stage });
        } else if step >= self.work.step() {
            self.place(name, Place::Parked { stage });
        } else {
            self.fetch(turn, name, stage, false);
        }
    }

    /// The state that a peer got is not the one that others have. It gets it once more; when that is wrong as well, it is the peer that is.
    fn wrong_state(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId, step: Step) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.wrong_states += 1;
        let why = format!("its state of stage {stage} at step {step} is not that of those who serve it");
        if peer.wrong_states > 1 {
            self.expel(turn, [name.clone()], &why);
            return;
        }
        turn.note(format!("{name}: {why}; it gets all of it again"));
        if self.phase == Phase::Gathering {
            self.place(name, Place::Idle);
        } else {
            self.fetch(turn, name, stage, true);
        }
    }

    pub(super) fn fetch_failed(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        stage: StageId,
        failure: FetchFailure,
        why: &str,
    ) {
        turn.note(format!("{name} could not get stage {stage}: {why}"));
        if let FetchFailure::Damaged(step) = failure {
            self.saving.doubt(turn, name, step);
        }
        if let Some(peer) = self.peers.get_mut(name)
            && matches!(peer.place, Place::Fetching { .. })
        {
            peer.place = Place::Idle;
            peer.fetch_since_ms = None;
            peer.held = None;
            if self.phase == Phase::Gathering {
                self.gathering.again(turn.now_ms + RETRY_MS);
            }
        }
    }

    /// A stream ended: a trainer's microbatches go to others, a peer's keys are open again.
    pub(super) fn gone(&mut self, turn: &mut Turn<'_>, name: &PeerName) {
        self.work.trainer_gone(name);
        let Some(peer) = self.peers.remove(name) else { return };
        self.roster_changed = true;
        self.forget_saver(turn, name);
        self.measured.peer_gone(turn.now_ms.saturating_sub(peer.since_ms));
        // When all is done everybody goes.
        let over = matches!(self.phase, Phase::Finished | Phase::Suspended | Phase::Failed(_));
        if peer.place != Place::Retired && !over {
            self.totals.lost += 1;
        }
        if !self.live() {
            return;
        }
        self.end_hand_overs_to(turn, name);
        match peer.place {
            Place::Member { stage } | Place::HandingOver { stage, to: None } => {
                self.member_gone(turn, name, stage);
            }
            Place::HandingOver { stage, to: Some(mate) } => {
                // One step's sums are on their way; those behind it are lost.
                if let Some((step, _)) = self.work.contributions(name, stage) {
                    for later in self.work.steps().filter(|s| *s > step) {
                        self.work.release(turn, later, stage, name);
                    }
                    self.doubts.begin(name.clone(), step, stage, mate);
                }
            }
            _ => {}
        }
    }

    /// `lost` takes no sums over any more: a peer that was handing over to it begins again, and those that left meanwhile have lost theirs with it.
    fn end_hand_overs_to(&mut self, turn: &mut Turn<'_>, lost: &PeerName) {
        for other in self.peers.values_mut() {
            if let Place::HandingOver { to, .. } = &mut other.place
                && to.as_ref() == Some(lost)
            {
                *to = None;
            }
        }
        for owner in self.doubts.with(lost) {
            if let Some(stage) = self.doubts.end(&owner) {
                self.reopen(turn, stage, &owner);
            }
        }
    }

    /// A member of `stage` is lost, with the sums that nobody else has.
    fn member_gone(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId) {
        // What it had added to a step behind that of the averages is lost in any case.
        for step in self.work.steps().skip(1) {
            self.work.release(turn, step, stage, name);
        }
        // Its sums are safe with the others once they hold all that these went into.
        let averaged = self.averages.leave_out(name, stage);
        if !averaged || self.members_of(stage).next().is_none() {
            self.reopen(turn, stage, name);
        }
        self.admit_parked();
        if self.members_of(stage).next().is_none() {
            // A peer that was about to leave is the last now, and stays as long as it can.
            let hands_over =
                |p: &PeerState| matches!(p.place, Place::HandingOver { stage: s, .. } if s == stage);
            let back: Vec<PeerName> =
                self.peers.iter().filter(|(_, p)| hands_over(p)).map(|(n, _)| n.clone()).collect();
            for other in back {
                self.stays_after_all(turn, &other, stage);
                self.saving.want();
            }
        }
        if self.members_of(stage).count() == 1 {
            self.save_for_one_left();
        }
        if self.members_of(stage).next().is_none() {
            turn.note(format!("stage {stage} has no peer left; {name} may come back"));
            self.stages[stage as usize].lost_ms = Some(turn.now_ms);
        }
    }

    /// Stages whose last peer had time to come back, and did not.
    pub(super) fn give_up_lost_stages(&mut self, turn: &mut Turn<'_>) {
        for stage in 0..self.config.stages {
            let comes = |p: &PeerState| matches!(p.place, Place::Clearing { stage: s } if s == stage);
            let served = self.members_of(stage).next().is_some() || self.peers.values().any(comes);
            if !self.live() || served {
                self.stages[stage as usize].lost_ms = None;
                continue;
            }
            let since = *self.stages[stage as usize].lost_ms.get_or_insert(turn.now_ms);
            if turn.now_ms >= since + self.config.gather_ms {
                self.stage_lost(turn, stage);
                return;
            }
        }
    }

    /// Those that came too late for the averages of this step, when these are formed anew: now they may take part.
    pub(super) fn admit_parked(&mut self) {
        let ready: Vec<(PeerName, StageId)> = self
            .peers
            .iter()
            .filter_map(|(name, p)| match p.place {
                Place::Parked { stage } if p.step == self.work.step() && self.averages.collects(stage) => {
                    Some((name.clone(), stage))
                }
                _ => None,
            })
            .collect();
        for (name, stage) in ready {
            self.place(&name, Place::Member { stage });
        }
    }

    /// The edge of a step: those that waited for it get the update they miss, leavers are free.
    pub(super) fn after_commit(&mut self, turn: &mut Turn<'_>) {
        let all: Vec<(PeerName, Place)> =
            self.peers.iter().map(|(n, p)| (n.clone(), p.place.clone())).collect();
        for (name, place) in all {
            match place {
                Place::Parked { stage }
                    if self.peers.get(&name).is_some_and(|p| p.step < self.work.step()) =>
                {
                    self.fetch(turn, &name, stage, false);
                }
                Place::HandingOver { stage, .. } if self.has_nothing(&name, stage) => {
                    self.released(turn, &name);
                }
                _ => {}
            }
        }
        self.plan_save();
        self.rebalance(turn);
    }

    pub(super) fn roster(&self) -> ToTrainer {
        let mates = |stage| {
            self.members_of(stage).filter_map(|n| self.peers.get(n)).map(|p| p.mate.clone()).collect()
        };
        let closes = |p: &PeerState| matches!(p.place, Place::HandingOver { .. });
        let closing = self.peers.iter().filter(|(_, p)| closes(p)).map(|(n, _)| n.clone()).collect();
        let stages = if self.live() {
            (0..self.config.stages).map(mates).collect()
        } else {
            vec![Vec::new(); self.config.stages as usize]
        };
        ToTrainer::Roster { stages, closing }
    }

    /// When it changed, trainers are told who serves what, and peers which others they give values to.
    pub(super) fn tell_roster(&mut self, turn: &mut Turn<'_>) {
        if !std::mem::take(&mut self.roster_changed) {
            return;
        }
        let roster = self.roster();
        self.work.tell_trainers(turn, &roster);
        self.tell_mates(turn);
    }
}
