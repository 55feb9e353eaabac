//! The search: who serves what, so that the weakest stage is as strong as the states at hand allow.

use std::collections::BTreeSet;

use super::{PipelineView, RebalancePolicy};

/// Rates differ by rounding alone below this share.
const EPSILON: f64 = 1e-9;

/// Who serves what at some time. A peer that will not be there then has no stage.
#[derive(Clone, Debug)]
pub(super) struct Assignment<'a> {
    view: &'a PipelineView,
    /// By peer, in the order of the view.
    pub at: Vec<Option<usize>>,
}

/// One peer of a chain and where it goes.
#[derive(Clone, Copy, Debug)]
struct Hop {
    peer: usize,
    from: usize,
    to: usize,
}

impl<'a> Assignment<'a> {
    pub fn new(view: &'a PipelineView, at: Vec<Option<usize>>) -> Self {
        Self { view, at }
    }

    fn rate(&self, peer: usize, stage: usize) -> f64 {
        self.view.peers[peer].rows_per_s / self.view.stages[stage].cost
    }

    /// Rows per second by stage.
    pub fn rates(&self) -> Vec<f64> {
        let mut rates = vec![0.0; self.view.stages.len()];
        for (peer, at) in self.at.iter().enumerate() {
            if let Some(stage) = *at {
                rates[stage] += self.rate(peer, stage);
            }
        }
        rates
    }

