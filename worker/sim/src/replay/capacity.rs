//! One seed: peers come, fetch, serve, switch and go; what flows is the smallest stage.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_planner::rebalance::{self, Fetching, MoveKind, Peer, PipelineStage, PipelineView};
use dunlin_swarm::PeerName;

use super::options::{Options, Policy};
use super::report::Report;
use super::trace::Life;
use crate::serving::model::mix;

/// One swarm at one time.
pub(super) struct Swarm<'a> {
    options: &'a Options,
    seed: u64,
    view: PipelineView,
    /// When those that are there will be gone.
    until_ms: BTreeMap<PeerName, u64>,
    /// Where the steps' edges lie: their first one.
    phase_ms: u64,
    /// Samples, in units of one peer's milliseconds.
    done_ms: u64,
    /// Samples that the redoing of work held up.
    held_up_ms: u64,
    redone_ms: u64,
    report: Report,
}

/// The report of one seed.
pub(super) fn run(options: &Options, lives: &[Life], seed: u64) -> Report {
    let start_ms = lives.first().map_or(0, |l| l.from_ms);
    let end_ms = lives.iter().flat_map(|l| [Some(l.from_ms), l.until_ms]).flatten().max().unwrap_or(0);
    let mut swarm = Swarm {
        options,
        seed,
        view: PipelineView {
            now_ms: start_ms,
            stages: vec![
                PipelineStage { fetch_ms: options.download_ms, ..PipelineStage::default() };
                options.stages
            ],
            ..PipelineView::default()
        },
        until_ms: BTreeMap::new(),
        phase_ms: start_ms + mix(seed, 1) % options.step_ms,
        done_ms: 0,
        held_up_ms: 0,
        redone_ms: 0,
        report: Report::default(),
    };
    swarm.start(lives, start_ms);
    let mut optimal_ms = 0;
    let mut reachable_ms = 0;
    for (at_ms, edge) in swarm.times(lives, start_ms, end_ms) {
        while let Some(ready_ms) = swarm.view.next_ready_ms().filter(|ready| *ready < at_ms) {
            swarm.pass(ready_ms);
            swarm.plan(false);
        }
        swarm.pass(at_ms);
        swarm.come(lives);
        swarm.plan(edge);
    }
    // Integrals that need no swarm: what is there, and what is there and has had time to fetch.
    let mut times: BTreeSet<u64> = BTreeSet::from([start_ms, end_ms]);
    let ready_ms = |l: &Life| if l.from_ms == start_ms { start_ms } else { l.from_ms + options.download_ms };
    for life in lives {
        times.extend([life.from_ms, ready_ms(life)]);
        times.extend(life.until_ms);
    }
    let times: Vec<u64> = times.into_iter().filter(|t| *t <= end_ms).collect();
    for pair in times.windows(2) {
        let there = |from: u64, l: &Life| from <= pair[0] && l.until_ms.is_none_or(|until| pair[0] < until);
        let nodes = lives.iter().filter(|l| there(l.from_ms, l)).count();
        let ready = lives.iter().filter(|l| there(ready_ms(l), l)).count();
        optimal_ms += (nodes / options.stages) as u64 * (pair[1] - pair[0]);
        reachable_ms += (ready / options.stages) as u64 * (pair[1] - pair[0]);
    }
    let share = |ms: u64| if optimal_ms == 0 { 0.0 } else { ms as f64 / optimal_ms as f64 };
    Report {
        share_of_optimal: share(swarm.done_ms.saturating_sub(swarm.held_up_ms)),
        share_of_undisturbed: share(swarm.done_ms.saturating_sub(swarm.held_up_ms)),
        share_reachable: share(reachable_ms),
        redone: swarm.redone_ms as f64 / 1000.0,
        ..swarm.report
    }
}

