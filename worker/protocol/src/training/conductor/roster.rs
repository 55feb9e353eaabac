//! Who is there, and what stage each serves.

use dunlin_planner::PeerName;

use super::{Conductor, ConductorEffect, InDoubt, PeerState, Phase, Place};
use crate::training::mates::Mates;
use crate::training::message::{
    Contribution, FetchFailure, Held, HeldSums, Mate, StageId, Step, ToPeer, ToTrainer,
};
use crate::training::speed::Speed;

/// A fetch that failed is tried again after this long.
const RETRY_MS: u64 = 500;
/// A peer may owe something for so many times as long as it may keep a microbatch from others.
const QUIET: u64 = 3;

impl Conductor {
    pub(super) fn peer_joins(
        &mut self,
        now_ms: u64,
        mate: Mate,
        held: Option<Held>,
        out: &mut Vec<ConductorEffect>,
    ) {
        let name = mate.name.clone();
        let held = held.filter(|h| h.stage < self.config.stages);
        let state = PeerState {
            mate,
            place: Place::Idle,
            doomed_ms: None,
            leaving: false,
            moving: None,
            moved_ms: None,
            since_ms: now_ms,
            fetch_since_ms: None,
            speed: Speed::default(),
            step: held.as_ref().map_or(0, |h| h.step),
            held: held.clone(),
            quiet_since_ms: now_ms,
            claims: Vec::new(),
            mates: Mates::default(),
        };
        self.peers.insert(name.clone(), state);
        match self.phase {
            Phase::Gathering => self.gathering.seen(now_ms),
            Phase::Running | Phase::Finishing => match held {
                // It was away for a moment. Its keys went to others, its weights are right.
                Some(held) if held.step == self.step && self.collecting(held.stage) => {
                    out.push(ConductorEffect::ToPeer(name.clone(), ToPeer::Clear { step: self.step }));
                    self.place(&name, Place::Fetching { stage: held.stage });
                }
                // It has updates that a conductor without memory, or with an older checkpoint, makes again: it waits for that step, with
                // empty sums.
                Some(held) if held.step > self.step => {
                    out.push(ConductorEffect::ToPeer(name.clone(), ToPeer::Clear { step: held.step }));
                    self.place(&name, Place::Fetching { stage: held.stage });
                }
                // It missed the last decision, and has all that it needs to follow.
                Some(held)
                    if held.step + 1 == self.step
                        && self.last_scale.is_some()
                        && self.holds_all_averages(&held)
                        && self.collecting(held.stage) =>
                {
                    let apply = ToPeer::Apply { step: held.step, scale: self.last_scale.unwrap_or(1.0) };
                    out.push(ConductorEffect::ToPeer(name.clone(), apply));
                    if held.sums.iter().skip(1).all(HeldSums::is_empty) {
                        self.place(&name, Place::Member { stage: held.stage });
                    } else {
                        // What it had added to the next step already went to others.
                        out.push(ConductorEffect::ToPeer(name.clone(), ToPeer::Clear { step: self.step }));
                        self.place(&name, Place::Fetching { stage: held.stage });
                    }
                }
                Some(held) if held.step <= self.step && self.members_of(held.stage).next().is_some() => {
                    self.fetch(&name, held.stage, out);
                }
                _ => self.settle(now_ms, out),
            },
            Phase::Finished | Phase::Suspended => out.push(ConductorEffect::ToPeer(name, ToPeer::Retire)),
            Phase::Failed(_) => {}
        }
    }

    /// Are the keys of a stage still being done? Afterwards nobody can join it in this step.
    fn collecting(&self, stage: StageId) -> bool {
        self.shards_of(stage).iter().all(|&s| self.shards[s as usize].averaging.is_none())
    }

