//! The peers that are there, and what stage each serves: joining, and being lost.

use dunlin_swarm::PeerName;

use super::machines::doubts::Doubt;
use super::machines::peer::Place;
use super::turn::Turn;
use super::{Conductor, Phase};
use crate::training::ids::{StageId, Step};
use crate::training::message::{Fetch, FetchFailure, Held, HeldSums, Mate, StateDigest, ToPeer, ToTrainer};

/// A fetch that failed is tried again after this long.
const RETRY_MS: u64 = 500;

impl Conductor {
    pub(super) fn peer_joins(&mut self, turn: &mut Turn<'_>, mate: Mate, held: Option<Held>) {
        let name = mate.name.clone();
        self.peers.join(turn.now_ms, mate, held.clone());
        match self.phase {
            Phase::Gathering => {
                self.gathering.seen(turn.now_ms);
                if held.is_some_and(|held| held.scale.is_some()) {
                    self.gathering.back(&name);
                }
            }
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
                        self.peers.place(&name, Place::Member { stage: held.stage });
                    } else {
                        // What it had added to the next step already went to others.
                        self.clear(turn, &name, held.stage, self.work.step());
                    }
                }
                // It is behind, or says that it is where nobody can be: what it has is brought up to date, or replaced.
                Some(held) if self.peers.serve(held.stage) => {
                    self.fetch(turn, &name, held.stage, false);
                }
                _ => self.settle(turn),
            },
            Phase::Finished | Phase::Suspended => turn.tell(&name, ToPeer::Retire),
            Phase::Failed(_) => {}
        }
    }

    /// A peer gets the state of a stage from its members; `whole`, or only what it misses.
    pub(super) fn fetch(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId, whole: bool) {
        let has = [Place::Member { stage }, Place::Clearing { stage }];
        let mates = self.peers.all().iter().filter(|(other, p)| *other != name && has.contains(&p.place));
        let mates: Vec<Mate> = mates.map(|(_, p)| p.mate.clone()).collect();
        self.peers.place(name, Place::Fetching { stage });
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
        self.peers.got_state(name, step);
        if step > self.work.step() + 1 {
            return self.is_nowhere(turn, name, step);
        }
        // What it has of its own counts as much as what others have, and so does an update that it has made itself.
        let copied = from_others && !self.trust.had_state(name, stage, step);
        let serves = |name: &PeerName| self.peers.member_stage(name) == Some(stage);
        if copied && self.trust.differs((stage, step), &state, serves) {
            return self.wrong_state(turn, name, stage, step);
        }
        self.hear_state(name, (stage, step), state, copied);
        if self.phase == Phase::Gathering {
            // A start, or a start over, from a checkpoint: everybody serves once every stage is there.
            if step == self.work.step() {
                self.peers.place(name, Place::Member { stage });
                self.peers.begin(name);
            }
            return;
        }
        if step >= self.work.step() {
            self.fetched(turn.now_ms, name, stage);
        }
        if step == self.work.step() && self.averages.collects(stage) {
            self.peers.place(name, Place::Member { stage });
        } else if step >= self.work.step() {
            self.peers.place(name, Place::Parked { stage });
        } else {
            self.fetch(turn, name, stage, false);
        }
    }

    /// The state that a peer got is not the one that others have. It gets it once more; when that is wrong as well, it is the peer that is.
    fn wrong_state(&mut self, turn: &mut Turn<'_>, name: &PeerName, stage: StageId, step: Step) {
        let Some(times) = self.peers.got_wrong_state(name) else { return };
        let why = format!("its state of stage {stage} at step {step} is not that of those who serve it");
        if times > 1 {
            self.expel(turn, [name.clone()], &why);
            return;
        }
        turn.note(format!("{name}: {why}; it gets all of it again"));
        if self.phase == Phase::Gathering {
            self.peers.place(name, Place::Idle);
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
        if self.peers.fetch_failed(name) && self.phase == Phase::Gathering {
            self.gathering.again(turn.now_ms + RETRY_MS);
        }
    }

    /// A stream ended: a trainer's microbatches go to others, a peer's keys are open again.
    pub(super) fn gone(&mut self, turn: &mut Turn<'_>, name: &PeerName) {
        self.work.trainer_gone(name);
        let Some(peer) = self.peers.gone(name) else { return };
        self.forget_saver(turn, name);
        self.measured.peer_gone(turn.now_ms.saturating_sub(peer.since_ms));
        // When all is done everybody goes.
        let over = matches!(self.phase, Phase::Finished | Phase::Suspended | Phase::Failed(_));
        if peer.place != Place::Retired && !over {
            self.peers.count_lost();
        }
        if self.phase == Phase::Gathering
            && peer.place != Place::Retired
            && let Some(Held { step, scale: Some(scale), .. }) = peer.held
        {
            self.gathering.gone(name, step, scale);
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
                if let Some((step, contributions)) = self.work.contributions(name, stage) {
                    for later in self.work.steps().filter(|s| *s > step) {
                        self.work.release(turn, later, stage, name);
                    }
                    self.work.transfer(step, stage, name, &mate);
                    let microbatches = contributions.iter().map(|c| c.microbatch).collect();
                    self.doubts.begin(name.clone(), Doubt { step, stage, mate, microbatches });
                }
            }
            _ => {}
        }
    }

    /// `lost` takes no sums over any more: a peer that was handing over to it begins again, and those that left meanwhile have lost theirs with it.
    pub(super) fn end_hand_overs_to(&mut self, turn: &mut Turn<'_>, lost: &PeerName) {
        self.peers.end_takes_by(lost);
        for owner in self.doubts.with(lost) {
            self.not_taken(turn, &owner);
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
        if !averaged || !self.peers.serve(stage) {
            self.reopen(turn, stage, name);
        }
        self.admit_parked();
        if !self.peers.serve(stage) {
            // A peer that was about to leave is the last now, and stays as long as it can.
            for other in self.peers.handing_over(stage) {
                self.stays_after_all(turn, &other, stage);
                self.saving.want();
            }
        }
        self.save_if_one_is_left(stage);
        if !self.peers.serve(stage) {
            turn.note(format!("stage {stage} has no peer left; {name} may come back"));
            self.peers.lose_stage(turn.now_ms, stage);
        }
    }

    /// Stages whose last peer had time to come back, and did not.
    pub(super) fn give_up_lost_stages(&mut self, turn: &mut Turn<'_>) {
        for stage in 0..self.config.stages {
            let served = self.peers.serve(stage) || self.peers.any(|p| p.place == Place::Clearing { stage });
            if !self.live() || served {
                self.peers.regain_stage(stage);
                continue;
            }
            let since = self.peers.lost_since(turn.now_ms, stage);
            if turn.now_ms >= since + self.config.gather_ms {
                self.stage_lost(turn, stage);
                return;
            }
        }
    }

    /// Those that came too late for the averages of this step, when these are formed anew: now they may take part.
    pub(super) fn admit_parked(&mut self) {
        let ready = self.peers.those_at(|p| match p.place {
            Place::Parked { stage } if p.step == self.work.step() && self.averages.collects(stage) => {
                Some(stage)
            }
            _ => None,
        });
        for (name, stage) in ready {
            self.peers.place(&name, Place::Member { stage });
        }
    }

    /// The edge of a step: those that waited for it get the update they miss, leavers are free.
    pub(super) fn after_commit(&mut self, turn: &mut Turn<'_>) {
        let all: Vec<(PeerName, Place)> =
            self.peers.all().iter().map(|(n, p)| (n.clone(), p.place.clone())).collect();
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
        let mates =
            |stage| self.peers.of(stage).filter_map(|n| self.peers.get(n)).map(|p| p.mate.clone()).collect();
        let closing = self.peers.those(|p| matches!(p.place, Place::HandingOver { .. }));
        let stages = if self.live() {
            (0..self.config.stages).map(mates).collect()
        } else {
            vec![Vec::new(); self.config.stages as usize]
        };
        ToTrainer::Roster { stages, closing }
    }

    /// When it changed, trainers are told who serves what, and peers which others they give values to.
    pub(super) fn tell_roster(&mut self, turn: &mut Turn<'_>) {
        if !self.peers.take_change() {
            return;
        }
        let roster = self.roster();
        self.work.tell_trainers(turn, &roster);
        self.tell_mates(turn);
    }
}
