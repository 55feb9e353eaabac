//! Who serves which stage: [`dunlin_planner::rebalance`] is asked, and obeyed.
//!
//! Newcomers are placed as they come. A peer that serves changes its stage at the edge of a step, when its sums are empty; in the middle of
//! one only for a stage that nobody else will serve. Sums that it has, then or of a step that was begun already, a mate takes as from
//! one that leaves. Either way it then gets the state of its new stage from mates, as a newcomer does, while the others go on.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_planner::rebalance::{
    self, Fetching, Move, MoveKind, Peer, PipelineStage, PipelineView, RebalancePlan, RebalancePolicy,
};
use dunlin_planner::speed::even_out;
use dunlin_swarm::PeerName;

use super::machines::peer::{Moving, PeerRecord, Place};
use super::turn::Turn;
use super::{Conductor, ConductorEffect, Moved, Phase};
use crate::training::ids::StageId;
use crate::training::message::ToPeer;
use crate::training::wiring::BACKWARD_ROWS;

/// Peers whose speed differs from the usual by no more than this factor count as equal: measurements vary by that much on machines that
/// do something else as well.
const ALIKE: f64 = 1.25;
/// Peers that every stage should have: the loss of one of a pair costs nothing.
const PAIR: usize = 2;

impl Conductor {
    /// Peers without a stage get one. A stage without anybody who stays gets somebody, if others can spare one.
    pub(super) fn settle(&mut self, turn: &mut Turn<'_>) {
        if !self.live() {
            return;
        }
        let needy: Vec<StageId> = (0..self.config.stages).filter(|s| self.needs_somebody(*s)).collect();
        if needy.is_empty() && self.peers.all().values().all(|p| p.place != Place::Idle) {
            return;
        }
        // But for those stages nobody moves in the middle of a step.
        let plan = self.plan(turn.now_ms, needy.is_empty() || self.averages.are_under_way());
        self.obey(turn, plan, |to| needy.contains(&to));
    }

    /// The edge of a step: whoever is of more use elsewhere goes.
    pub(super) fn rebalance(&mut self, turn: &mut Turn<'_>) {
        self.measured.edge(turn.now_ms);
        if self.live() {
            let plan = self.plan(turn.now_ms, self.phase != Phase::Running || self.suspend);
            self.obey(turn, plan, |_| true);
        }
    }

    /// Has a stage only peers that will be gone, and is nobody on the way to it?
    fn needs_somebody(&self, stage: StageId) -> bool {
        let comes = |p: &PeerRecord| match p.place {
            Place::Fetching { stage: to } | Place::Parked { stage: to } => {
                to == stage && p.doomed_ms.is_none()
            }
            Place::HandingOver { .. } => p.moving.as_ref().is_some_and(|m| m.to == stage),
            _ => false,
        };
        self.phase == Phase::Running
            && self.peers.serve(stage)
            && !self.peers.stay_at(stage)
            && !self.peers.any(comes)
    }

    fn policy(&self) -> RebalancePolicy {
        let policy = &self.config.policy;
        // Peers hold one state at a time.
        RebalancePolicy {
            step_ms: self.measured.step_ms().unwrap_or(policy.step_ms),
            shadows: false,
            ..policy.clone()
        }
    }

    /// What the planner makes of the swarm as it is now.
    fn plan(&self, now_ms: u64, averaging: bool) -> RebalancePlan {
        let peers = self.peers.all().iter().filter_map(|(name, p)| self.seen(now_ms, name, p)).collect();
        rebalance::rebalance(&self.view(now_ms, peers, averaging), &self.policy())
    }

    fn view(&self, now_ms: u64, mut peers: Vec<Peer>, averaging: bool) -> PipelineView {
        let rates: Vec<f64> = peers.iter().map(|p| p.rows_per_s).collect();
        for (peer, rate) in peers.iter_mut().zip(even_out(&rates, ALIKE)) {
            peer.rows_per_s = rate;
        }
        let cost = |stage: usize| self.config.costs.get(stage).copied().unwrap_or(1.0);
        let stay = peers.iter().filter(|p| p.doomed_ms.is_none()).count();
        // A pair for every stage, if there are so many.
        let peers_wanted = if stay >= PAIR * self.config.stages as usize { PAIR } else { 1 };
        let stage =
            |(stage, &fetch_ms)| PipelineStage { cost: cost(stage), fetch_ms, peers_wanted, peers_min: 1 };
        let stages = self.measured.fetch_ms().iter().enumerate().map(stage).collect();
        PipelineView { now_ms, stages, peers, averaging }
    }