    /// Peers by stage, without those that are known to leave: a minimum that they fill is not filled for long.
    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.view.stages.len()];
        for (peer, at) in self.view.peers.iter().zip(&self.at) {
            if let (Some(stage), None) = (*at, peer.doomed_ms) {
                counts[stage] += 1;
            }
        }
        counts
    }

    /// Rows that wait, by stage.
    fn queues(&self) -> Vec<f64> {
        let mut queues = vec![0.0; self.view.stages.len()];
        for (peer, at) in self.view.peers.iter().zip(&self.at) {
            if let Some(stage) = *at {
                queues[stage] += peer.queue_rows;
            }
        }
        queues
    }

    /// Rows per second of the pipeline.
    pub fn pipeline(&self) -> f64 {
        self.rates().into_iter().fold(f64::INFINITY, f64::min)
    }

    /// The stage that holds up all others; of equally weak ones that with most rows waiting, then the first.
    pub fn weakest(&self) -> usize {
        let (rates, queues) = (self.rates(), self.queues());
        (0..rates.len())
            .min_by(|&a, &b| rates[a].total_cmp(&rates[b]).then(queues[b].total_cmp(&queues[a])))
            .unwrap_or(0)
    }

    /// Where a free peer is needed most: at a stage that lacks peers, there rather beside those of other machines, and else at the weakest.
    pub fn place_for(&self, peer: usize) -> usize {
        let (rates, counts, queues) = (self.rates(), self.counts(), self.queues());
        let host = &self.view.peers[peer].host;
        let mut mates = vec![0; rates.len()];
        let mut machines = vec![BTreeSet::new(); rates.len()];
        for (other, at) in self.view.peers.iter().zip(&self.at) {
            if let Some(stage) = *at {
                mates[stage] += usize::from(other.host == *host);
                machines[stage].insert(other.host.as_str());
            }
        }
        // Enough peers on one machine are not enough for one of another machine.
        let lacks = |stage: usize| {
            let enough = self.view.stages[stage].peers_wanted;
            match (counts[stage] < enough, machines[stage].len() < enough && mates[stage] == 0) {
                (true, _) => (counts[stage], mates[stage]),
                (false, true) => (enough, 0),
                (false, false) => (enough, 1),
            }
        };
        (0..rates.len())
            .min_by(|&a, &b| {
                (lacks(a).cmp(&lacks(b)))
                    .then(rates[a].total_cmp(&rates[b]))
                    .then(queues[b].total_cmp(&queues[a]))
                    .then(mates[a].cmp(&mates[b]))
            })
            .unwrap_or(0)
    }

    /// Peers that stages lack to their minimum.
    pub fn below_minimum(&self) -> usize {
        self.counts().iter().zip(&self.view.stages).map(|(n, s)| s.peers_min.saturating_sub(*n)).sum()
    }

    /// Moves peers along chains, as long as that raises the pipeline by [`RebalancePolicy::gain_min`] or fills a stage up to its minimum. `may`: whether
    /// a peer may serve a stage. Nothing changes where nothing is won.
    pub fn improve(&mut self, policy: &RebalancePolicy, may: &dyn Fn(usize, usize) -> bool) {
        let start = self.at.clone();
        let mut best = self.at.clone();
        let mut reached = (self.below_minimum(), self.pipeline());
        // Every chain raises the sorted rates, so this ends; the bound is for rates that differ by rounding.
        for _ in 0..4 * self.at.len() {
            let Some(chain) = self.chain_to(self.weakest(), may) else { break };
            for hop in chain {
                self.at[hop.peer] = Some(hop.to);
            }
            if self.at.iter().zip(&start).filter(|(now, then)| now != then).count() > policy.moves_max {
                break;
            }
            let (below, rate) = (self.below_minimum(), self.pipeline());
            let faster = rate > reached.1 && rate >= reached.1 * (1.0 + policy.gain_min);
            if below <= reached.0 && (below < reached.0 || faster) {
                reached = (below, rate);
                best.clone_from(&self.at);
            }
        }
        self.at = best;
    }

    /// The shortest chain that brings a peer to `poor` and leaves every stage it touches stronger than `poor` was; of equally short ones the
    /// one that leaves most.
    fn chain_to(&self, poor: usize, may: &dyn Fn(usize, usize) -> bool) -> Option<Vec<Hop>> {
        let (rates, counts) = (self.rates(), self.counts());
        let floor = rates[poor] * (1.0 + EPSILON) + EPSILON;
        let mut seen = BTreeSet::from([poor]);
        let mut level: Vec<(usize, Vec<Hop>)> = vec![(poor, Vec::new())];
        while !level.is_empty() {
            let mut found: Option<(f64, Vec<Hop>)> = None;
            let mut next: Vec<(usize, Vec<Hop>)> = Vec::new();
            for (to, tail) in &level {
                for from in (0..rates.len()).filter(|s| !seen.contains(s)) {
                    let Some(hop) = self.hop(from, *to, &rates, may) else { continue };
                    let chain: Vec<Hop> = std::iter::once(hop).chain(tail.iter().copied()).collect();
                    let left = self.weakest_after(&chain, &rates);
                    if self.leaves_minimum(&chain, &counts)
                        && left > floor
                        && found.as_ref().is_none_or(|(best, _)| left > *best)
                    {
                        found = Some((left, chain.clone()));
                    }
                    if next.iter().all(|(stage, _)| *stage != from) {
                        next.push((from, chain));
                    }
                }
            }
            if let Some((_, chain)) = found {
                return Some(chain);
            }
            seen.extend(next.iter().map(|(stage, _)| *stage));
            level = next;
        }
        None
    }

    /// The peer that `from` would best give to `to`: the one that leaves both strongest, then the one that lives longest, then by name. What happened
    /// before does not count, so that the search goes on from its own result where it stopped.
    fn hop(&self, from: usize, to: usize, rates: &[f64], may: &dyn Fn(usize, usize) -> bool) -> Option<Hop> {
        let score =
            |&peer: &usize| (rates[from] - self.rate(peer, from)).min(rates[to] + self.rate(peer, to));
        let (peers, now_ms) = (&self.view.peers, self.view.now_ms);
        (0..self.at.len())
            .filter(|&peer| self.at[peer] == Some(from) && may(peer, to))
            .min_by(|a, b| {
                let (p, q) = (&peers[*a], &peers[*b]);
                score(b)
                    .total_cmp(&score(a))
                    .then(q.life_ms(now_ms).cmp(&p.life_ms(now_ms)))
                    .then(p.name.cmp(&q.name))
            })
            .map(|peer| Hop { peer, from, to })
    }

    /// Whether every stage that `chain` touches keeps its minimum, or as many peers as it had if those were fewer.
    fn leaves_minimum(&self, chain: &[Hop], counts: &[usize]) -> bool {
        let mut after = counts.to_vec();
        for hop in chain {
            let stays = usize::from(self.view.peers[hop.peer].doomed_ms.is_none());
            after[hop.to] += stays;
            after[hop.from] = after[hop.from].saturating_sub(stays);
        }
        chain.iter().all(|hop| after[hop.from] >= counts[hop.from].min(self.view.stages[hop.from].peers_min))
    }

    fn weakest_after(&self, chain: &[Hop], rates: &[f64]) -> f64 {
        let mut after = rates.to_vec();
        for hop in chain {
            after[hop.from] -= self.rate(hop.peer, hop.from);
            after[hop.to] += self.rate(hop.peer, hop.to);
        }
        chain.iter().flat_map(|hop| [after[hop.from], after[hop.to]]).fold(f64::INFINITY, f64::min)
    }
}
