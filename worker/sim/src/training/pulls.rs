//! Pulls in virtual time: what peers ask of each other, and what they are given.

use dunlin_protocol::training::driver::DriverEvent;
use dunlin_protocol::training::fetch::FetchEvent;
use dunlin_protocol::training::reduce::ReduceEvent;
use dunlin_protocol::training::serve::{ServeEffect, Wanted};
use dunlin_protocol::training::{AskId, AverageId, FetchFailure, StageId};
use dunlin_swarm::PeerName;

use super::averaging::Come;
use super::events::{Event, Given};
use super::got::Part;
use super::peer_shell::Work;
use super::pulling::{Pull, Purpose, Taker};
use super::scenario::Kinds;
use super::world::World;

/// A mate that gives nothing for so long is given up.
const PATIENCE_MS: u64 = 5_000;
/// Of so many parts of states one is not what its giver has, where peers are wrong.
const WRONG_ONE_IN: u64 = 8;

impl World {
    /// Asks a mate.
    pub(super) fn pull(
        &mut self,
        name: &PeerName,
        mate: &PeerName,
        stage: StageId,
        wanted: Wanted,
        purpose: Purpose,
    ) {
        let ask = self.count();
        // The machine of an average says itself when a mate is lost.
        if !matches!(purpose, Purpose::Average(..)) {
            let (to, why) = (name.clone(), Some("silent".to_owned()));
            self.at(PATIENCE_MS, Event::PullEnded { to, ask, why });
        }
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.pulls.insert(ask, Pull { mate: mate.clone(), purpose });
        let after = self.latency();
        let (to, by) = (mate.clone(), name.clone());
        self.at(after, Event::Pull { to, by, ask, stage, wanted });
    }

