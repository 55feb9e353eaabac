//! Streams that misbehave.

use dunlin_protocol::{Frame, Open, Refusal, Sender};
use dunlin_swarm::{Load, PeerName, is_other_model};

use super::flaw::Flaw;
use super::impostors;
use super::world::{Event, PING_MS, SILENCE_MS, Who, World, gateway_id};

impl World {
    fn can_talk(&self, a: &Who, b: &Who) -> bool {
        let reached = [a, b].into_iter().all(|who| match who {
            Who::Gateway(id) => self.gateways.get(id).is_some_and(|g| g.alive),
            Who::Peer(name) => self.peers.get(name).is_some_and(|p| p.alive && !p.silent),
        });
        // A stage refuses the stream of who says that it is of another model.
        reached && !is_other_model(self.said_model(a), self.said_model(b))
    }

    /// The digest that somebody says of its model.
    fn said_model(&self, who: &Who) -> &str {
        let model = match who {
            Who::Gateway(id) => self.gateways.get(id).map(|gateway| &gateway.model),
            Who::Peer(name) => self.peers.get(name).map(|peer| &peer.model),
        };
        model.map_or("", |model| &model.digest)
    }

    pub fn exists(&self, who: &Who) -> bool {
        match who {
            Who::Gateway(id) => self.gateways.get(id).is_some_and(|g| g.alive),
            Who::Peer(name) => self.peers.get(name).is_some_and(|p| p.alive),
        }
    }

    pub fn send(&mut self, from: Who, to: Who, frame: Frame) {
        let frame = match frame {
            Frame::Open(open)
                if self.scenario.flaw == Some(Flaw::LosesAdapters) && matches!(from, Who::Peer(_)) =>
            {
                Frame::Open(Open { adapter: None, ..open })
            }
            frame => frame,
        };
        if !self.exists(&to) {
            let after = 1 + self.draw(5);
            self.at(after, Event::Broken { at: from, other: to });
            return;
        }
        if !self.can_talk(&from, &to) {
            return;
        }
        let key = (from.clone(), to.clone());
        let generation = self.generations.get(&key).copied().unwrap_or(0);
        let delay = 1 + self.draw(self.scenario.delay_ms);
        let arrival = (self.now() + delay).max(self.last_arrival.get(&key).copied().unwrap_or(0));
        self.last_arrival.insert(key, arrival);
        let after = arrival - self.now();
        if self.draw(50) == 0 {
            let (from, to, frame) = (from.clone(), to.clone(), frame.clone());
            self.at(after, Event::Deliver { from, to, generation, frame });
        }
        self.at(after, Event::Deliver { from, to, generation, frame });
    }

    /// A stream is reset: what is on its way is lost, both ends hear of it.
    pub fn reset(&mut self, a: &Who, b: &Who) {
        for (from, to) in [(a, b), (b, a)] {
            *self.generations.entry((from.clone(), to.clone())).or_default() += 1;
            let after = 1 + self.draw(3);
            self.at(after, Event::Broken { at: from.clone(), other: to.clone() });
        }
    }

    pub fn deliver(&mut self, from: Who, to: Who, generation: u64, frame: Frame) {
        let key = (from.clone(), to.clone());
        if self.generations.get(&key).copied().unwrap_or(0) != generation || !self.can_talk(&from, &to) {
            return;
        }
        if let (Frame::Refused { session, attempt, reason, .. }, Who::Peer(peer)) = (&frame, &from) {
            let text = format!("{peer} refuses session {session}, attempt {attempt}: {reason:?}");
            self.say(|| text);
            self.out.no_pages += u32::from(*reason == Refusal::NoPages);
        }
        match (from, to) {
            (Who::Peer(peer), Who::Gateway(id)) => self.gateway(id, |g, now, out| {
                g.heard.insert(peer.clone(), now);
                if let Frame::Pong { seq, .. } = frame {
                    g.core.round_trip(&peer, (now - seq) * 1000, now);
                }
                g.core.frame(&peer, frame, now, out);
            }),
            (from, Who::Peer(name)) => self.reach_peer(&from, &name, frame),
            (Who::Gateway(_), Who::Gateway(_)) => {}
        }
    }

