//! Averages of the oldest open step, and the commit.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::peer_state::{PeerState, Place};
use super::turn::Turn;
use super::verdict::{Statement, Verdict, judge};
use super::{Averaging, Committed, Conductor, ConductorEffect, Phase};
use crate::training::clip;
use crate::training::ids::{ShardId, StageId, Step};
use crate::training::ledger::Ledger;
use crate::training::message::{Mate, ToPeer, ToTrainer};

/// When members hold different averages, and nobody can tell whose is wrong, they are formed again so often.
const DIFFER_MAX: u32 = 2;
/// An average that failed is formed again after this long.
const AVERAGE_AGAIN_MS: u64 = 100;
/// Newcomers that miss one update are waited for so long, or for as long as the last step took.
const NEWCOMERS_MS_MIN: u64 = 500;

impl Conductor {
    /// Shards whose keys are all done are averaged as soon as they are.
    pub(super) fn start_averages(&mut self, turn: &mut Turn<'_>) {
        if self.step >= self.config.steps {
            return;
        }
        for shard in 0..self.shards.len() {
            let stages = self.shards[shard].stages.clone();
            let complete = stages.iter().all(|&s| {
                self.open[0].ledgers[s as usize].complete()
                    && self.members_of(s).next().is_some()
                    && self.is_agreed(s)
                    && !self.handing_over(s)
                    && !self.nearly_there(turn.now_ms, s)
            });
            let early = turn.now_ms < self.shards[shard].not_before_ms;
            if self.shards[shard].averaging.is_some() || !complete || early {
                continue;
            }
            self.round += 1;
            let names: BTreeSet<PeerName> =
                stages.iter().flat_map(|&s| self.members_of(s)).cloned().collect();
            let group: Vec<Mate> =
                names.iter().filter_map(|n| self.peers.get(n)).map(|p| p.mate.clone()).collect();
            for name in &names {
                let average = ToPeer::Average {
                    step: self.step,
                    shard: shard as ShardId,
                    round: self.round,
                    group: group.clone(),
                };
                turn.tell(name, average);
            }
            self.shards[shard].averaging = Some(Averaging {
                round: self.round,
                since_ms: turn.now_ms,
                group: names,
                squares: BTreeMap::new(),
            });
        }
    }

    /// With delayed updates the averages of a step begin as soon as the step before is decided. Whoever waited for that, and gets the update that
    /// it missed, takes part all the same: there is time, as the microbatches of the next step are being done.
    pub(super) fn nearly_there(&self, now_ms: u64, stage: StageId) -> bool {
        let comes = |p: &PeerState| p.place == Place::Fetching { stage } && p.step + 1 == self.step;
        self.config.delayed_updates
            && self.measured.is_after_edge(now_ms, NEWCOMERS_MS_MIN)
            && self.peers.values().any(comes)
    }

    pub(super) fn averaged(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        step: Step,
        shard: ShardId,
        round: u64,
        squares: Vec<f64>,
    ) {
        if step != self.step {
            return;
        }
        let averaging = self.shards.get_mut(shard as usize).and_then(|s| s.averaging.as_mut());
        if let Some(averaging) = averaging.filter(|a| a.round == round && a.group.contains(name)) {
            averaging.squares.insert(name.clone(), squares);
            if averaging.complete() {
                self.usual.averaged(now_ms.saturating_sub(averaging.since_ms));
            }
        }
    }

    pub(super) fn average_failed(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        (step, shard, round): (Step, ShardId, u64),
        why: &str,
        mate: Option<PeerName>,
    ) {
        let Some(state) = self.shards.get_mut(shard as usize).filter(|_| step == self.step) else { return };
        if state.averaging.as_ref().is_some_and(|a| a.round == round) {
            // A lost peer will be reported as such. Until then another attempt now and then costs little.
            state.not_before_ms = turn.now_ms + AVERAGE_AGAIN_MS;
            self.form_anew(turn, shard);
            turn.note(format!("{name} could not average step {step}: {why}; trying again"));
            self.blame(turn, shard as usize, name, mate);
        }
    }

