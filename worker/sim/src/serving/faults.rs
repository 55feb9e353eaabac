//! What goes wrong.

use dunlin_swarm::{NumericsClass, PeerName};

use super::model::ReadModel;
use super::scenario::Fault;
use super::world::{Event, Who, World};

impl World {
    /// A fault at random.
    pub fn fault(&mut self, i: u32) {
        self.last_fault = self.now();
        self.out.faults += 1;
        let alive: Vec<PeerName> =
            self.peers.iter().filter(|(_, p)| p.alive && !p.silent).map(|(n, _)| n.clone()).collect();
        if alive.is_empty() {
            return;
        }
        let victim = alive[self.draw(alive.len() as u64) as usize].clone();
        match self.draw(9) {
            0 | 1 => self.kill(&victim, None),
            2 => {
                // Two at once: sessions may have to wait for a replacement.
                self.kill(&victim, None);
                if let Some(other) = alive.iter().find(|n| **n != victim) {
                    self.kill(other, None);
                }
            }
            3 => {
                self.say(|| format!("{victim} falls silent"));
                let after = 300 + self.draw(3000);
                if let Some(peer) = self.peers.get_mut(&victim) {
                    peer.silent = true;
                }
                self.at(after, Event::Unsilence(victim));
            }
            // One at a time: with all holders of a layer deaf, or without adapters, nothing but patience would help.
            4 if self.peers.values().all(|p| !p.alive || !(p.deaf || p.bare)) => {
                self.say(|| format!("{victim} goes deaf"));
                if let Some(peer) = self.peers.get_mut(&victim) {
                    peer.deaf = true;
                }
            }
            4..=6 => {
                let other = alive[self.draw(alive.len() as u64) as usize].clone();
                let gateways = self.alive_gateways();
                let gateway = Who::Gateway(gateways[self.draw(gateways.len() as u64) as usize]);
                let a = if other == victim { gateway } else { Who::Peer(other) };
                self.say(|| format!("the stream between {a:?} and {victim} is reset"));
                self.reset(&a, &Who::Peer(victim));
            }
            7 => {
                let factor = 5 + self.draw(20);
                self.slow_down(&victim, factor);
            }
            _ => {
                let gateways = self.alive_gateways();
                let id = gateways[self.draw(gateways.len() as u64) as usize];
                self.say(|| format!("gateway {id} restarts"));
                if let Some(gateway) = self.gateways.get_mut(&id) {
                    gateway.alive = false;
                }
                let next = u64::from(i) * 2 + 10 + id % 2;
                self.start_gateway(next, ReadModel::default());
                let topology = self.topology.clone();
                self.gateway(next, |g, now, out| g.core.set_topology(topology, now, out));
            }
        }
    }

    /// A planned one.
    pub fn planned(&mut self, fault: &Fault) {
        self.last_fault = self.now();
        self.out.faults += 1;
        let place = match fault {
            Fault::Kill { place, .. } | Fault::Slow { place, .. } => place,
            Fault::Update { arithmetic } => return self.update(*arithmetic),
        };
        let Some(victim) = self.topology.peers.get(*place).map(|p| p.name.clone()) else { return };
        match *fault {
            Fault::Kill { replaced_ms, arithmetic, .. } => {
                self.kill(&victim, Some((replaced_ms, arithmetic)))
            }
            Fault::Slow { factor, .. } => self.slow_down(&victim, factor),
            Fault::Update { .. } => {}
        }
    }

    /// A peer beside each, with the same layers; then the older ones go.
    fn update(&mut self, arithmetic: NumericsClass) {
        self.say(|| format!("all are replaced by peers with version {arithmetic} of the arithmetic"));
        for (i, peer) in (0..).zip(self.topology.peers.clone()) {
            self.at(100 * i, Event::Join(peer.span, peer.shadows.clone(), arithmetic));
            self.at(1500 + 300 * i, Event::Retire(peer.name));
        }
    }

    /// A peer that is told to go, and does when it has nothing left to do.
    pub fn retire(&mut self, name: PeerName) {
        let Some(peer) = self.peers.get_mut(&name).filter(|peer| peer.alive) else { return };
        peer.draining = true;
        if !peer.is_clean() {
            return self.at(200, Event::Retire(name));
        }
        self.last_fault = self.now();
        self.remove(&name);
        self.at(20, Event::Publish);
    }

    fn slow_down(&mut self, name: &PeerName, factor: u64) {
        self.say(|| format!("{name} becomes {factor} times as slow"));
        if let Some(peer) = self.peers.get_mut(name) {
            peer.slow = factor;
        }
    }

    fn remove(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.alive = false;
        self.topology.peers.retain(|p| p.name != *name);
        self.topology.epoch += 1;
    }

    /// A peer is killed. `replaced`: after how long by one of which class, if not by chance.
    fn kill(&mut self, name: &PeerName, replaced: Option<(u64, NumericsClass)>) {
        let Some(place) = self.topology.peer(name).cloned() else { return };
        self.say(|| format!("{name} is killed"));
        self.remove(name);
        // Half of the time the kernel of the dead machine tells everybody; else only silence does.
        if replaced.is_some() || self.draw(2) == 0 {
            let others: Vec<Who> = self
                .peers
                .keys()
                .cloned()
                .map(Who::Peer)
                .chain(self.gateways.keys().copied().map(Who::Gateway))
                .collect();
            for other in others.into_iter().filter(|o| *o != Who::Peer(name.clone())) {
                let after = 1 + self.draw(3);
                self.at(after, Event::Broken { at: other, other: Who::Peer(name.clone()) });
            }
        }
        let (after, arithmetic) = replaced.unwrap_or_else(|| (300 + self.draw(2500), NumericsClass::FIRST));
        self.at(after, Event::Join(place.span, place.shadows, arithmetic));
    }
}