    fn reach_peer(&mut self, from: &Who, name: &PeerName, frame: Frame) {
        let now = self.now();
        let row_us = self.scenario.row_us;
        let Some(peer) = self.peers.get_mut(name) else { return };
        if peer.deaf && matches!(frame, Frame::Rows { .. }) {
            return;
        }
        if self.scenario.impostors {
            impostors::disturb(&mut peer.node, &frame, now, &mut self.out);
        }
        let sender = match from {
            Who::Gateway(id) => Sender::Gateway(gateway_id(*id)),
            Who::Peer(name) => Sender::Peer(name.clone()),
        };
        if let Sender::Gateway(gateway) = &sender {
            peer.node.heard(gateway, None, now);
        }
        if let (Sender::Gateway(gateway), Frame::Ping { seq, .. }) = (&sender, &frame) {
            let free = peer.engine.pages().free();
            let load = Load {
                queue_rows: peer.engine.line().rows(),
                free_pages: free as u32,
                spare_pages: peer.node.spare_pages(),
                total_pages: peer.engine.pages().total() as u32,
                layer_rows: peer.engine.layer_rows(),
                arithmetic: Some(peer.arithmetic),
                rows_per_s_per_layer: 1e6 / (row_us * peer.slow) as f64,
                held: peer.held.clone(),
                draining: peer.draining,
                ..Load::default()
            };
            let held = peer.node.held().remove(gateway).unwrap_or_default();
            let pong = Frame::Pong { seq: *seq, load, held };
            return self.send(Who::Peer(name.clone()), from.clone(), pong);
        }
        let mut effects = Vec::new();
        peer.node.frame(&sender, frame, now, &mut effects);
        self.stage_effects(name, effects);
    }

    /// A gateway's stream to a peer works.
    pub fn connected(&mut self, id: u64, peer: PeerName) {
        if !self.can_talk(&Who::Gateway(id), &Who::Peer(peer.clone())) {
            return;
        }
        self.gateway(id, |g, now, _| {
            g.connected.insert(peer.clone());
            g.heard.insert(peer.clone(), now);
            g.core.peer_up(peer.clone());
        });
        self.send(Who::Gateway(id), Who::Peer(peer), Frame::Ping { seq: self.now(), epoch: 0 });
    }

    pub fn gateway_lost(&mut self, id: u64, peer: &PeerName) {
        let connected = self.gateways.get_mut(&id).is_some_and(|g| g.connected.remove(peer));
        if connected {
            self.say(|| format!("gateway {id} lost {peer}"));
            self.gateway(id, |g, now, out| g.core.peer_lost(peer, now, out));
        }
        // Dialled again for as long as it is in the topology.
        if self.dialled(id).any(|name| name == peer) {
            let after = 50 + self.draw(100);
            self.at(after, Event::Connected { gateway: id, peer: peer.clone() });
        }
    }

    /// Whom a gateway should have a stream to.
    fn dialled(&self, id: u64) -> impl Iterator<Item = &PeerName> {
        let own = self.gateways.get(&id).and_then(|gateway| gateway.core.topology());
        let topology = if self.hosted { own } else { Some(&self.topology) };
        topology.into_iter().flat_map(|topology| &topology.peers).map(|peer| &peer.name)
    }

    /// Pings, and peers that were silent for too long.
    pub fn ping(&mut self, id: u64) {
        let pings = self.now() % PING_MS < 25;
        let peers: Vec<PeerName> = self.gateways[&id].connected.iter().cloned().collect();
        for peer in peers {
            let heard = self.gateways[&id].heard.get(&peer).copied().unwrap_or(0);
            if self.now().saturating_sub(heard) > SILENCE_MS {
                let stream = (Who::Gateway(id), Who::Peer(peer.clone()));
                self.generations.entry(stream).and_modify(|g| *g += 1).or_insert(1);
                self.gateway_lost(id, &peer);
            } else if pings {
                self.send(Who::Gateway(id), Who::Peer(peer), Frame::Ping { seq: self.now(), epoch: 0 });
            }
        }
        // A peer that could not be reached when it was dialled is dialled again.
        let connected = &self.gateways[&id].connected;
        let names = self.dialled(id).filter(|name| pings && !connected.contains(*name));
        let missing: Vec<PeerName> = names.cloned().collect();
        for peer in missing {
            let after = 5 + self.draw(10);
            self.at(after, Event::Connected { gateway: id, peer });
        }
    }
}
