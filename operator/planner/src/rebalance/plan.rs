//! The plan: joins, then what can be switched now, then what has to be fetched for later, then who has to stop for a fetch, then what is fetched
//! ahead of need.

use super::balance::Assignment;
use super::spread::{Swap, swap};
use super::{Move, MoveKind, Peer, PipelineView, RebalancePlan, RebalancePolicy};

/// Which peers to send where now.
///
/// A peer with a notice counts until its deadline for switches, and not at all for whatever takes a fetch. Given the same view the
/// plan is the same; after its switches and joins there is nothing more to switch or join.
#[must_use]
pub fn rebalance(view: &PipelineView, policy: &RebalancePolicy) -> RebalancePlan {
    if view.stages.is_empty() {
        return RebalancePlan::default();
    }
    let mut planner = Planner {
        view,
        policy,
        later: view
            .peers
            .iter()
            .map(|p| if p.doomed_ms.is_some() { None } else { serves_later(view, p) })
            .collect(),
        plan: RebalancePlan::default(),
    };
    planner.joins();
    planner.switches();
    planner.fetches();
    planner.cold();
    planner.spread();
    if policy.shadows {
        planner.shadows();
    }
    planner.plan
}

/// The stage that `peer` serves once it has what it waits for.
fn serves_later(view: &PipelineView, peer: &Peer) -> Option<usize> {
    peer.stage.or(peer.fetching.map(|f| f.stage)).filter(|s| *s < view.stages.len())
}

struct Planner<'a> {
    view: &'a PipelineView,
    policy: &'a RebalancePolicy,
    /// By peer, the stage it serves when all joins, losses and moves so far have come to pass.
    later: Vec<Option<usize>>,
    plan: RebalancePlan,
}

