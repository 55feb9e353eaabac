//! Averages and updates of a peer in virtual time, and what a judge says of them.

use std::collections::BTreeMap;

use dunlin_protocol::training::driver::DriverEvent;
use dunlin_protocol::training::{AverageId, Conductor, ShardId, StageId, Step};
use dunlin_swarm::PeerName;

use super::flaw::Flaw;
use super::got::Update;
use super::numbers::State;
use super::peer_shell::digest;
use super::world::World;

impl World {
    /// The averages that an update is made with, as of when the engine is given that: they must contain every key once.
    pub(super) fn averages_of(&mut self, name: &PeerName, step: Step) -> Option<BTreeMap<ShardId, i64>> {
        let shape = self.scenario.shape;
        let peer = self.peers.get(name)?;
        let mut averages = BTreeMap::new();
        for shard in shape.shards(peer.stage) {
            let held = peer.averages.get(&shard).filter(|a| a.id().step == step && a.complete);
            let Some(average) = held else {
                self.violation(format!("{name} updates step {step} without the average of shard {shard}"));
                return None;
            };
            let stages = shape.stages_of(shard);
            let all = stages.iter().flat_map(|s| (0..shape.microbatches).map(move |m| ((step, m, *s), 1)));
            if let Some((at, keys)) = average.lacks(&all.collect()) {
                let text =
                    format!("{name}, step {step}, shard {shard}, value {at}: not every key once: {keys:?}");
                self.violation(text);
                return None;
            }
            averages.insert(shard, average.sum().unwrap_or_default());
        }
        Some(averages)
    }

    /// The engine has come to the update.
    pub(super) fn apply(&mut self, name: &PeerName, update: Update, prove: bool) {
        let Update { step, averages, scale } = update;
        let shape = self.scenario.shape;
        let compared = self.is_compared(name);
        let Some(peer) = self.peers.get_mut(name) else { return };
        let stage = peer.stage;
        if peer.step != step {
            let at = peer.step;
            self.violation(format!("{name} updates step {step} and is at {at}"));
            return;
        }
        peer.state = shape.next(&peer.state, shape.update(stage, &peer.state.now, &averages, scale));
        if peer.flaw.take_if(|flaw| *flaw == Flaw::Miscalculates).is_some() && compared {
            peer.state.now.own ^= 1 << 17;
            peer.flaw = Some(Flaw::Differs);
        }
        peer.step += 1;
        peer.sums = peer.sums.split_off(&peer.step);
        peer.remember(Update { step, averages, scale });
        let state = peer.state;
        self.check(name, stage, step + 1, state);
        let digest = digest(&state, prove);
        self.drive(name, DriverEvent::Applied(step + 1, digest));
    }

    /// The average of a shard is complete.
    pub(super) fn squares(&mut self, name: &PeerName, id: AverageId) {
        let Some(sum) = self.sum_of(name, id) else { return };
        let mut squares = self.scenario.shape.squares(sum);
        let compared = self.is_compared(name);
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(averaging) = peer.averages.get_mut(&id.shard).filter(|a| a.id() == id) else { return };
        averaging.complete = true;
        if peer.flaw.take_if(|flaw| *flaw == Flaw::OtherAverage).is_some() && compared {
            squares[0] += 1.0;
        }
        self.say(|| format!("{name} has the average {id:?}"));
        self.drive(name, DriverEvent::Averaged(id, squares));
    }

    /// Does anybody serve the stage of a peer who is right? What the only one does nobody can compare with anything.
    pub(super) fn is_compared(&self, name: &PeerName) -> bool {
        let right = |other: &PeerName| self.peers.get(other).is_some_and(|p| p.healthy() && p.flaw.is_none());
        self.stage_mates(name).iter().any(right) && !self.is_witness(name)
    }

    /// Has another peer of its stage a state that is wrong? Whether anybody notices may depend on this one.
    pub(super) fn is_witness(&self, name: &PeerName) -> bool {
        let wrong = |other: &PeerName| self.peers.get(other).is_some_and(|p| p.flaw == Some(Flaw::Differs));
        self.stage_mates(name).iter().any(wrong)
    }

    /// The others that serve the stage of a peer.
    fn stage_mates(&self, name: &PeerName) -> Vec<PeerName> {
        let mut stages = self.conductor.iter().flat_map(Conductor::members);
        let mut mates = stages.find(|members| members.contains(name)).unwrap_or_default();
        mates.retain(|other| other != name);
        mates
    }

    /// Are these the weights of the steps done one after the other?
    pub(super) fn check(&mut self, name: &PeerName, stage: StageId, step: Step, state: State) {
        let right = self.truth.get(step as usize).map(|t| t.states[stage as usize]);
        // What is wrong with somebody who is, others have to notice.
        if right != Some(state) && !self.wrong {
            self.violation(format!("{name}, stage {stage}, step {step}: {state:?} instead of {right:?}"));
        }
    }
}