    pub(super) fn place(&mut self, name: &PeerName, place: Place) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.place = place;
            self.roster_changed = true;
        }
    }

    pub(super) fn fetch(&mut self, name: &PeerName, stage: StageId, out: &mut Vec<ConductorEffect>) {
        let mates: Vec<Mate> =
            self.members_of(stage).filter_map(|n| self.peers.get(n)).map(|p| p.mate.clone()).collect();
        self.place(name, Place::Fetching { stage });
        out.push(ConductorEffect::ToPeer(name.clone(), ToPeer::Fetch { stage, step: self.step, mates }));
    }

    pub(super) fn ready(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        stage: StageId,
        step: Step,
        out: &mut Vec<ConductorEffect>,
    ) {
        match self.peers.get_mut(name) {
            Some(peer) if peer.place == (Place::Fetching { stage }) => peer.step = step,
            _ => return,
        }
        if self.phase == Phase::Gathering {
            // A start, or a start over, from a checkpoint: everybody serves once every stage is there.
            if step == self.step {
                self.place(name, Place::Member { stage });
                if let Some(peer) = self.peers.get_mut(name) {
                    // Those were of what it had before.
                    peer.claims.clear();
                }
            }
            return;
        }
        if step >= self.step {
            self.fetched(now_ms, name, stage);
        }
        if step == self.step && self.collecting(stage) {
            self.place(name, Place::Member { stage });
        } else if step >= self.step {
            self.place(name, Place::Parked { stage });
        } else {
            self.fetch(name, stage, out);
        }
    }

    pub(super) fn fetch_failed(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        stage: StageId,
        failure: FetchFailure,
        why: &str,
        out: &mut Vec<ConductorEffect>,
    ) {
        out.push(ConductorEffect::Note(format!("{name} could not get stage {stage}: {why}")));
        if let FetchFailure::Damaged(step) = failure {
            self.doubt_checkpoint(now_ms, name, step, out);
        }
        if let Some(peer) = self.peers.get_mut(name)
            && matches!(peer.place, Place::Fetching { .. })
        {
            peer.place = Place::Idle;
            peer.fetch_since_ms = None;
            peer.held = None;
            if self.phase == Phase::Gathering {
                self.gathering.again(now_ms + RETRY_MS);
            }
        }
    }

    /// A stream ended: a trainer's microbatches go to others, a peer's keys are open again.
    pub(super) fn gone(&mut self, now_ms: u64, name: &PeerName, out: &mut Vec<ConductorEffect>) {
        if let Some(work) = self.trainers.remove(name) {
            for (step, microbatch) in work {
                if let Some(index) = self.index(step) {
                    self.open[index].todo.insert(microbatch);
                }
            }
        }
        let Some(peer) = self.peers.remove(name) else { return };
        self.roster_changed = true;
        self.forget_saver(now_ms, name, out);
        self.measured.peer_gone(now_ms.saturating_sub(peer.since_ms));
        // When all is done everybody goes.
        let over = matches!(self.phase, Phase::Finished | Phase::Suspended | Phase::Failed(_));
        if peer.place != Place::Retired && !over {
            self.totals.lost += 1;
        }
        if !self.live() {
            return;
        }
        // Whoever was handing over to it begins again; those already lost have lost their sums with it.
        for other in self.peers.values_mut() {
            if let Place::HandingOver { to, .. } = &mut other.place
                && to.as_ref() == Some(name)
            {
                *to = None;
            }
        }
        let doubts: Vec<(PeerName, StageId)> = self
            .in_doubt
            .iter()
            .filter(|(_, d)| d.mate == *name)
            .map(|(n, d)| (n.clone(), d.stage))
            .collect();
        for (lost, stage) in doubts {
            self.in_doubt.remove(&lost);
            self.reopen(now_ms, stage, &lost, out);
        }
        let stage = match peer.place {
            Place::Member { stage } | Place::HandingOver { stage, to: None } => stage,
            Place::HandingOver { stage, to: Some(mate) } => {
                // One step's sums are on their way; those behind it are lost.
                if let Some((step, _)) = self.contributions(name, stage) {
                    for later in self.open_steps().filter(|s| *s > step) {
                        self.release(now_ms, later, stage, name, out);
                    }
                    self.in_doubt.insert(name.clone(), InDoubt { step, stage, mate });
                }
                return;
            }
            _ => return,
        };
        // What it had added to a step behind that of the averages is lost in any case.
        for step in self.open_steps().skip(1) {
            self.release(now_ms, step, stage, name, out);
        }
        // When all others hold every average that it was part of, its contributions are safe there.
        let mut safe = self.members_of(stage).next().is_some();
        for shard in self.shards_of(stage) {
            if let Some(averaging) = &mut self.shards[shard as usize].averaging {
                averaging.group.remove(name);
                averaging.squares.remove(name);
                safe &= averaging.complete();
            } else {
                safe = false;
            }
        }
        if !safe {
            self.reopen(now_ms, stage, name, out);
        }
        self.admit_parked();
        if self.members_of(stage).next().is_none() {
            // Whoever was about to leave is the last now, and stays as long as it can.
            let hands_over =
                |p: &PeerState| matches!(p.place, Place::HandingOver { stage: s, .. } if s == stage);
            let back: Vec<PeerName> =
                self.peers.iter().filter(|(_, p)| hands_over(p)).map(|(n, _)| n.clone()).collect();
            for other in back {
                self.stays_after_all(&other, stage);
                self.saving.want_now(self.config.saves);
            }
        }
        if self.members_of(stage).count() == 1 {
            self.save_for_one_left();
        }
        if self.members_of(stage).next().is_none() {
            out.push(ConductorEffect::Note(format!("stage {stage} has no peer left; {name} may come back")));
            self.stages[stage as usize].lost_ms = Some(now_ms);
        }
    }

    /// Stages whose last peer had time to come back, and did not.
    pub(super) fn give_up_lost_stages(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        for stage in 0..self.config.stages {
            if !self.live() || self.members_of(stage).next().is_some() {
                self.stages[stage as usize].lost_ms = None;
                continue;
            }
            let since = *self.stages[stage as usize].lost_ms.get_or_insert(now_ms);
            if now_ms >= since + self.config.gather_ms {
                self.stage_lost(now_ms, stage, out);
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
                Place::Parked { stage } if p.step == self.step && self.collecting(stage) => {
                    Some((name.clone(), stage))
                }
                _ => None,
            })
            .collect();
        for (name, stage) in ready {
            self.place(&name, Place::Member { stage });
        }
    }

    /// Peers that owe something and have brought nothing for long, though their streams work.
    pub(super) fn quiet(&mut self, now_ms: u64) -> Vec<PeerName> {
        let limit = QUIET * self.config.claim_ms_max;
        let mut quiet = Vec::new();
        let names: Vec<PeerName> = self.peers.keys().cloned().collect();
        for name in names {
            let owes = self.owes(&name);
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            if !owes {
                peer.quiet_since_ms = now_ms;
            } else if now_ms > peer.quiet_since_ms + limit {
                quiet.push(name);
            }
        }
        quiet
    }

    /// Does anybody wait for this peer: for a microbatch, an average, an update, sums of a mate, a file?
    fn owes(&self, name: &PeerName) -> bool {
        let Some(peer) = self.peers.get(name).filter(|_| self.live()) else { return false };
        let (Place::Member { stage } | Place::HandingOver { stage, .. }) = peer.place else { return false };
        let takes = |p: &PeerState| matches!(&p.place, Place::HandingOver { to: Some(to), .. } if to == name);
        let averages = |s: &super::ShardState| {
            s.averaging.as_ref().is_some_and(|a| a.group.contains(name) && !a.squares.contains_key(name))
        };
        self.ledgers(stage).any(|(_, ledger)| ledger.is_busy(name))
            || (peer.step < self.step && self.member_stage(name).is_some())
            || self.shards.iter().any(averages)
            || self.peers.values().any(takes)
            || self.in_doubt.values().any(|d| d.mate == *name)
            || self.saving.waits_for(name)
    }

    /// A peer will be gone: those without work go at once, others serve on as long as there is time.
    pub(super) fn doomed(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        within_ms: u64,
        out: &mut Vec<ConductorEffect>,
    ) {
        let (live, hand_over_ms) = (self.live(), self.config.hand_over_ms);
        let Some(peer) = self.peers.get_mut(name) else { return };
        let doomed_ms = now_ms + within_ms;
        peer.doomed_ms = Some(peer.doomed_ms.map_or(doomed_ms, |before| before.min(doomed_ms)));
        match peer.place {
            Place::Member { stage } if live && within_ms > hand_over_ms => {
                self.last_will_leave(now_ms, name, stage, out)
            }
            _ => self.leaving(now_ms, name, out),
        }
    }

    /// Those whose time is nearly up.
    pub(super) fn leave_in_time(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        let due = |p: &PeerState| {
            !p.leaving && p.doomed_ms.is_some_and(|at| now_ms + self.config.hand_over_ms >= at)
        };
        let due: Vec<PeerName> =
            self.peers.iter().filter(|(_, p)| due(p)).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.leaving(now_ms, &name, out);
        }
    }

    /// A peer will be gone. When it is the last of its stage that was to stay, what it knows must be on disk before it goes, and somebody
    /// else must come.
    fn last_will_leave(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        stage: StageId,
        out: &mut Vec<ConductorEffect>,
    ) {
        if self.stays(stage) {
            return;
        }
        // Whoever was about to go to another stage, and has not begun to hand over, stays instead.
        let back: Vec<PeerName> = self
            .peers
            .iter()
            .filter(|(_, p)| p.place == Place::HandingOver { stage, to: None } && p.doomed_ms.is_none())
            .map(|(n, _)| n.clone())
            .collect();
        if back.is_empty() {
            self.saving.want_now(self.config.saves);
            out.push(ConductorEffect::Note(format!(
                "{name}, the last peer of stage {stage}, will leave: a checkpoint is written at the end of this step"
            )));
            self.settle(now_ms, out);
        }
        for other in back {
            self.stays_after_all(&other, stage);
        }
    }

    /// A peer will be gone soon: it gets no more work and hands its sums to a mate.
    fn leaving(&mut self, now_ms: u64, name: &PeerName, out: &mut Vec<ConductorEffect>) {
        let live = self.live();
        let Some(peer) = self.peers.get_mut(name) else { return };
        if std::mem::replace(&mut peer.leaving, true) {
            return;
        }
        if self.phase == Phase::Gathering && peer.held.is_some() {
            // What it holds counts; it goes when the step goes on.
            return;
        }
        match peer.place {
            Place::Member { stage } if live => self.last_will_leave(now_ms, name, stage, out),
            Place::Member { .. } | Place::HandingOver { .. } => {}
            Place::Idle | Place::Fetching { .. } | Place::Parked { .. } | Place::Retired => {
                self.place(name, Place::Retired);
                out.push(ConductorEffect::ToPeer(name.clone(), ToPeer::Retire));
            }
        }
    }

    /// Has a stage a peer that will not be gone, as far as is known?
    pub(super) fn stays(&self, stage: StageId) -> bool {
        self.members_of(stage).any(|n| self.peers.get(n).is_some_and(|p| p.doomed_ms.is_none()))
    }

    /// Has a stage a peer that does not leave yet?
    fn is_relieved(&self, stage: StageId) -> bool {
        self.members_of(stage).any(|n| self.peers.get(n).is_some_and(|p| !p.leaving))
    }

    pub(super) fn handing_over(&self, stage: StageId) -> bool {
        self.peers.values().any(|p| matches!(p.place, Place::HandingOver { stage: s, .. } if s == stage))
            || self.in_doubt.values().any(|d| d.stage == stage)
    }

    /// Hand-overs that can begin: the leaver has computed what it had claimed, and a mate is there. One whose averages are under way
    /// stays until the step is decided.
    pub(super) fn try_hand_over(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        // The last of a stage may go once somebody else has come. When one shard of it is being averaged, the others have to be as well, with
        // the same peers.
        let relieved: Vec<(PeerName, StageId)> = self
            .peers
            .iter()
            .filter(|(_, p)| p.leaving)
            .filter_map(|(name, p)| match p.place {
                Place::Member { stage } if self.is_relieved(stage) && self.collecting(stage) => {
                    Some((name.clone(), stage))
                }
                _ => None,
            })
            .collect();
        for (name, stage) in relieved {
            self.relieve(&name, stage, out);
        }
        let waiting: Vec<(PeerName, StageId)> = self
            .peers
            .iter()
            .filter_map(|(name, peer)| match &peer.place {
                Place::HandingOver { stage, to: None } => Some((name.clone(), *stage)),
                _ => None,
            })
            .collect();
        for (name, stage) in waiting {
            if self.occupied(&name, stage) {
                continue;
            }
            let Some((step, contributions)) = self.contributions(&name, stage) else {
                self.released(now_ms, &name, out);
                continue;
            };
            // One mate at a time takes from one leaver, and it must not be leaving itself.
            let busy = |mate: &PeerName| {
                self.peers
                    .values()
                    .any(|p| matches!(&p.place, Place::HandingOver { to: Some(t), .. } if t == mate))
            };
            // Rather one that stays.
            let stays = |mate: &&PeerName| self.peers.get(*mate).is_some_and(|p| p.doomed_ms.is_none());
            let free: Vec<&PeerName> = self.members_of(stage).filter(|mate| !busy(mate)).collect();
            let mate = free.iter().copied().find(stays).or(free.first().copied()).cloned();
            let from = self.peers.get(&name).map(|p| p.mate.clone());
            if let (Some(mate), Some(from)) = (mate, from) {
                self.place(&name, Place::HandingOver { stage, to: Some(mate.clone()) });
                out.push(ConductorEffect::ToPeer(mate, ToPeer::Take { step, from, contributions }));
            }
        }
    }

    /// A peer takes nothing new from now on.
    pub(super) fn relieve(&mut self, name: &PeerName, stage: StageId, out: &mut Vec<ConductorEffect>) {
        self.place(name, Place::HandingOver { stage, to: None });
        // What it waits for it must not get once its sums are on their way to a mate.
        for (step, open) in (self.step..).zip(&mut self.open) {
            for microbatch in open.ledgers[stage as usize].refuse_waiting(name) {
                let refusal = ToPeer::Grant { step, microbatch, granted: false };
                out.push(ConductorEffect::ToPeer(name.clone(), refusal));
            }
        }
    }

    /// A peer on its way out serves on.
    fn stays_after_all(&mut self, name: &PeerName, stage: StageId) {
        self.place(name, Place::Member { stage });
        if let Some(peer) = self.peers.get_mut(name) {
            peer.moving = None;
        }
    }

    /// Is there something that a peer does before it can hand over?
    fn occupied(&self, name: &PeerName, stage: StageId) -> bool {
        let averages = self
            .shards_of(stage)
            .iter()
            .any(|&s| self.shards[s as usize].averaging.as_ref().is_some_and(|a| a.group.contains(name)));
        // Sums that it is given, or has been given without a word yet, are handed over with its own.
        let gives = |p: &PeerState| matches!(&p.place, Place::HandingOver { to: Some(to), .. } if to == name);
        averages
            || self.peers.values().any(gives)
            || self.in_doubt.values().any(|d| d.mate == *name)
            || self.ledgers(stage).any(|(_, ledger)| ledger.is_busy(name))
    }

    /// What a peer of a stage has added to the oldest step that it has added anything to.
    fn contributions(&self, name: &PeerName, stage: StageId) -> Option<(Step, Vec<Contribution>)> {
        let mut all = self.ledgers(stage).map(|(step, ledger)| (step, ledger.of(name)));
        all.find(|(_, contributions)| !contributions.is_empty())
    }

    /// Can a peer of a stage go without a word?
    pub(super) fn has_nothing(&self, name: &PeerName, stage: StageId) -> bool {
        !self.occupied(name, stage) && self.contributions(name, stage).is_none()
    }

    pub(super) fn taken(
        &mut self,
        now_ms: u64,
        mate: &PeerName,
        step: Step,
        from: &PeerName,
        out: &mut Vec<ConductorEffect>,
    ) {
        let Some(index) = self.index(step) else { return };
        if let Some(doubt) = self.in_doubt.get(from) {
            // Lost, but its sums are safe.
            if doubt.step == step && doubt.mate == *mate {
                self.open[index].ledgers[doubt.stage as usize].transfer(from, mate);
                self.in_doubt.remove(from);
            }
            return;
        }
        let Some(peer) = self.peers.get_mut(from) else { return };
        let Place::HandingOver { stage, to } = &mut peer.place else { return };
        if to.as_ref() != Some(mate) {
            return;
        }
        let stage = *stage;
        *to = None;
        self.open[index].ledgers[stage as usize].transfer(from, mate);
        if self.has_nothing(from, stage) {
            self.released(now_ms, from, out);
        }
    }

    pub(super) fn take_failed(
        &mut self,
        now_ms: u64,
        step: Step,
        from: &PeerName,
        out: &mut Vec<ConductorEffect>,
    ) {
        if self.index(step).is_none() {
            return;
        }
        if let Some(doubt) = self.in_doubt.remove(from) {
            self.reopen(now_ms, doubt.stage, from, out);
        }
        if let Some(PeerState { place: Place::HandingOver { to, .. }, .. }) = self.peers.get_mut(from) {
            *to = None;
        }
    }

    /// The edge of a step: those that waited for it get the update they miss, leavers are free.
    pub(super) fn after_commit(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        let all: Vec<(PeerName, Place)> =
            self.peers.iter().map(|(n, p)| (n.clone(), p.place.clone())).collect();
        for (name, place) in all {
            match place {
                Place::Parked { stage } if self.peers.get(&name).is_some_and(|p| p.step < self.step) => {
                    self.fetch(&name, stage, out);
                }
                Place::HandingOver { stage, .. } if self.has_nothing(&name, stage) => {
                    self.released(now_ms, &name, out);
                }
                _ => {}
            }
        }
        self.plan_save();
        self.rebalance(now_ms, out);
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

    /// Trainers learn who serves what, and peers to whom they give values, when it changed.
    pub(super) fn tell_roster(&mut self, out: &mut Vec<ConductorEffect>) {
        if !std::mem::take(&mut self.roster_changed) {
            return;
        }
        let roster = self.roster();
        for name in self.trainers.keys() {
            out.push(ConductorEffect::ToTrainer(name.clone(), roster.clone()));
        }
        self.tell_mates(out);
    }
}