impl Planner<'_> {
    fn push(&mut self, peer: usize, to: usize, kind: MoveKind, reason: String) {
        let of = &self.view.peers[peer];
        self.plan.moves.push(Move { peer: of.name.clone(), from: of.stage, to, kind, reason });
    }

    fn fetch_ms(&self, stage: usize) -> u64 {
        self.view.stages[stage].fetch_ms
    }

    /// Whether `peer` will be of use after it fetched `stage`.
    fn outlives_fetch(&self, peer: &Peer, stage: usize) -> bool {
        peer.life_ms(self.view.now_ms) > self.fetch_ms(stage)
    }

    fn later(&self) -> Assignment<'_> {
        Assignment::new(self.view, self.later.clone())
    }

    /// Peers that may not move at all for now.
    fn cooling(&self, peer: &Peer) -> bool {
        peer.moved_ms.is_some_and(|at| at + self.policy.cooldown_ms > self.view.now_ms)
    }

    /// Free peers go where they are needed most once all that is known has happened, the fastest first. Those of one machine come one after
    /// another, so that they serve different stages.
    fn joins(&mut self) {
        let peers = &self.view.peers;
        let mut free: Vec<usize> =
            (0..peers.len()).filter(|&p| peers[p].stage.is_none() && peers[p].fetching.is_none()).collect();
        free.sort_by(|&a, &b| {
            (peers[b].rows_per_s.total_cmp(&peers[a].rows_per_s))
                .then(peers[a].host.cmp(&peers[b].host))
                .then(peers[a].name.cmp(&peers[b].name))
        });
        for peer in free {
            let later = self.later();
            let (to, rates) = (later.place_for(peer), later.rates());
            let of = &peers[peer];
            if !self.outlives_fetch(of, to) {
                self.plan.held.push(format!("{} would be gone before it had stage {to}", of.name));
                continue;
            }
            if of.doomed_ms.is_none() {
                self.later[peer] = Some(to);
            }
            self.push(peer, to, MoveKind::Join, format!("the weakest, {:.2} rows/s", rates[to]));
        }
    }

    /// What the states at hand allow at the next edge of a step.
    fn switches(&mut self) {
        let edge_ms = self.view.now_ms + self.policy.step_ms;
        let there = |p: &Peer| p.doomed_ms.is_none_or(|at| at >= edge_ms);
        let stages = self.view.stages.len();
        let at = self.view.peers.iter().map(|p| p.stage.filter(|s| *s < stages && there(p))).collect();
        let before = Assignment::new(self.view, at);
        self.plan.rows_per_s = before.pipeline();
        self.plan.after_rows_per_s = self.plan.rows_per_s;
        let mut after = before.clone();
        let urgent = before.below_minimum() > 0;
        after.improve(self.policy, &|p, stage| {
            let peer = &self.view.peers[p];
            peer.has(stage) && (urgent || !self.cooling(peer))
        });
        if after.at == before.at {
            return;
        }
        if self.view.averaging {
            self.plan.held.push("switches wait for the averaging that is under way".to_owned());
            return;
        }
        self.plan.after_rows_per_s = after.pipeline();
        let (was, is) = (before.rates(), after.rates());
        for (peer, (from, to)) in before.at.iter().zip(&after.at).enumerate() {
            let (Some(from), Some(to)) = (*from, *to) else { continue };
            if from == to {
                continue;
            }
            let why = if is[to] > was[to] {
                format!("stage {to} goes from {:.2} to {:.2} rows/s", was[to], is[to])
            } else {
                "for a peer that goes on from there".to_owned()
            };
            let (slow, fast) = (self.plan.rows_per_s, self.plan.after_rows_per_s);
            self.push(peer, to, MoveKind::Switch, format!("{why}, the pipeline from {slow:.2} to {fast:.2}"));
            if self.later[peer].is_some() {
                self.later[peer] = Some(to);
            }
        }
    }

    /// Whether `peer` has `stage`'s state or will have it.
    fn will_have(&self, peer: &Peer, stage: usize) -> bool {
        peer.stage.is_some() && (peer.has(stage) || peer.fetching.is_some_and(|f| f.stage == stage))
    }

    fn is_told(&self, peer: &Peer) -> bool {
        self.plan.moves.iter().any(|m| m.peer == peer.name)
    }

    /// Whether `peer` has `stage`'s state, will have it, or can fetch it while it serves.
    fn can_have(&self, peer: &Peer, stage: usize) -> bool {
        let may_fetch =
            peer.stage.is_some() && peer.fetching.is_none() && peer.room > 0 && !self.is_told(peer);
        self.will_have(peer, stage) || (may_fetch && self.outlives_fetch(peer, stage))
    }

    /// States without which the pipeline would be slower once all that is known has happened.
    fn fetches(&mut self) {
        let mut have = self.later();
        have.improve(self.policy, &|p, stage| self.will_have(&self.view.peers[p], stage));
        let mut any = have.clone();
        any.improve(self.policy, &|p, stage| self.can_have(&self.view.peers[p], stage));
        let (slow, fast, at) = (have.pipeline(), any.pipeline(), any.at);
        for (p, to) in at.iter().enumerate() {
            let (Some(to), peer) = (*to, &self.view.peers[p]) else { continue };
            if self.later[p].is_some() && self.later[p] != Some(to) && !self.will_have(peer, to) {
                let drop = self.to_drop(peer);
                let why =
                    format!("with stage {to} there the pipeline will do {fast:.2} rows/s, else {slow:.2}");
                self.push(p, to, MoveKind::Fetch { drop }, why);
            }
        }
    }

    /// Peers without room for two states, if what they bring in their lives is more than what their fetches cost. They leave no sooner than
    /// they must: whoever is doomed counts until a fetch begun at the next edge would come too late.
    #[expect(clippy::too_many_lines, reason = "one decision, in the order in which it is weighed")]
    fn cold(&mut self) {
        let stages = self.view.stages.len();
        let horizon_ms = self.view.now_ms
            + self.policy.step_ms
            + self.view.stages.iter().map(|s| s.fetch_ms).max().unwrap_or(0);
        let mut then = self.later.clone();
        for (at, peer) in then.iter_mut().zip(&self.view.peers) {
            if peer.doomed_ms.is_some_and(|at| at >= horizon_ms) {
                *at = peer.stage.filter(|s| *s < stages);
            }
        }
        let mut before = Assignment::new(self.view, then);
        before.improve(self.policy, &|p, stage| self.can_have(&self.view.peers[p], stage));
        let mut after = before.clone();
        let urgent = before.below_minimum() > 0;
        // A peer that fetches a stage gets it from those that serve it now: the last of them has to wait for its relief.
        let mut staying = vec![0_usize; stages];
        for peer in self.view.peers.iter().filter(|p| p.doomed_ms.is_none()) {
            if let Some(stage) = peer.stage.filter(|s| *s < stages) {
                staying[stage] += 1;
            }
        }
        after.improve(self.policy, &|p, stage| {
            let peer = &self.view.peers[p];
            let may = peer.stage.is_some_and(|own| own < stages && staying[own] > 1)
                && peer.fetching.is_none()
                && peer.room == 0;
            may && peer.doomed_ms.is_none()
                && (urgent || !self.cooling(peer))
                && self.outlives_fetch(peer, stage)
        });
        let (slow, fast, at) = (before.pipeline(), after.pipeline(), after.at);
        let movers: Vec<(usize, usize)> =
            (0..at.len()).filter(|&p| before.at[p] != at[p]).filter_map(|p| Some((p, at[p]?))).collect();
        if movers.is_empty() {
            return;
        }
        if self.view.averaging {
            self.plan.held.push("moves wait for the averaging that is under way".to_owned());
            return;
        }
        let fetch_ms = movers.iter().map(|(_, to)| self.fetch_ms(*to)).max().unwrap_or(0);
        let life_ms = movers.iter().map(|(p, _)| self.view.peers[*p].life_ms(self.view.now_ms)).min();
        let lost = self.slower_without(&movers) * fetch_ms as f64 / 1000.0;
        let won = (fast - slow) * life_ms.unwrap_or(0).saturating_sub(fetch_ms) as f64 / 1000.0;
        let joining = |p: &Peer| p.stage.is_none() && (p.fetching.is_some() || self.is_told(p));
        if lost > 0.0 && !urgent && self.view.peers.iter().any(joining) {
            self.plan.held.push("moves that cost throughput wait for the peers that are joining".to_owned());
            return;
        }
        let brings = format!("{won:.0} rows won, {lost:.0} lost while fetching");
        for (peer, to) in movers {
            let left = self.view.peers[peer].stage.map_or(0, |own| {
                staying[own] -= 1;
                staying[own]
            });
            if left == 0 {
                let name = &self.view.peers[peer].name;
                self.plan
                    .held
                    .push(format!("{name} does not go to stage {to}: nobody would be left where it is"));
            } else if won > lost {
                let why = format!("the pipeline will do {fast:.2} rows/s, else {slow:.2}: {brings}");
                self.push(peer, to, MoveKind::Cold, why);
            } else {
                let name = &self.view.peers[peer].name;
                self.plan.held.push(format!("{name} does not go to stage {to}: {brings}"));
            }
        }
    }

    /// Rows a second that the pipeline does less while `movers` serve nobody.
    fn slower_without(&self, movers: &[(usize, usize)]) -> f64 {
        let stages = self.view.stages.len();
        let mut serving: Vec<Option<usize>> =
            self.view.peers.iter().map(|p| p.stage.filter(|s| *s < stages)).collect();
        let now = Assignment::new(self.view, serving.clone()).pipeline();
        for (peer, _) in movers {
            serving[*peer] = None;
        }
        now - Assignment::new(self.view, serving).pipeline()
    }

    /// When nothing else is going on, two peers change places if that brings a stage to a second machine. Each stage has a peer less meanwhile.
    fn spread(&mut self) {
        let settled = |p: &Peer| p.stage.is_some() && p.fetching.is_none();
        if self.view.averaging || !self.plan.moves.is_empty() || !self.view.peers.iter().all(settled) {
            return;
        }
        let may = |peer: &Peer| peer.room == 0 && !self.cooling(peer);
        let Some(Swap { leaves, comes }) = swap(self.view, &may) else { return };
        let (leaver, comer) = (&self.view.peers[leaves], &self.view.peers[comes]);
        let (Some(from), Some(to)) = (leaver.stage, comer.stage) else { return };
        let why = format!("all peers of stage {from} are on {}", leaver.host);
        self.push(leaves, to, MoveKind::Swap, why.clone());
        self.push(comes, from, MoveKind::Swap, why);
    }

    /// Peers other than those of the stage itself that have or fetch each stage's state, this plan included.
    fn holders(&self) -> Vec<usize> {
        let mut holders = vec![0; self.view.stages.len()];
        for peer in self.view.peers.iter().filter(|p| p.doomed_ms.is_none() && p.stage.is_some()) {
            for (stage, count) in holders.iter_mut().enumerate() {
                *count += usize::from(self.will_have(peer, stage) && peer.stage != Some(stage));
            }
        }
        for m in &self.plan.moves {
            match m.kind {
                MoveKind::Fetch { drop } => {
                    holders[m.to] += 1;
                    if let Some(old) = drop {
                        holders[old] = holders[old].saturating_sub(1);
                    }
                }
                MoveKind::Switch => {
                    holders[m.to] = holders[m.to].saturating_sub(1);
                    if let Some(from) = m.from {
                        holders[from] += 1;
                    }
                }
                MoveKind::Join | MoveKind::Cold | MoveKind::Swap => {}
            }
        }
        holders
    }

    /// The shadow of `peer` that most others have too, if it has no room for one more.
    fn to_drop(&self, peer: &Peer) -> Option<usize> {
        if peer.shadows.len() < peer.room {
            return None;
        }
        let holders = self.holders();
        peer.shadows.iter().copied().filter(|s| *s < holders.len()).max_by_key(|&s| holders[s])
    }

    /// A peer with room fetches the state that fewest others have. A stage sends to no more peers at once than it has.
    fn shadows(&mut self) {
        let stages = self.view.stages.len();
        let mut sends = vec![0_usize; stages];
        let fetching = self.view.peers.iter().filter_map(|p| p.fetching.map(|f| f.stage));
        let planned = self.plan.moves.iter().filter(|m| m.kind != MoveKind::Switch).map(|m| m.to);
        for stage in fetching.chain(planned).filter(|s| *s < stages) {
            sends[stage] += 1;
        }
        let mut serving = vec![0_usize; stages];
        for stage in self.view.peers.iter().filter_map(|p| p.stage).filter(|s| *s < stages) {
            serving[stage] += 1;
        }
        for p in 0..self.view.peers.len() {
            let peer = &self.view.peers[p];
            let Some(own) = peer.stage.filter(|s| *s < stages) else { continue };
            if peer.fetching.is_some()
                || self.is_told(peer)
                || peer.doomed_ms.is_some()
                || peer.shadows.len() >= peer.room
            {
                continue;
            }
            let holders = self.holders();
            let to = (0..stages)
                .filter(|&s| !peer.has(s) && sends[s] < serving[s] && self.outlives_fetch(peer, s))
                // By distance in the end: the shadows of equal stages then form a ring, and a chain leads from any stage to any other.
                .min_by_key(|&s| (holders[s], self.holders_in(own, s), (s + stages - own) % stages));
            if let Some(to) = to {
                sends[to] += 1;
                let why = format!("ahead of need, {} peers of other stages have it", holders[to]);
                self.push(p, to, MoveKind::Fetch { drop: None }, why);
            }
        }
    }

    /// Peers that serve `own` and have or fetch `stage`, this plan included.
    fn holders_in(&self, own: usize, stage: usize) -> usize {
        let has = self.view.peers.iter().filter(|p| p.stage == Some(own) && self.will_have(p, stage)).count();
        let planned =
            |m: &&Move| m.from == Some(own) && m.to == stage && matches!(m.kind, MoveKind::Fetch { .. });
        has + self.plan.moves.iter().filter(planned).count()
    }
}
