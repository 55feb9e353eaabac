//! Files of checkpoints in virtual time.

use dunlin_protocol::training::driver::DriverEvent;
use dunlin_protocol::training::{StageId, Step};
use dunlin_swarm::PeerName;

use super::events::Event;
use super::flaw::Flaw;
use super::numbers::State;
use super::world::World;
use crate::serving::model::mix;

impl World {
    /// The engine has come to it: the state is taken as it is now.
    pub(super) fn save(&mut self, name: &PeerName, step: Step, check: bool) {
        let compared = self.is_compared(name) && self.is_checked(name, step);
        let Some(peer) = self.peers.get_mut(name) else { return };
        let broken = !check && std::mem::take(&mut peer.broken_disk);
        let (stage, mut state) = (peer.stage, peer.state);
        if peer.flaw.take_if(|flaw| *flaw == Flaw::Miswrites).is_some() && compared {
            state.now.own ^= 1 << 3;
        }
        if peer.step != step {
            let at = peer.step;
            self.violation(format!("{name} saves step {step} and is at {at}"));
        }
        if broken {
            // It strikes now, and costs the pause before the next attempt.
            self.last_fault = self.now();
        }
        let works = check || (!broken && !self.is_away());
        let after = 5 + self.draw(150);
        self.at(after, Event::Written { peer: name.clone(), step, stage, state, works });
    }

    /// Was somebody else of its stage, who is right, told to say what should be written?
    fn is_checked(&self, name: &PeerName, step: Step) -> bool {
        let stage = self.peers.get(name).map(|peer| peer.stage);
        let right = |other: &PeerName| {
            let peer = self.peers.get(other).filter(|p| p.healthy() && p.flaw.is_none());
            other != name && peer.map(|peer| peer.stage) == stage
        };
        self.savers.get(&step).is_some_and(|savers| savers.iter().any(right))
    }

    pub(super) fn written(&mut self, name: &PeerName, step: Step, stage: StageId, state: State, works: bool) {
        let outcome = if works {
            let record = format!("{stage}/{step}/{:x}", mix(state.now.hash(), state.before.hash()));
            self.files.insert(record.clone(), (step, stage, state));
            Ok(record)
        } else {
            Err("no space".to_owned())
        };
        self.drive(name, DriverEvent::Written(step, outcome));
    }
}
