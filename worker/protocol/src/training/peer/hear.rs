//! What the conductor says, and what comes of it: averages, and the sums of mates that leave.

use dunlin_swarm::PeerName;

use super::super::ids::{ShardId, Step};
use super::super::message::{PeerReport, SaveFailure, ToPeer};
use super::{Call, CallKind, Job, PeerEffect, PeerNode, Right, Take};

impl PeerNode {
    /// The conductor speaks.
    #[expect(clippy::too_many_lines, reason = "an arm for each message")]
    pub fn hear(&mut self, message: ToPeer, out: &mut Vec<PeerEffect>) {
        // A peer that cannot trust its memory does nothing any more but end.
        if self.corrupt.is_some() && !matches!(message, ToPeer::Expelled { .. } | ToPeer::Retire) {
            return;
        }
        match message {
            ToPeer::Grant { step, microbatch, granted } => {
                let key = (step, microbatch);
                if self.rights.get(&key) != Some(&Right::Asked) {
                    return;
                }
                let wants = |c: &Call| (c.kind, c.key()) == (CallKind::Backward, key);
                if !self.queue.values().any(wants) {
                    self.rights.remove(&key);
                    if granted {
                        out.push(PeerEffect::Tell(PeerReport::Released { step, microbatch }));
                    }
                    return;
                }
                self.rights.insert(key, if granted { Right::Granted } else { Right::Refused });
                self.next(out);
            }
            ToPeer::Load(load) => {
                self.start_over(load.stage, out);
                out.push(PeerEffect::Load(load));
            }
            ToPeer::Fetch(fetch) => {
                // An update under way is done before anything else.
                let here = self.step + Step::from(self.applying);
                let same = self.stage == Some(fetch.stage) && self.serving;
                let from = (same && here <= fetch.step && !fetch.whole).then_some(here);
                self.start_over(fetch.stage, out);
                out.push(PeerEffect::Fetch { fetch, from });
            }
            ToPeer::Average { step, shard, round, group } => {
                if step == self.step && self.serving {
                    self.averaged.remove(&shard);
                    self.rounds.insert(shard, round);
                    self.open = true;
                    out.push(PeerEffect::Average { step, shard, round, group });
                } else {
                    let why = "the state of that step is not here".to_owned();
                    let report = PeerReport::AverageFailed { step, shard, round, why, mate: None };
                    out.push(PeerEffect::Tell(report));
                }
            }
            ToPeer::Apply { step, scale, prove } => {
                // Told again after a conductor's restart, it is done already or under way.
                if step == self.step && self.serving && !self.applying {
                    self.applying = true;
                    self.scale = Some(scale);
                    self.give_up_running(step);
                    self.sums_change(out);
                    out.push(PeerEffect::Run(Job::Apply { step, scale, prove }));
                }
            }
            ToPeer::Take { step, from, contributions } => {
                // An update under way is done before the sums arrive.
                let ahead = Step::from(self.applying);
                if (self.step + ahead..=self.last() + ahead).contains(&step) && self.serving {
                    let (generation, stream) = (self.generation, self.stream);
                    out.push(PeerEffect::Take(Take { step, from, contributions, generation, stream }));
                } else {
                    out.push(PeerEffect::Tell(PeerReport::TakeFailed { step, from: from.name }));
                }
            }
            ToPeer::Save { step, check } => {
                if step == self.step && self.serving {
                    out.push(PeerEffect::Save { step, check });
                } else {
                    let why = format!("the state is that of step {}", self.step);
                    let failure = SaveFailure::OtherStep;
                    out.push(PeerEffect::Tell(PeerReport::SaveFailed { step, failure, why }));
                }
            }
            ToPeer::Clear { step, attempt } => {
                if !self.serving {
                    return;
                }
                self.attempt_begins(attempt, out);
                if self.applying {
                    self.told_to_clear = true;
                    return;
                }
                if step == self.step {
                    self.clear(out);
                }
                self.tell_ready(out);
            }
            ToPeer::Mates(mates) => out.push(PeerEffect::GiveTo(mates)),
            ToPeer::Expelled { why } => {
                self.stop_serving(out);
                out.push(PeerEffect::End(why));
            }
            ToPeer::Retire => out.push(PeerEffect::Retire),
        }
    }

    /// An average is complete.
    pub fn averaged(
        &mut self,
        step: Step,
        shard: ShardId,
        round: u64,
        squares: Vec<f64>,
        out: &mut Vec<PeerEffect>,
    ) {
        if step == self.step && self.serving && self.rounds.get(&shard) == Some(&round) {
            self.averaged.insert(shard, squares.clone());
            out.push(PeerEffect::Tell(PeerReport::Averaged { step, shard, round, squares }));
        }
    }

