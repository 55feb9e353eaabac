//! How peers end in virtual time.

use dunlin_protocol::training::CallId;
use dunlin_protocol::training::driver::DriverEvent;
use dunlin_swarm::PeerName;

use super::events::{Answer, Event};
use super::world::World;

impl World {
    /// What it has or computes is not right.
    pub(super) fn peer_ends(&mut self, name: &PeerName, why: &str) {
        self.say(|| format!("{name} ends: {why}"));
        self.end_peer(name);
        if self.scenario.script.is_none() {
            let after = 100 + self.draw(500);
            self.at(after, Event::Join);
        }
    }

    /// Nobody needs it.
    pub(super) fn peer_retires(&mut self, name: &PeerName) {
        self.say(|| format!("{name} retires"));
        if let Some(peer) = self.peers.get_mut(name) {
            peer.retired = true;
            if let Some(stream) = peer.stream.take() {
                self.break_stream(stream, false);
            }
        }
        if self.finished_at.is_none() {
            self.end_peer(name);
        }
    }

    /// Without notice, or at the end of it.
    pub(super) fn kill_peer(&mut self, name: &PeerName, again: bool) {
        if !self.peers.contains_key(name) {
            return;
        }
        self.say(|| format!("{name} is killed"));
        self.unforeseen = true;
        self.end_peer(name);
        if again {
            self.replace();
        }
    }

    fn end_peer(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.remove(name) else { return };
        self.break_pulls(name);
        if let Some(stream) = peer.stream {
            self.streams.remove(&stream);
            let after = self.notice();
            self.at(after, Event::ConductorLearns { stream, name: name.clone() });
        }
        // Trainers learn that their calls will not be answered.
        let calls: Vec<(PeerName, CallId)> = self
            .trainers
            .iter()
            .flat_map(|(t, shell)| {
                shell.calls.iter().filter(|(_, c)| c.0 == *name).map(|(id, _)| (t.clone(), *id))
            })
            .collect();
        for (trainer, id) in calls {
            let after = self.notice();
            self.at(after, Event::Answer { from: name.clone(), trainer, id, answer: Answer::Broken });
        }
    }

    pub(super) fn peer_leaves(&mut self, name: &PeerName, within_ms: u64) {
        self.say(|| format!("{name} will leave"));
        if let Some(peer) = self.peers.get_mut(name) {
            peer.leaving = true;
        }
        self.drive(name, DriverEvent::Notice { within_ms });
    }
}