impl Swarm<'_> {
    /// All times at which something happens that does not depend on the swarm, in order; whether an edge of a step is there.
    fn times(&self, lives: &[Life], start_ms: u64, end_ms: u64) -> Vec<(u64, bool)> {
        let mut times: BTreeMap<u64, bool> = BTreeMap::from([(end_ms, false)]);
        let mut edge_ms = self.phase_ms;
        while edge_ms < end_ms {
            times.insert(edge_ms, true);
            edge_ms += self.options.step_ms;
        }
        for life in lives {
            let told = life.until_ms.map(|until| until.saturating_sub(self.options.notice_ms));
            let leaves = life.until_ms.map(|until| until.saturating_sub(self.options.handover_ms()));
            for at_ms in [Some(life.from_ms), life.until_ms, told, leaves].into_iter().flatten() {
                times.entry(at_ms.max(start_ms)).or_default();
            }
        }
        times.into_iter().filter(|(at_ms, _)| *at_ms > start_ms).collect()
    }

    /// A node that is there from the start has its stage: all begin from the same weights, nothing is fetched. The planner would spread them evenly.
    fn start(&mut self, lives: &[Life], start_ms: u64) {
        let mut first: Vec<usize> = (0..lives.len()).filter(|&i| lives[i].from_ms == start_ms).collect();
        first.sort_by_key(|&i| mix(self.seed, 1000 + i as u64));
        for (nth, i) in first.into_iter().enumerate() {
            let mut peer = self.newcomer(i, &lives[i]);
            peer.stage = Some(match self.options.policy {
                Policy::Dunlin => nth % self.options.stages,
                Policy::None => self.random_stage(i),
            });
            self.view.peers.push(peer);
        }
    }

    fn newcomer(&mut self, i: usize, life: &Life) -> Peer {
        let name = PeerName(format!("{i:06}-{}", life.node));
        if let Some(until_ms) = life.until_ms {
            self.until_ms.insert(name.clone(), until_ms);
        }
        Peer { name, room: self.options.room, ..Peer::default() }
    }

    fn random_stage(&self, i: usize) -> usize {
        (mix(self.seed, 1_000_000 + i as u64) % self.options.stages as u64) as usize
    }

    fn serving(&self) -> Vec<u64> {
        let mut counts = vec![0; self.options.stages];
        for stage in self.view.peers.iter().filter_map(|p| p.stage) {
            counts[stage] += 1;
        }
        counts
    }

    /// Time passes up to `at_ms`; what was to be fetched by then is there.
    fn pass(&mut self, at_ms: u64) {
        let smallest = self.serving().into_iter().min().unwrap_or(0);
        let passed_ms = at_ms - self.view.now_ms;
        self.done_ms += smallest * passed_ms;
        if smallest == 0 {
            self.report.downtime_s += passed_ms as f64 / 1000.0;
        }
        self.leave(at_ms);
        self.view.pass(at_ms);
    }

    /// Nodes that have to go do so: with a notice a little earlier, and its gradient sums stay; without one what it did in this step is redone.
    fn leave(&mut self, now_ms: u64) {
        let handover_ms = self.options.handover_ms();
        let gone: BTreeSet<PeerName> = self
            .until_ms
            .iter()
            .filter(|(_, until)| until.saturating_sub(handover_ms) <= now_ms)
            .map(|(name, _)| name.clone())
            .collect();
        if gone.is_empty() {
            return;
        }
        let before = self.states();
        if self.options.notice_ms == 0 {
            let in_step_ms = now_ms.saturating_sub(self.phase_ms) % self.options.step_ms;
            let mut redone_ms = vec![0; self.options.stages];
            let lost = self.view.peers.iter().filter(|p| gone.contains(&p.name));
            for stage in lost.filter_map(|p| p.stage) {
                redone_ms[stage] += in_step_ms;
            }
            self.redone_ms += redone_ms.iter().sum::<u64>();
            // Stages redo side by side; none of them is taken to have had time to spare.
            self.held_up_ms += redone_ms.into_iter().max().unwrap_or(0);
        }
        self.view.peers.retain(|p| !gone.contains(&p.name));
        self.until_ms.retain(|name, _| !gone.contains(name));
        self.report.states_lost += before.difference(&self.states()).count() as f64;
    }

    /// Stages of which somebody has the state.
    fn states(&self) -> BTreeSet<usize> {
        self.view.peers.iter().flat_map(|p| p.stage.iter().chain(&p.shadows)).copied().collect()
    }

    /// Nodes that the trace adds now come, and those that are to be told now are told.
    fn come(&mut self, lives: &[Life]) {
        let now_ms = self.view.now_ms;
        for i in (0..lives.len()).filter(|&i| lives[i].from_ms == now_ms) {
            let mut peer = self.newcomer(i, &lives[i]);
            if self.options.policy == Policy::None {
                let stage = self.random_stage(i);
                peer.fetching = Some(Fetching { stage, ready_ms: now_ms + self.options.download_ms });
                self.report.joins += 1.0;
            }
            self.view.peers.push(peer);
        }
        if self.options.notice_ms == 0 {
            return;
        }
        for peer in self.view.peers.iter_mut().filter(|p| p.doomed_ms.is_none()) {
            let until = self.until_ms.get(&peer.name);
            let told = until.filter(|until| until.saturating_sub(self.options.notice_ms) <= now_ms);
            peer.doomed_ms = told.map(|until| until.saturating_sub(self.options.handover_ms()));
        }
    }

    /// Asks the planner and does what it says. Between edges nobody changes its stage.
    fn plan(&mut self, edge: bool) {
        if self.options.policy == Policy::None {
            return;
        }
        self.view.averaging = !edge;
        let policy = rebalance::RebalancePolicy {
            step_ms: self.options.step_ms,
            ..rebalance::RebalancePolicy::default()
        };
        let plan = rebalance::rebalance(&self.view, &policy);
        for step in &plan.moves {
            match step.kind {
                MoveKind::Join => self.report.joins += 1.0,
                MoveKind::Switch | MoveKind::Cold | MoveKind::Swap => self.report.switches += 1.0,
                MoveKind::Fetch { .. } => self.report.fetches += 1.0,
            }
        }
        self.view.carry_out(&plan);
    }
}