    /// An average could not be formed; `mate` did not give what it should, if it was somebody else.
    #[expect(clippy::too_many_arguments, reason = "the fields of a message")]
    pub fn average_failed(
        &mut self,
        step: Step,
        shard: ShardId,
        round: u64,
        why: String,
        mate: Option<PeerName>,
        out: &mut Vec<PeerEffect>,
    ) {
        if step == self.step && self.serving {
            out.push(PeerEffect::Tell(PeerReport::AverageFailed { step, shard, round, why, mate }));
        }
    }

    /// A mate's sums are here and kept, or not: they are added if ours were not emptied meanwhile.
    pub fn received(&mut self, take: Take, arrived: bool, out: &mut Vec<PeerEffect>) {
        if take.generation != self.generation || take.step < self.step || take.stream != self.stream {
            if arrived {
                out.push(PeerEffect::Discard(take));
            }
            return;
        }
        if arrived {
            self.add_to_sums();
            self.adding.push(take.clone());
            if take.step == self.step {
                self.sums_change(out);
            }
            out.push(PeerEffect::Run(Job::Add(take)));
        } else {
            out.push(PeerEffect::Tell(PeerReport::TakeFailed { step: take.step, from: take.from.name }));
        }
    }

    /// A mate's sums are added.
    pub fn added(&mut self, take: Take, out: &mut Vec<PeerEffect>) {
        self.adding.retain(|other| *other != take);
        if take.generation == self.generation && take.step >= self.step {
            self.done.extend(take.contributions.into_iter().map(|c| ((take.step, c.microbatch), c)));
            out.push(PeerEffect::Tell(PeerReport::Taken { step: take.step, from: take.from.name }));
            self.next(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::NumericsClass;

    use super::super::super::message::{Mate, StageStart, StateDigest, ToPeer};
    use super::super::{Job, PeerConfig, PeerEffect, PeerNode};

    fn mate(name: &str) -> Mate {
        Mate { name: name.into(), addr: String::new(), host: String::new() }
    }

    /// Serves stage 0 at step 0.
    fn serving() -> PeerNode {
        let config = PeerConfig {
            microbatches: 4,
            delayed_updates: false,
            calls_max: 8,
            arithmetic: NumericsClass::FIRST,
        };
        let mut node = PeerNode::new(mate("a"), config);
        node.hear(ToPeer::Load(StageStart { stage: 0, step: 0, checkpoint: false }), &mut Vec::new());
        node.ready(0, 0, StateDigest::default(), None, &mut Vec::new());
        node
    }

    fn hear(node: &mut PeerNode, message: ToPeer) -> Vec<PeerEffect> {
        let mut out = Vec::new();
        node.hear(message, &mut out);
        out
    }

    #[test]
    fn averages_are_closed_before_the_engine_changes_their_sums() {
        let average = || ToPeer::Average { step: 0, shard: 0, round: 1, group: vec![mate("a")] };
        let changes = [
            (ToPeer::Apply { step: 0, scale: 1.0, prove: false }, "Apply"),
            (ToPeer::Clear { step: 0, attempt: 1 }, "Clear"),
            (ToPeer::Load(StageStart { stage: 0, step: 0, checkpoint: false }), "Clear"),
        ];
        for (change, job) in changes {
            let mut node = serving();
            assert!(!hear(&mut node, change.clone()).contains(&PeerEffect::Close), "none has begun");
            let mut node = serving();
            hear(&mut node, average());
            let out = hear(&mut node, change);
            let is_job = |effect: &PeerEffect| match effect {
                PeerEffect::Run(Job::Apply { .. }) => job == "Apply",
                PeerEffect::Run(Job::Clear) => job == "Clear",
                _ => false,
            };
            let close = out.iter().position(|effect| *effect == PeerEffect::Close);
            assert!(close.is_some() && close < out.iter().position(is_job), "{out:?}");
        }
    }

    #[test]
    fn sums_that_come_too_late_are_discarded() {
        let mut node = serving();
        let taking = ToPeer::Take { step: 0, from: mate("b"), contributions: Vec::new() };
        let out = hear(&mut node, taking);
        let [PeerEffect::Take(take)] = &out[..] else { panic!("{out:?}") };
        hear(&mut node, ToPeer::Clear { step: 0, attempt: 1 });
        let mut out = Vec::new();
        node.received(take.clone(), true, &mut out);
        assert_eq!(out, [PeerEffect::Discard(take.clone())]);
        out.clear();
        node.received(take.clone(), false, &mut out);
        assert_eq!(out, []);
    }
}