    /// Everything is averaged everywhere: the step is decided.
    pub(super) fn try_commit(&mut self, turn: &mut Turn<'_>) {
        let averaged = self.shards.iter().all(|s| s.averaging.as_ref().is_some_and(Averaging::complete));
        let served = (0..self.config.stages).all(|s| self.members_of(s).next().is_some());
        let validated = self.validation.values().all(Option::is_some);
        if !averaged || !served || !validated || self.phase != Phase::Running {
            return;
        }
        if self.averages_differ(turn) {
            return;
        }
        let mut squares = Vec::new();
        // Canonical order of tensors: the shared embedding is the first, then stage by stage.
        let (own, shared) = self.shards.split_at(self.config.stages as usize);
        for averaging in shared.iter().chain(own).filter_map(|s| s.averaging.as_ref()) {
            squares.extend(averaging.squares.values().next().into_iter().flatten());
        }
        let norm = match clip::norm(&squares) {
            Ok(norm) => norm,
            Err(diverged) => return self.fail(turn, format!("step {}: {diverged}", self.step)),
        };
        let scale = clip::scale(norm, self.config.clip);
        let (step, prove) = (self.step, self.proves(self.step + 1));
        let members: Vec<PeerName> =
            (0..self.config.stages).flat_map(|s| self.members_of(s)).cloned().collect();
        for name in members {
            turn.tell(&name, ToPeer::Apply { step, scale, prove });
        }
        for name in self.trainers.keys() {
            turn.tell_trainer(name, ToTrainer::Committed { step });
        }
        let losses = self.open[0].ledgers.last().map_or(0.0, Ledger::loss);
        let validation: Option<f64> =
            (!self.validation.is_empty()).then(|| self.validation.values().flatten().sum());
        turn.push(ConductorEffect::Committed(Committed {
            step,
            loss: losses,
            validation,
            norm,
            redone: self.open[0].redone,
        }));
        self.step += 1;
        self.last_scale = Some(scale);
        self.open_next();
        self.after_commit(turn);
    }

    /// Do members of a shard hold different averages? Who holds another than most machines is expelled. When nobody can tell, it is formed once more: a bit that flipped on the
    /// way does not do so again.
    pub(super) fn averages_differ(&mut self, turn: &mut Turn<'_>) -> bool {
        for shard in 0..self.shards.len() {
            let Some(averaging) = &self.shards[shard].averaging else { continue };
            let host =
                |name: &PeerName| self.peers.get(name).map(|p| p.mate.host.clone()).unwrap_or_default();
            let says = |squares: &[f64]| squares.iter().map(|v| v.to_bits()).collect::<Vec<u64>>();
            let said: BTreeMap<PeerName, Statement<Vec<u64>>> = averaging
                .squares
                .iter()
                .map(|(name, squares)| {
                    (name.clone(), Statement { host: host(name), says: says(squares), copied: false })
                })
                .collect();
            let step = self.step;
            match judge(&said, |a, b| a == b) {
                Verdict::Agreed => continue,
                Verdict::Odd(names) => {
                    let why = format!("its average of step {step} is not that of most others");
                    self.expel(turn, names, &why);
                }
                Verdict::Tied => {
                    let names: Vec<&str> = said.keys().map(PeerName::as_str).collect();
                    let what = format!("{} hold different averages of step {step}", names.join(" and "));
                    self.shards[shard].differed += 1;
                    if self.shards[shard].differed > DIFFER_MAX {
                        self.tied(turn, &what);
                    } else {
                        turn.note(format!("{what}: they are formed once more"));
                        self.form_anew(turn, shard as ShardId);
                    }
                }
            }
            return true;
        }
        false
    }

    /// An average must be formed from the sums that are still there: what was only in the old one is open again.
    pub(super) fn form_anew(&mut self, turn: &mut Turn<'_>, shard: ShardId) {
        self.shards[shard as usize].averaging = None;
        for stage in self.shards[shard as usize].stages.clone() {
            for holder in self.open[0].ledgers[stage as usize].holders() {
                if self.serving_stage(&holder) != Some(stage) && !self.in_doubt.contains_key(&holder) {
                    self.release(turn, self.step, stage, &holder);
                }
            }
        }
    }
}