    pub(super) fn pull_arrives(
        &mut self,
        name: &PeerName,
        by: PeerName,
        ask: AskId,
        stage: StageId,
        wanted: Wanted,
    ) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.retired) else {
            let (after, why) = (self.latency(), Some("gone".to_owned()));
            return self.at(after, Event::PullEnded { to: by, ask, why });
        };
        peer.takers.insert(ask, Taker { by: by.clone(), stage, last: 0 });
        self.drive(name, DriverEvent::Asked { ask, by, stage, wanted });
    }

    /// Somebody is given something, or nothing.
    pub(super) fn serve(&mut self, name: &PeerName, effect: ServeEffect) {
        match effect {
            ServeEffect::Give(ask, Wanted::Sums(id, range)) => {
                self.give(name, Work::GiveSums { ask, id, range });
            }
            ServeEffect::Give(ask, Wanted::Result(id, range)) => {
                let Some(peer) = self.peers.get(name) else { return };
                if peer.averages.get(&id.shard).is_some_and(|averaging| averaging.id() == id) {
                    self.reduce(name, id, ReduceEvent::Asked(ask, range));
                } else if peer.driver.wants(id) {
                    self.violation(format!("{name} gives a part of {id:?}, which it has not begun"));
                } else {
                    self.given(name, ask, Some("the average is given up".to_owned()));
                }
            }
            ServeEffect::Give(ask, wanted) => self.give(name, Work::GiveStage { ask, wanted }),
            ServeEffect::Refuse(ask, why) => self.given(name, ask, Some(why.to_string())),
        }
    }

    /// Something is on its way to whoever asked.
    pub(super) fn send(&mut self, name: &PeerName, ask: AskId, given: Given) {
        let slow = match given {
            Given::Values(_) => self.scenario.script.as_ref().map_or(0, |s| s.average_ms),
            _ => 0,
        };
        let at = self.now() + self.latency() + slow;
        if let Some((to, at)) = self.arrival(name, ask, at) {
            self.at(at - self.now(), Event::Given { to, ask, given });
        }
    }

    /// The engine has come to it: a mate gets what there is of the stage.
    pub(super) fn give_stage(&mut self, name: &PeerName, ask: AskId, wanted: Wanted) {
        let is_wrong = self.scenario.kinds == Kinds::Wrong && self.draw(WRONG_ONE_IN) == 0;
        let Some(peer) = self.peers.get(name) else { return };
        if peer.takers.get(&ask).is_some_and(|taker| taker.stage != peer.stage) {
            let here = peer.stage;
            return self.violation(format!("{name} gives {wanted:?} of stage {here} for that of another"));
        }
        let given = match wanted {
            Wanted::State(chunks) => {
                let mut part = Part::of(peer.step, peer.state, &chunks);
                if let Some(word) = part.words.last_mut().filter(|_| is_wrong) {
                    *word ^= 1;
                    *self.out.faults.entry("wrong chunk given").or_insert(0) += 1;
                }
                Some(Given::State(part))
            }
            Wanted::Update(step) => peer.history.get(&step).cloned().map(Given::Update),
            Wanted::AllSums(step, _) if step >= peer.step => {
                Some(Given::Sums(peer.sums.get(&step).cloned().unwrap_or_default()))
            }
            _ => None,
        };
        let why = given.is_none().then(|| "that is not here".to_owned());
        if let Some(given) = given {
            self.send(name, ask, given);
        }
        self.given(name, ask, why);
    }

    /// That was all, or nothing more comes.
    pub(super) fn given(&mut self, name: &PeerName, ask: AskId, why: Option<String>) {
        let at = self.now() + self.latency();
        if let Some((to, at)) = self.arrival(name, ask, at) {
            self.at(at - self.now(), Event::PullEnded { to, ask, why });
        }
        if let Some(peer) = self.peers.get_mut(name) {
            peer.takers.remove(&ask);
            self.drive(name, DriverEvent::Served(ask));
        }
    }

    fn arrival(&mut self, name: &PeerName, ask: AskId, at: u64) -> Option<(PeerName, u64)> {
        let taker = self.peers.get_mut(name)?.takers.get_mut(&ask)?;
        taker.last = taker.last.max(at);
        Some((taker.by.clone(), taker.last))
    }

    /// Something has come that was asked for.
    pub(super) fn arrives_given(&mut self, name: &PeerName, ask: AskId, given: Given) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.silent) else { return };
        let Some(purpose) = peer.pulls.get(&ask).map(|pull| pull.purpose.clone()) else { return };
        match (purpose, given) {
            (Purpose::Average(id, part), Given::Values(values)) => {
                self.comes(name, id, part, Come::Piece(values));
            }
            (Purpose::Take(take), Given::Sums(sums)) => {
                peer.pulls.remove(&ask);
                peer.arrived.insert(take.from.name.clone(), sums);
                self.drive(name, DriverEvent::Received(take, true));
            }
            (Purpose::Fetch(fetch), given) => {
                peer.pulls.remove(&ask);
                self.fetched(name, fetch, given);
            }
            (purpose, _) => self.violation(format!("{name} is given something else for {purpose:?}")),
        }
    }

    pub(super) fn pull_ended(&mut self, name: &PeerName, ask: AskId, why: Option<String>) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.silent) else { return };
        let Some(pull) = peer.pulls.remove(&ask) else { return };
        match pull.purpose {
            Purpose::Average(id, part) => self.comes(name, id, part, Come::End(why)),
            Purpose::Take(take) => self.drive(name, DriverEvent::Received(take, false)),
            Purpose::Fetch(id) => {
                let why = why.unwrap_or_else(|| "nothing came".to_owned());
                self.fetch_event(name, FetchEvent::Failed(id, FetchFailure::Passing, why));
            }
        }
    }

    /// Whoever waits for something of a peer that is gone learns that, in its own time.
    pub(super) fn break_pulls(&mut self, gone: &PeerName) {
        let mut broken = Vec::new();
        for (name, peer) in &self.peers {
            let pulls = peer.pulls.iter().filter(|(_, pull)| pull.mate == *gone);
            broken.extend(pulls.map(|(ask, _)| (name.clone(), *ask)));
        }
        for (to, ask) in broken {
            let (after, why) = (self.notice(), Some("gone".to_owned()));
            self.at(after, Event::PullEnded { to, ask, why });
        }
    }

    /// Wakes a peer when the first of its machines wants that.
    pub(super) fn wake_later(&mut self, name: &PeerName) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(name) else { return };
        let averages = peer.averages.values().filter_map(|a| a.wake_ms());
        let Some(wake) = averages.chain(peer.driver.wake_ms()).min() else { return };
        if peer.wakes.is_none_or(|at| wake < at) {
            peer.wakes = Some(wake);
            self.at(wake.saturating_sub(now), Event::Wake(name.clone()));
        }
    }

    pub(super) fn wake(&mut self, name: &PeerName) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.silent) else { return };
        peer.wakes = None;
        let due = |wake: Option<u64>| wake.is_some_and(|wake| wake <= now);
        let drives = due(peer.driver.wake_ms());
        let averages: Vec<AverageId> =
            peer.averages.values().filter(|a| due(a.wake_ms())).map(|a| a.id()).collect();
        for id in averages {
            self.reduce(name, id, ReduceEvent::Deadline);
        }
        if drives {
            self.drive(name, DriverEvent::Deadline);
        }
        self.wake_later(name);
    }
}
