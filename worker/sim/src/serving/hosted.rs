//! A swarm whose peers and gateways come and go as somebody outside says: whoever simulates the cluster around it, and who decides there.

use std::collections::BTreeSet;

use dunlin_swarm::{Layers, NumericsClass, PeerName, Topology};

use super::model::{LAYERS, ReadModel, mix};
use super::scenario::{BrokenOff, Outcome, Scenario};
use super::world::{ADAPTERS, Event, Who, World};

/// Layers of its model.
pub const MODEL_LAYERS: u32 = LAYERS;
/// What a row takes in one layer: answers last for seconds, so that there are some whenever something happens.
const ROW_US: u64 = 20_000;

/// Gateways and peers, and the network between them.
pub struct Hosted(World);

impl Hosted {
    /// Without anybody. `trace` keeps what happens.
    #[must_use]
    pub fn new(seed: u64, trace: bool) -> Self {
        // What the network draws is not what the one who hosts it draws.
        let seed = mix(seed, 0x5e55);
        let mut world =
            World::empty(Scenario { row_us: ROW_US, sessions: 0, trace, ..Scenario::quiet(seed) });
        world.hosted = true;
        world.at(1, Event::Tick);
        Self(world)
    }

    /// Lets everything happen until then.
    pub fn run_until(&mut self, now_ms: u64) {
        let world = &mut self.0;
        while let Some(event) = world.calendar.pop_due(now_ms) {
            world.handle(event);
        }
        world.calendar.pass_to(now_ms);
    }

    /// A peer of `model` starts, without layers, and computes these bits.
    pub fn start_peer(&mut self, name: &PeerName, arithmetic: NumericsClass, model: ReadModel) {
        self.0.start_peer(name, Vec::new(), arithmetic, model);
        if let Some(peer) = self.0.peers.get_mut(name) {
            peer.node.set_adapters(ADAPTERS.map(Into::into).into());
        }
    }

    /// It can execute these layers from now on.
    pub fn hold(&mut self, name: &PeerName, held: Vec<Layers>) {
        if let Some(peer) = self.0.peers.get_mut(name) {
            peer.node.set_held(held.clone());
            peer.held = held;
        }
    }

    /// It says that it is about to go.
    pub fn drain(&mut self, name: &PeerName) {
        if let Some(peer) = self.0.peers.get_mut(name) {
            peer.draining = true;
        }
    }

    /// It ends. `resets`: its streams are reset; otherwise only its silence tells.
    pub fn end_peer(&mut self, name: &PeerName, resets: bool) {
        let world = &mut self.0;
        let Some(peer) = world.peers.get_mut(name).filter(|peer| peer.alive) else { return };
        peer.alive = false;
        if !resets {
            return;
        }
        let peers =
            world.peers.iter().filter(|(_, peer)| peer.alive).map(|(other, _)| Who::Peer(other.clone()));
        let others: Vec<Who> = peers.chain(world.gateways.keys().copied().map(Who::Gateway)).collect();
        for at in others {
            let after = 1 + world.draw(3);
            world.at(after, Event::Broken { at, other: Who::Peer(name.clone()) });
        }
    }

    /// It is lost, or will be: an answer with its arithmetic may fail because no peer of it has a layer any more.
    pub fn excuse(&mut self, name: &PeerName) {
        let world = &mut self.0;
        world.excused.extend(world.peers.get(name).map(|peer| peer.arithmetic));
    }

    /// Nobody reaches it for so long; whoever asks it outside of the network may.
    pub fn silence(&mut self, name: &PeerName, for_ms: u64) {
        if let Some(peer) = self.0.peers.get_mut(name) {
            peer.silent = true;
            self.0.at(for_ms, Event::Unsilence(name.clone()));
        }
    }

    /// Somebody has a session there.
    #[must_use]
    pub fn is_busy(&self, name: &PeerName) -> bool {
        self.0.peers.get(name).is_some_and(|peer| peer.node.session_count() > 0)
    }

    /// Layers that sessions use there.
    #[must_use]
    pub fn in_use(&self, name: &PeerName) -> Vec<Layers> {
        self.0.peers.get(name).map(|peer| peer.node.layers_in_use()).unwrap_or_default()
    }

    /// A gateway of `model` starts, without a topology.
    pub fn start_gateway(&mut self, id: u64, model: ReadModel) {
        self.0.start_gateway(id, model);
    }

    /// It takes no more sessions.
    pub fn close_gateway(&mut self, id: u64) {
        if let Some(gateway) = self.0.gateways.get_mut(&id) {
            gateway.closing = true;
        }
    }

    /// It ends, and what runs there with it.
    pub fn end_gateway(&mut self, id: u64) {
        if let Some(gateway) = self.0.gateways.get_mut(&id) {
            gateway.alive = false;
        }
    }

    /// A topology reaches a gateway.
    pub fn push(&mut self, id: u64, topology: Topology) {
        self.0.gateway(id, |gateway, now, out| gateway.core.set_topology(topology, now, out));
    }

    /// Sessions that run or wait there.
    #[must_use]
    pub fn sessions_of(&self, id: u64) -> usize {
        let counts = self.0.gateways.get(&id).map(|gateway| gateway.core.counts());
        counts.map_or(0, |(running, waiting)| running + waiting)
    }

    /// The topology of a gateway, and the peers of it that it does not reach.
    #[must_use]
    pub fn known(&self, id: u64) -> Option<(&Topology, BTreeSet<String>)> {
        let core = &self.0.gateways.get(&id)?.core;
        let topology = core.topology()?;
        let lost = topology.peers.iter().filter(|peer| !core.up().contains(&peer.name));
        Some((topology, lost.map(|peer| peer.name.0.clone()).collect()))
    }

    /// Classes of peers that its answers need.
    #[must_use]
    pub fn needed(&mut self, id: u64) -> BTreeSet<Option<NumericsClass>> {
        let gateway = self.0.gateways.get_mut(&id).filter(|gateway| gateway.alive);
        gateway.map(|gateway| gateway.core.needed()).unwrap_or_default()
    }

    /// It could take a session now.
    pub fn is_ready(&mut self, id: u64) -> bool {
        self.0.gateways.get_mut(&id).is_some_and(|gateway| gateway.alive && gateway.core.ready().is_ok())
    }

    /// A client asks, at any gateway that takes sessions, until one takes it.
    pub fn ask(&mut self) {
        let next = self.0.scenario.sessions;
        self.0.scenario.sessions += 1;
        self.0.at(0, Event::Submit(next));
    }

    /// Sessions that are not done, of gateways that are alive; and those that nobody has taken yet.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        let world = &self.0;
        let waiting = world.scenario.sessions as usize - world.asked.len();
        waiting + world.asked.values().filter(|a| !a.done && world.gateways[&a.gateway].alive).count()
    }

    /// Answers that ended early because the swarm has another model, since the last time.
    pub fn broken_off(&mut self) -> Vec<BrokenOff> {
        std::mem::take(&mut self.0.out.broken_off)
    }

    /// Moves what happened since the last time to `trace`.
    pub fn tell(&mut self, trace: &mut Vec<String>) {
        trace.append(&mut self.0.out.trace);
    }

    /// What came of it: every answer must be the one of an undisturbed run, unless it was broken off, and nothing of any session may be left.
    #[must_use]
    pub fn end(mut self) -> Outcome {
        self.0.judge();
        self.0.out
    }
}