    /// A peer as the planner sees it; `None` for one that is about to end.
    fn seen(&self, now_ms: u64, name: &PeerName, peer: &PeerRecord) -> Option<Peer> {
        let fetching = |stage: StageId| {
            let stage = stage as usize;
            let begun_ms = peer.fetch_since_ms.unwrap_or(now_ms);
            Some(Fetching { stage, ready_ms: (begun_ms + self.measured.fetch_ms()[stage]).max(now_ms) })
        };
        let (stage, fetching) = match &peer.place {
            Place::Idle => (None, None),
            Place::Fetching { stage } | Place::Parked { stage } => (None, fetching(*stage)),
            Place::Member { stage } | Place::Clearing { stage } => (Some(*stage as usize), None),
            Place::HandingOver { .. } => (None, fetching(peer.moving.as_ref()?.to)),
            Place::Retired => return None,
        };
        Some(Peer {
            name: name.clone(),
            host: peer.mate.host.clone(),
            rows_per_s: peer.rows_per_s(),
            stage,
            fetching,
            room: 0,
            moved_ms: peer.moved_ms,
            doomed_ms: peer.doomed_ms.map(|at| at.saturating_sub(self.config.hand_over_ms).max(now_ms)),
            expected_life_ms: self.expected_life_ms(now_ms),
            ..Peer::default()
        })
    }

    /// How long a peer lives, from those that were lost so far and those that are there; before that, as long as the planner thinks.
    fn expected_life_ms(&self, now_ms: u64) -> u64 {
        let present: u64 = self.peers.all().values().map(|p| now_ms.saturating_sub(p.since_ms)).sum();
        self.measured.life_ms(present, Peer::default().expected_life_ms)
    }

    fn obey(&mut self, turn: &mut Turn<'_>, plan: RebalancePlan, may_leave_for: impl Fn(StageId) -> bool) {
        for step in plan.moves {
            let to = step.to as StageId;
            match step.kind {
                MoveKind::Join => self.join(turn, &step.peer, to),
                kind @ (MoveKind::Cold | MoveKind::Swap) if may_leave_for(to) => {
                    self.leave_for(turn, &step.peer, to, kind, step.reason);
                }
                // Those need a second state.
                _ => {}
            }
        }
    }

    /// A peer without a stage gets one. When nobody has its state, it waits: its peers come back, or all begin again from a checkpoint.
    fn join(&mut self, turn: &mut Turn<'_>, name: &PeerName, to: StageId) {
        if !self.peers.serve(to) {
            return;
        }
        self.peers.start_fetch(turn.now_ms, name);
        self.fetch(turn, name, to, false);
    }

    /// A peer stops serving, to go to another stage. Others of its stage must be there, and somebody who has the state of the other.
    pub(super) fn leave_for(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        to: StageId,
        kind: MoveKind,
        reason: String,
    ) {
        let Some(from) = self.peers.member_stage(name) else { return };
        // Speed is not worth that; one who swaps is followed by somebody else.
        let risks =
            kind != MoveKind::Swap && !self.needs_somebody(to) && self.leaves_to_one_machine(name, from);
        let stays = |other: &PeerName| other != name && self.peers.stays(other);
        let relieved = self.peers.of(from).any(stays);
        if from == to
            || !relieved
            || risks
            || !self.peers.serve(to)
            || self.saving.waits_for(name)
            || !self.peers.stays(name)
        {
            return;
        }
        self.peers.plan_move(name, Moving { from, to, reason });
        self.relieve(turn, name, from);
        self.save_if_one_is_left(from);
        if self.has_nothing(name, from) {
            self.released(turn, name);
        }
    }

