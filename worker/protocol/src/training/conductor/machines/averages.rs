//! Averages of the oldest open step: one of every shard, each formed by all peers that have a part of its sums.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::verdict::{Statement, Verdict, judge};
use crate::training::ids::{ShardId, StageId};

/// When members hold different averages, and nobody can tell whose is wrong, they are formed again so often.
const DIFFER_MAX: u32 = 2;
/// An average that failed is formed again after this long.
const AGAIN_MS: u64 = 100;
/// Averages of a step that may fail with the same peer in them.
const FAILURES_MAX: u32 = 20;

/// How far every shard is.
pub struct Averages {
    /// Of each stage, and then of the embedding that both ends hold.
    shards: Vec<Shard>,
    /// Of the average that began last.
    round: u64,
}

/// One set of tensors that is averaged together.
struct Shard {
    /// Stages that hold it.
    stages: Vec<StageId>,
    under_way: Option<Average>,
    /// An average that failed is not formed again before.
    not_before_ms: u64,
    /// How often its members held different averages in this step.
    differed: u32,
    /// How often somebody was a part of an average of this step that could not be formed: who could not, and who did not give what it should.
    failures: BTreeMap<PeerName, u32>,
}

impl Shard {
    fn of(stages: Vec<StageId>) -> Self {
        Self { stages, under_way: None, not_before_ms: 0, differed: 0, failures: BTreeMap::new() }
    }
}

struct Average {
    round: u64,
    since_ms: u64,
    group: BTreeSet<PeerName>,
    /// Of those that hold it.
    squares: BTreeMap<PeerName, Vec<f64>>,
}

impl Average {
    fn is_complete(&self) -> bool {
        !self.group.is_empty() && self.group.iter().all(|peer| self.squares.contains_key(peer))
    }
}

/// What came of the averages of a step.
pub enum AveragingOutcome {
    /// Not everybody holds every average yet.
    Open,
    /// All hold the same: the sum of squares of every tensor, in canonical order.
    Complete(Vec<f64>),
    /// These hold an average that is not that of most machines.
    Odd(BTreeSet<PeerName>),
    /// These hold different averages of a shard, and nobody can tell whose is right: it is to be formed once more.
    Again(ShardId, Vec<PeerName>),
    /// So do these, again and again.
    Tied(Vec<PeerName>),
}

impl Averages {
    /// Nothing is averaged. `tied`: the first and the last stage share the embedding. Rounds are counted from `round` on.
    pub fn new(stages: u32, tied: bool, round: u64) -> Self {
        let mut shards: Vec<Shard> = (0..stages).map(|stage| Shard::of(vec![stage])).collect();
        if tied && stages > 1 {
            shards.push(Shard::of(vec![0, stages - 1]));
        }
        Self { shards, round }
    }

    /// The oldest open step is another one, or is begun anew.
    pub fn begin_step(&mut self) {
        for shard in &mut self.shards {
            *shard = Shard::of(std::mem::take(&mut shard.stages));
        }
    }