    /// Whether losing this peer would leave its stage on a single machine.
    fn leaves_to_one_machine(&self, name: &PeerName, from: StageId) -> bool {
        let machine =
            |n: &PeerName| self.peers.get(n).map(|p| p.mate.host.as_str()).filter(|h| !h.is_empty());
        let with: BTreeSet<&str> = self.peers.of(from).filter_map(machine).collect();
        let without: BTreeSet<&str> =
            self.peers.of(from).filter(|n| *n != name).filter_map(machine).collect();
        with.len() > 1 && without.len() < 2
    }

    /// A peer whose sums are of no more use where it is: it goes to its new stage, or for good.
    pub(super) fn released(&mut self, turn: &mut Turn<'_>, name: &PeerName) {
        if self.peers.get(name).is_none() {
            return;
        }
        let Some(Moving { from, to, reason }) = self.peers.released(turn.now_ms, name) else {
            return turn.tell(name, ToPeer::Retire);
        };
        self.join(turn, name, to);
        self.moved(turn, Moved { step: self.work.step(), peer: name.clone(), from, to, reason });
    }

    fn moved(&mut self, turn: &mut Turn<'_>, moved: Moved) {
        self.peers.moved();
        turn.push(ConductorEffect::Moved(moved));
    }

    /// Everybody's stage for a beginning from a checkpoint, which has the state of all. Peers that have none get one; others change theirs
    /// if a stage would have none, or if all begin again anyway.
    pub(super) fn places(&mut self, turn: &mut Turn<'_>, all_begin: bool) -> BTreeMap<PeerName, StageId> {
        let stages = 0..self.config.stages as usize;
        let mut peers: Vec<Peer> = Vec::new();
        for (name, peer) in self.peers.all().iter().filter(|(_, p)| p.doomed_ms.is_none()) {
            let Some(mut seen) = self.seen(turn.now_ms, name, peer) else { continue };
            seen.stage = seen.stage.or(seen.fetching.take().map(|f| f.stage));
            seen.moved_ms = None;
            peers.push(seen);
        }
        let mut view = self.view(turn.now_ms, peers, false);
        for stage in &mut view.stages {
            stage.fetch_ms = 0;
        }
        let plan = |view: &PipelineView| rebalance::rebalance(view, &self.policy()).moves;
        for join in plan(&view).into_iter().filter(|m| m.kind == MoveKind::Join) {
            go_to(&mut view.peers, &join);
        }
        let served = |stage: usize| view.peers.iter().any(|p| p.stage == Some(stage));
        let mut moves = Vec::new();
        if all_begin || !stages.clone().all(served) {
            for peer in &mut view.peers {
                peer.shadows = stages.clone().filter(|s| peer.stage != Some(*s)).collect();
            }
            moves = plan(&view).into_iter().filter(|m| m.kind == MoveKind::Switch).collect();
        }
        for Move { peer, from, to, reason, .. } in moves.iter().cloned() {
            if let Some(from) = from {
                let (from, to) = (from as StageId, to as StageId);
                self.moved(turn, Moved { step: self.work.step(), peer, from, to, reason });
            }
        }
        for step in &moves {
            go_to(&mut view.peers, step);
        }
        view.peers.into_iter().filter_map(|p| Some((p.name, p.stage? as StageId))).collect()
    }

    /// A peer has the state that it was sent for: that is how long it takes.
    pub(super) fn fetched(&mut self, now_ms: u64, name: &PeerName, stage: StageId) {
        if let Some(began) = self.peers.fetched(name) {
            self.measured.fetched(stage, now_ms.saturating_sub(began));
        }
    }

    /// A backward pass took so long.
    pub(super) fn timed(&mut self, name: &PeerName, stage: StageId, took_us: u64) {
        let cost = self.config.costs.get(stage as usize).copied().unwrap_or(1.0);
        let rows = f64::from(self.config.rows.max(1)) * cost * BACKWARD_ROWS;
        self.peers.timed(name, took_us as f64 / 1e6 / rows);
    }
}

fn go_to(peers: &mut [Peer], step: &Move) {
    if let Some(peer) = peers.iter_mut().find(|p| p.name == step.peer) {
        peer.stage = Some(step.to);
    }
}