    /// All shards.
    pub fn ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        0..self.shards.len() as ShardId
    }

    /// Shards that a stage holds.
    pub fn of_stage(&self, stage: StageId) -> Vec<ShardId> {
        self.ids().filter(|id| self.stages_of(*id).contains(&stage)).collect()
    }

    /// Stages that hold a shard.
    pub fn stages_of(&self, shard: ShardId) -> &[StageId] {
        &self.shards[shard as usize].stages
    }

    fn at(&self, stage: StageId) -> impl Iterator<Item = Option<&Average>> {
        self.shards.iter().filter(move |s| s.stages.contains(&stage)).map(|s| s.under_way.as_ref())
    }

    fn all_under_way(&self) -> impl Iterator<Item = &Average> {
        self.shards.iter().filter_map(|s| s.under_way.as_ref())
    }

    /// Are the keys of a stage still being done? Afterwards nobody can join it in this step.
    pub fn collects(&self, stage: StageId) -> bool {
        self.at(stage).all(|average| average.is_none())
    }

    /// Is any under way?
    pub fn are_under_way(&self) -> bool {
        self.all_under_way().next().is_some()
    }

    /// Is a peer of a stage part of an average?
    pub fn include(&self, name: &PeerName, stage: StageId) -> bool {
        self.at(stage).flatten().any(|average| average.group.contains(name))
    }

    /// Is a peer to say that it holds an average?
    pub fn wait_for(&self, name: &PeerName) -> bool {
        self.all_under_way().any(|a| a.group.contains(name) && !a.squares.contains_key(name))
    }

    /// Is a shard not under way, and need not pause after a failure?
    pub fn may_begin(&self, shard: ShardId, now_ms: u64) -> bool {
        let shard = &self.shards[shard as usize];
        shard.under_way.is_none() && now_ms >= shard.not_before_ms
    }

    /// A group forms the average of a shard. Returns its round.
    pub fn begin(&mut self, shard: ShardId, now_ms: u64, group: BTreeSet<PeerName>) -> u64 {
        self.round += 1;
        let average = Average { round: self.round, since_ms: now_ms, group, squares: BTreeMap::new() };
        self.shards[shard as usize].under_way = Some(average);
        self.round
    }

    fn of_round(&mut self, shard: ShardId, round: u64) -> Option<&mut Shard> {
        let shard = self.shards.get_mut(shard as usize)?;
        shard.under_way.as_ref().is_some_and(|a| a.round == round).then_some(shard)
    }

    /// A peer holds an average. When it is the last, that took so many milliseconds.
    pub fn averaged(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        (shard, round): (ShardId, u64),
        squares: Vec<f64>,
    ) -> Option<u64> {
        let average = self.of_round(shard, round)?.under_way.as_mut().filter(|a| a.group.contains(name))?;
        average.squares.insert(name.clone(), squares);
        average.is_complete().then(|| now_ms.saturating_sub(average.since_ms))
    }

    /// An average could not be formed: it pauses. False when it is of an earlier round.
    pub fn failed(&mut self, now_ms: u64, shard: ShardId, round: u64) -> bool {
        let Some(shard) = self.of_round(shard, round) else { return false };
        // A lost peer will be reported as such. Until then another attempt now and then costs little.
        shard.not_before_ms = now_ms + AGAIN_MS;
        true
    }

    /// An average could not be formed because of two peers: one that did not get something, one that did not give it. Returns whoever was one of them
    /// too often in this step, and how often.
    pub fn blame(
        &mut self,
        shard: ShardId,
        name: &PeerName,
        mate: Option<PeerName>,
    ) -> Option<(PeerName, u32)> {
        let failures = &mut self.shards[shard as usize].failures;
        for peer in std::iter::once(name).chain(&mate) {
            *failures.entry(peer.clone()).or_default() += 1;
        }
        let most = failures.values().copied().max().filter(|most| *most >= FAILURES_MAX)?;
        let worst = |peer: &&PeerName| failures.get(*peer) == Some(&most);
        let lost = mate.as_ref().filter(worst).or(Some(name).filter(worst)).cloned();
        failures.clear();
        Some((lost?, most))
    }

    /// Whatever is there of a shard is of no use.
    pub fn discard(&mut self, shard: ShardId) {
        self.shards[shard as usize].under_way = None;
    }

    /// A peer of a stage is no part of averages any longer. True when all others hold every average that it was part of: its contributions are
    /// safe there then.
    pub fn leave_out(&mut self, name: &PeerName, stage: StageId) -> bool {
        let mut safe = true;
        for shard in self.shards.iter_mut().filter(|s| s.stages.contains(&stage)) {
            if let Some(average) = &mut shard.under_way {
                average.group.remove(name);
                average.squares.remove(name);
            }
            safe &= shard.under_way.as_ref().is_some_and(Average::is_complete);
        }
        safe
    }

    /// What has come of them, if everybody holds all. Who holds another than most machines, of which `host` knows the names, is wrong. When nobody can tell who is, they are formed
    /// once more: a bit that flipped on the way does not do so again.
    pub fn outcome(&mut self, host: impl Fn(&PeerName) -> String) -> AveragingOutcome {
        if !self.shards.iter().all(|s| s.under_way.as_ref().is_some_and(Average::is_complete)) {
            return AveragingOutcome::Open;
        }
        for (id, shard) in (0..).zip(&mut self.shards) {
            let squares = shard.under_way.iter().flat_map(|average| &average.squares);
            let said: BTreeMap<PeerName, Statement<Vec<u64>>> = squares
                .map(|(name, squares)| {
                    let says = squares.iter().map(|v| v.to_bits()).collect();
                    (name.clone(), Statement { host: host(name), says, copied: false })
                })
                .collect();
            match judge(&said, |a, b| a == b) {
                Verdict::Agreed => {}
                Verdict::Odd(names) => return AveragingOutcome::Odd(names),
                Verdict::Tied => {
                    shard.differed += 1;
                    let names = said.into_keys().collect();
                    let again = shard.differed <= DIFFER_MAX;
                    return if again {
                        AveragingOutcome::Again(id, names)
                    } else {
                        AveragingOutcome::Tied(names)
                    };
                }
            }
        }
        AveragingOutcome::Complete(self.squares())
    }

    /// In canonical order of tensors: the shared embedding is the first, then stage by stage.
    fn squares(&self) -> Vec<f64> {
        let shared = self.shards.iter().filter(|s| s.stages.len() > 1);
        let all = shared.chain(self.shards.iter().filter(|s| s.stages.len() == 1));
        let first = |s: &Shard| s.under_way.as_ref().and_then(|a| a.squares.values().next().cloned());
        all.filter_map(first).flatten().collect()
    }
}
