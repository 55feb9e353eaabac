//! Events in virtual time, faults, and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_planner::{Layers, Load, ModelId, PeerName, PeerState, Topology, TopologyPeer};
use dunlin_protocol::gateway::{Rejected, Submission};
use dunlin_protocol::{
    Destination, Frame, GatewayConfig, GatewayCore, GatewayEffect, GatewayId, Open, SamplingParams, Sender,
    SessionId, StageConfig, StageEffect, StageNode,
};

use crate::impostors;
use crate::model::{Engine, HIDDEN, expected, mix};

const LAYERS: u32 = 6;
const PING_MS: u64 = 200;
const SILENCE_MS: u64 = 650;
const LEASE_MS: u64 = 10_000;
/// Adapters of the model.
const ADAPTERS: [&str; 2] = ["a", "b"];
/// Everything is finished this long after the last fault, or something is stuck.
const LIVENESS_MS: u64 = 60_000;

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything random follows from it.
    pub seed: u64,
    /// Stages.
    pub peers: u32,
    /// Sessions.
    pub sessions: u32,
    /// Faults in all.
    pub faults: u32,
    /// Pages of one layer that each peer has.
    pub pages: usize,
    /// A fault that no swarm may have: peers pass sessions on without their adapter.
    pub loses_adapters: bool,
    /// A peer and a gateway that are on no route send false frames of the sessions of others.
    pub impostors: bool,
    /// Keep a trace.
    pub trace: bool,
}

impl Scenario {
    /// A scenario drawn from its seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self {
            seed,
            peers: 2 + (mix(seed, 1) % 3) as u32,
            sessions: 1 + (mix(seed, 2) % 6) as u32,
            faults: (mix(seed, 3) % 6) as u32,
            pages: if mix(seed, 4).is_multiple_of(4) { 60 } else { 1000 },
            loses_adapters: false,
            impostors: false,
            trace: false,
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What does not hold.
    pub violations: Vec<String>,
    /// Faults that happened.
    pub faults: u32,
    /// Sessions that went on after a disturbance.
    pub recoveries: u32,
    /// False frames of impostors that were refused.
    pub refused: u32,
    /// Largest number of frames on their way at once.
    pub in_flight_max: usize,
    /// What happened, if asked for.
    pub trace: Vec<String>,
}

impl Outcome {
    /// `ok`, or the first thing that does not hold.
    #[must_use]
    pub fn verdict(&self) -> String {
        self.violations.first().cloned().unwrap_or_else(|| "ok".to_owned())
    }
}

fn gateway_id(id: u64) -> GatewayId {
    GatewayId { name: format!("g{}", id % 2), incarnation: id }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Gateway(u64),
    Peer(PeerName),
}

enum Event {
    /// A frame arrives on a stream; streams that were reset have another generation.
    Deliver {
        from: Who,
        to: Who,
        generation: u64,
        frame: Frame,
    },
    /// A job is done.
    Run {
        peer: PeerName,
        job: dunlin_protocol::stage::Job,
    },
    /// One end learns that a stream is gone.
    Broken {
        at: Who,
        other: Who,
    },
    /// A gateway's stream works.
    Connected {
        gateway: u64,
        peer: PeerName,
    },
    Tick,
    Submit(u32),
    Fault(u32),
    /// A replacement for a lost peer joins, or silence ends.
    Join(Layers, Vec<Layers>),
    Unsilence(PeerName),
    /// A peer has loaded its adapters.
    Adapt(PeerName),
    /// A topology reaches the gateways.
    Publish,
}

struct Peer {
    node: StageNode,
    engine: Engine,
    alive: bool,
    silent: bool,
    /// Broken without knowing it: it answers pings and loses every row.
    deaf: bool,
    /// It never gets the adapters.
    bare: bool,
    /// The engine does one job at a time.
    busy_until: u64,
}

impl Peer {
    /// Nothing of any session is left.
    fn clean(&self) -> bool {
        self.engine.used() == 0 && self.node.session_count() == 0 && self.node.journal_bytes() == 0
    }
}

struct Gateway {
    core: GatewayCore,
    alive: bool,
    connected: BTreeSet<PeerName>,
    heard: BTreeMap<PeerName, u64>,
}

struct Asked {
    prompt: Vec<u32>,
    max_len: u32,
    adapter: Option<Arc<str>>,
    gateway: u64,
    got: Vec<u32>,
    done: bool,
}

struct World {
    scenario: Scenario,
    now: u64,
    order: u64,
    draws: u64,
    events: BTreeMap<(u64, u64), Event>,
    peers: BTreeMap<PeerName, Peer>,
    gateways: BTreeMap<u64, Gateway>,
    generations: BTreeMap<(Who, Who), u64>,
    /// Streams are first in, first out: the next frame arrives no earlier than the one before.
    last_arrival: BTreeMap<(Who, Who), u64>,
    topology: Topology,
    asked: BTreeMap<SessionId, Asked>,
    made: u32,
    last_fault: u64,
    out: Outcome,
}

/// Runs a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario.clone());
    while let Some((&key, _)) = world.events.iter().next() {
        world.now = key.0;
        if world.finished() || world.now > world.last_fault + LIVENESS_MS {
            break;
        }
        if let Some(event) = world.events.remove(&key) {
            world.handle(event);
        }
        world.out.in_flight_max = world.out.in_flight_max.max(world.events.len());
    }
    world.judge();
    world.out
}

fn even(parts: u32) -> Vec<Layers> {
    (0..parts).map(|i| Layers::new(LAYERS * i / parts, LAYERS * (i + 1) / parts)).collect()
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut world = Self {
            now: 0,
            order: 0,
            draws: 0,
            events: BTreeMap::new(),
            peers: BTreeMap::new(),
            gateways: BTreeMap::new(),
            generations: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            topology: Topology { layers: LAYERS, model: ModelId::default(), ..Topology::default() },
            asked: BTreeMap::new(),
            made: 0,
            last_fault: 0,
            out: Outcome::default(),
            scenario,
        };
        let spans = even(world.scenario.peers);
        for (i, span) in spans.iter().enumerate() {
            let shadow = spans[(i + 1) % spans.len()];
            world.join(*span, vec![shadow]);
        }
        for id in 0..2 {
            world.start_gateway(id);
        }
        world.at(0, Event::Publish);
        world.at(1, Event::Tick);
        for i in 0..world.scenario.sessions {
            let after = 50 + world.draw(800);
            world.at(after, Event::Submit(i));
        }
        for i in 0..world.scenario.faults {
            let after = 200 + world.draw(4000);
            world.at(after, Event::Fault(i));
        }
        world
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.draws += 1;
        mix(self.scenario.seed, self.draws.wrapping_mul(0x1234_5678_9abc_def1)) % below.max(1)
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if self.scenario.trace {
            let line = format!("{:>7} ms  {}", self.now, text());
            self.out.trace.push(line);
        }
    }

    fn at(&mut self, after_ms: u64, event: Event) {
        self.order += 1;
        self.events.insert((self.now + after_ms, self.order), event);
    }

    fn start_gateway(&mut self, id: u64) {
        let core = GatewayCore::new(GatewayConfig {
            id: gateway_id(id),
            running_max: 4,
            queue_max: 8,
            stall_ms: 2000,
            retry_after_s: 1,
        });
        let gateway = Gateway { core, alive: true, connected: BTreeSet::new(), heard: BTreeMap::new() };
        self.gateways.insert(id, gateway);
    }

    fn join(&mut self, span: Layers, shadows: Vec<Layers>) {
        self.made += 1;
        let name = PeerName(format!("p{}", self.made));
        let mut node = StageNode::new(StageConfig {
            name: name.clone(),
            hidden: HIDDEN,
            sessions_max: 16,
            journal_bytes_max: if self.scenario.seed.is_multiple_of(3) { 2000 } else { 1 << 20 },
            lease_ms: LEASE_MS,
        });
        let mut held = vec![span];
        held.extend(&shadows);
        let all: BTreeSet<u32> = held.iter().flat_map(|l| l.iter()).collect();
        node.set_held(dunlin_planner::topology::ranges(&all));
        let engine = Engine::new(self.scenario.pages);
        // Some have their adapters a while after they serve; the first of some swarms never.
        let is_slow = mix(self.scenario.seed, 1000 + u64::from(self.made)).is_multiple_of(4);
        let bare = is_slow && self.made == 1;
        self.peers.insert(
            name.clone(),
            Peer { node, engine, alive: true, silent: false, deaf: false, bare, busy_until: 0 },
        );
        self.topology.peers.push(TopologyPeer {
            addr: format!("{name}:1"),
            node: name.0.clone(),
            name: name.clone(),
            span,
            shadows,
            state: PeerState::Ready,
            ..TopologyPeer::default()
        });
        self.topology.epoch += 1;
        if !bare {
            let after = if is_slow { mix(self.scenario.seed, u64::from(self.made)) % 3000 } else { 0 };
            self.at(after, Event::Adapt(name));
        }
    }

    fn can_talk(&self, a: &Who, b: &Who) -> bool {
        [a, b].into_iter().all(|who| match who {
            Who::Gateway(id) => self.gateways.get(id).is_some_and(|g| g.alive),
            Who::Peer(name) => self.peers.get(name).is_some_and(|p| p.alive && !p.silent),
        })
    }

    fn exists(&self, who: &Who) -> bool {
        match who {
            Who::Gateway(id) => self.gateways.get(id).is_some_and(|g| g.alive),
            Who::Peer(name) => self.peers.get(name).is_some_and(|p| p.alive),
        }
    }

    fn send(&mut self, from: Who, to: Who, frame: Frame) {
        let frame = match frame {
            Frame::Open(open) if self.scenario.loses_adapters && matches!(from, Who::Peer(_)) => {
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
        let delay = 1 + self.draw(if self.scenario.seed.is_multiple_of(5) { 40 } else { 4 });
        let arrival = (self.now + delay).max(self.last_arrival.get(&key).copied().unwrap_or(0));
        self.last_arrival.insert(key, arrival);
        let after = arrival - self.now;
        if self.draw(50) == 0 {
            let (from, to, frame) = (from.clone(), to.clone(), frame.clone());
            self.at(after, Event::Deliver { from, to, generation, frame });
        }
        self.at(after, Event::Deliver { from, to, generation, frame });
    }

    /// A stream is reset: what is on its way is lost, both ends hear of it.
    fn reset(&mut self, a: &Who, b: &Who) {
        for (from, to) in [(a, b), (b, a)] {
            *self.generations.entry((from.clone(), to.clone())).or_default() += 1;
            let after = 1 + self.draw(3);
            self.at(after, Event::Broken { at: from.clone(), other: to.clone() });
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, generation, frame } => self.deliver(from, to, generation, frame),
            Event::Run { peer, job } => {
                let Some(p) = self.peers.get_mut(&peer).filter(|p| p.alive) else { return };
                let mut effects = Vec::new();
                if let Some(done) = p.engine.run(&job) {
                    p.node.computed(done, self.now, &mut effects);
                }
                self.stage_effects(&peer, effects);
            }
            Event::Broken { at: Who::Gateway(id), other: Who::Peer(peer) } => self.gateway_lost(id, &peer),
            Event::Broken { at: Who::Peer(name), other: Who::Peer(other) } => {
                let Some(p) = self.peers.get_mut(&name).filter(|p| p.alive) else { return };
                let mut effects = Vec::new();
                p.node.link_down(&other, &mut effects);
                self.stage_effects(&name, effects);
            }
            Event::Broken { .. } => {}
            Event::Connected { gateway, peer } => {
                if !self.can_talk(&Who::Gateway(gateway), &Who::Peer(peer.clone())) {
                    return;
                }
                self.gateway(gateway, |g, now, out| {
                    g.connected.insert(peer.clone());
                    g.heard.insert(peer.clone(), now);
                    g.core.peer_up(peer, now, out);
                });
            }
            Event::Tick => self.tick(),
            Event::Submit(i) => self.submit(i),
            Event::Fault(i) => self.fault(i),
            Event::Join(span, shadows) => {
                self.join(span, shadows);
                self.at(20, Event::Publish);
            }
            Event::Unsilence(name) => {
                if let Some(peer) = self.peers.get_mut(&name) {
                    peer.silent = false;
                }
            }
            Event::Adapt(name) => {
                if let Some(peer) = self.peers.get_mut(&name) {
                    peer.node.set_adapters(ADAPTERS.map(Arc::from).into());
                }
            }
            Event::Publish => {
                for id in self.alive_gateways() {
                    let topology = self.topology.clone();
                    self.gateway(id, |g, now, out| g.core.set_topology(topology, now, out));
                }
            }
        }
    }

    fn alive_gateways(&self) -> Vec<u64> {
        self.gateways.iter().filter(|(_, g)| g.alive).map(|(id, _)| *id).collect()
    }

    fn gateway(&mut self, id: u64, act: impl FnOnce(&mut Gateway, u64, &mut Vec<GatewayEffect>)) {
        let now = self.now;
        let mut out = Vec::new();
        if let Some(gateway) = self.gateways.get_mut(&id).filter(|g| g.alive) {
            act(gateway, now, &mut out);
        }
        self.gateway_effects(id, out);
    }

    fn deliver(&mut self, from: Who, to: Who, generation: u64, frame: Frame) {
        let key = (from.clone(), to.clone());
        if self.generations.get(&key).copied().unwrap_or(0) != generation || !self.can_talk(&from, &to) {
            return;
        }
        match (from, to) {
            (Who::Peer(peer), Who::Gateway(id)) => self.gateway(id, |g, now, out| {
                g.heard.insert(peer.clone(), now);
                g.core.frame(&peer, frame, now, out);
            }),
            (from, Who::Peer(name)) => {
                let now = self.now;
                let Some(peer) = self.peers.get_mut(&name) else { return };
                if peer.deaf && matches!(frame, Frame::Rows { .. }) {
                    return;
                }
                if self.scenario.impostors {
                    impostors::disturb(&mut peer.node, &frame, now, &mut self.out);
                }
                let mut effects = Vec::new();
                let mut pong = None;
                let sender = match &from {
                    Who::Gateway(id) => Sender::Gateway(gateway_id(*id)),
                    Who::Peer(name) => Sender::Peer(name.clone()),
                };
                if let Who::Gateway(id) = from {
                    let gateway = gateway_id(id);
                    peer.node.heard(&gateway, now);
                    if let Frame::Ping { seq, .. } = frame {
                        let load = Load {
                            free_pages: peer.engine.free_pages() as u32,
                            total_pages: self.scenario.pages as u32,
                            rows_per_s_per_layer: 1000.0,
                            held: self.topology.peer(&name).map(TopologyPeer::hold).unwrap_or_default(),
                            ..Load::default()
                        };
                        pong = Some((id, Frame::Pong { seq, load, held: peer.node.held_of(&gateway) }));
                    } else {
                        peer.node.frame(&sender, frame, now, &mut effects);
                    }
                } else {
                    peer.node.frame(&sender, frame, now, &mut effects);
                }
                if let Some((id, frame)) = pong {
                    self.send(Who::Peer(name.clone()), Who::Gateway(id), frame);
                }
                self.stage_effects(&name, effects);
            }
            (Who::Gateway(_), Who::Gateway(_)) => {}
        }
    }

    fn stage_effects(&mut self, name: &PeerName, effects: Vec<StageEffect>) {
        for effect in effects {
            match effect {
                StageEffect::Send { to: Destination::Peer { name: other, .. }, frame } => {
                    self.send(Who::Peer(name.clone()), Who::Peer(other), frame);
                }
                StageEffect::Send { to: Destination::Gateway(gateway), frame } => {
                    let to = Who::Gateway(gateway.incarnation);
                    if self.exists(&to) {
                        self.send(Who::Peer(name.clone()), to, frame);
                    }
                }
                // Nobody lies here: whatever is late, doubled or stale is still its sender's to send.
                StageEffect::Forbidden { from, rule } => {
                    self.out.violations.push(format!("{from} to {name}: {rule}"));
                }
                StageEffect::Compute(job) => {
                    let after = 1 + self.draw(3);
                    let Some(peer) = self.peers.get_mut(name) else { return };
                    // In order, one at a time: what is truncated later is not truncated before.
                    peer.busy_until = peer.busy_until.max(self.now) + after;
                    let wait = peer.busy_until - self.now;
                    self.at(wait, Event::Run { peer: name.clone(), job });
                }
                StageEffect::Truncate { session, layers, to } => {
                    self.forget_jobs(name, session, layers);
                    if let Some(peer) = self.peers.get_mut(name) {
                        peer.engine.truncate(session, layers, to);
                    }
                }
                StageEffect::Free { session, layers } => {
                    self.forget_jobs(name, session, layers);
                    if let Some(peer) = self.peers.get_mut(name) {
                        peer.engine.free(session, layers);
                    }
                }
            }
        }
    }

    /// Jobs of a segment that wait are not done once it is truncated or freed.
    fn forget_jobs(&mut self, name: &PeerName, session: SessionId, layers: Layers) {
        self.events.retain(|_, event| {
            !matches!(event, Event::Run { peer, job, .. } if peer == name && job.session == session && job.layers == layers)
        });
    }

    fn gateway_effects(&mut self, id: u64, effects: Vec<GatewayEffect>) {
        for effect in effects {
            match effect {
                GatewayEffect::Connect { peer, .. } => {
                    let after = 2 + self.draw(10);
                    self.at(after, Event::Connected { gateway: id, peer });
                }
                GatewayEffect::Disconnect { peer } => {
                    if let Some(gateway) = self.gateways.get_mut(&id) {
                        gateway.connected.remove(&peer);
                    }
                }
                GatewayEffect::Send { peer, frame } => self.send(Who::Gateway(id), Who::Peer(peer), frame),
                GatewayEffect::Emit { session, position, token, .. } => {
                    self.emitted(session, position, token)
                }
                GatewayEffect::Finished { session, .. } => {
                    self.say(|| format!("session {session} is finished"));
                    if let Some(asked) = self.asked.get_mut(&session) {
                        asked.done = true;
                    }
                }
                GatewayEffect::Failed { session, error } => {
                    self.out.violations.push(format!("session {session} failed: {error:?}"));
                }
                GatewayEffect::Recovered { session, recovery } => {
                    self.out.recoveries += 1;
                    self.say(|| format!("session {session} goes on: {recovery:?}"));
                }
            }
        }
    }

    fn emitted(&mut self, session: SessionId, position: u32, token: u32) {
        let Some(asked) = self.asked.get_mut(&session) else { return };
        if position as usize != asked.prompt.len() + asked.got.len() {
            let want = asked.prompt.len() + asked.got.len();
            self.out.violations.push(format!("session {session} got position {position}, not {want}"));
        }
        asked.got.push(token);
    }

    fn gateway_lost(&mut self, id: u64, peer: &PeerName) {
        let connected = self.gateways.get_mut(&id).is_some_and(|g| g.connected.remove(peer));
        if connected {
            self.say(|| format!("gateway {id} lost {peer}"));
            self.gateway(id, |g, now, out| g.core.peer_lost(peer, now, out));
        }
        // Dialled again for as long as it is in the topology.
        if self.topology.peer(peer).is_some() {
            let after = 50 + self.draw(100);
            self.at(after, Event::Connected { gateway: id, peer: peer.clone() });
        }
    }

    fn tick(&mut self) {
        for id in self.alive_gateways() {
            self.gateway(id, |g, now, out| g.core.tick(now, out));
            let pings = self.now % PING_MS < 25;
            let peers: Vec<PeerName> = self.gateways[&id].connected.iter().cloned().collect();
            for peer in peers {
                let heard = self.gateways[&id].heard.get(&peer).copied().unwrap_or(0);
                if self.now.saturating_sub(heard) > SILENCE_MS {
                    self.generations
                        .entry((Who::Gateway(id), Who::Peer(peer.clone())))
                        .and_modify(|g| *g += 1)
                        .or_insert(1);
                    self.gateway_lost(id, &peer);
                } else if pings {
                    self.send(Who::Gateway(id), Who::Peer(peer), Frame::Ping { seq: self.now, epoch: 0 });
                }
            }
            // A peer that could not be reached when it was dialled is dialled again.
            let connected = &self.gateways[&id].connected;
            let names = self.topology.peers.iter().map(|p| p.name.clone());
            let missing: Vec<PeerName> = names.filter(|name| pings && !connected.contains(name)).collect();
            for peer in missing {
                let after = 5 + self.draw(10);
                self.at(after, Event::Connected { gateway: id, peer });
            }
        }
        let names: Vec<PeerName> =
            self.peers.iter().filter(|(_, p)| p.alive).map(|(n, _)| n.clone()).collect();
        for name in names {
            let mut effects = Vec::new();
            let now = self.now;
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.node.tick(now, &mut effects);
            }
            self.stage_effects(&name, effects);
        }
        self.at(25, Event::Tick);
    }

    fn submit(&mut self, i: u32) {
        let gateways = self.alive_gateways();
        let gateway = gateways[self.draw(gateways.len() as u64) as usize];
        let session = SessionId(u64::from(i) + 1);
        let len = 1 + self.draw(40);
        let prompt: Vec<u32> = (0..len).map(|p| (mix(u64::from(i), p) % 1000) as u32).collect();
        let max_len = len as u32 + 20 + self.draw(60) as u32;
        // Every third session is of the model itself.
        let adapter: Option<Arc<str>> = ADAPTERS.get(i as usize % 3).map(|&name| name.into());
        let submission = Submission {
            session,
            tokens: prompt.clone(),
            max_len,
            sampling: SamplingParams { seed: u64::from(i), ..SamplingParams::default() },
            eos: Vec::new(),
            adapter: adapter.clone(),
            deadline_ms: u64::MAX,
        };
        let mut outcome = Ok(());
        self.gateway(gateway, |g, now, out| outcome = g.core.submit(submission, now, out));
        match outcome {
            Ok(()) => {
                self.say(|| format!("session {session} starts on gateway {gateway}"));
                let asked = Asked { prompt, max_len, adapter, gateway, got: Vec::new(), done: false };
                self.asked.insert(session, asked);
            }
            // As a client would: again, after a while.
            Err(Rejected::Busy { .. } | Rejected::NoCapacity { .. }) => self.at(300, Event::Submit(i)),
            Err(Rejected::Invalid { message }) => self.out.violations.push(message),
        }
    }

    fn fault(&mut self, i: u32) {
        self.last_fault = self.now;
        self.out.faults += 1;
        let alive: Vec<PeerName> =
            self.peers.iter().filter(|(_, p)| p.alive && !p.silent).map(|(n, _)| n.clone()).collect();
        if alive.is_empty() {
            return;
        }
        let victim = alive[self.draw(alive.len() as u64) as usize].clone();
        match self.draw(8) {
            0 | 1 => self.kill(&victim),
            2 => {
                // Two at once: sessions may have to wait for a replacement.
                self.kill(&victim);
                if let Some(other) = alive.iter().find(|n| **n != victim) {
                    self.kill(other);
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
            _ => {
                let gateways = self.alive_gateways();
                let id = gateways[self.draw(gateways.len() as u64) as usize];
                self.say(|| format!("gateway {id} restarts"));
                if let Some(gateway) = self.gateways.get_mut(&id) {
                    gateway.alive = false;
                }
                let next = u64::from(i) * 2 + 10 + id % 2;
                self.start_gateway(next);
                let topology = self.topology.clone();
                self.gateway(next, |g, now, out| g.core.set_topology(topology, now, out));
            }
        }
    }

    fn kill(&mut self, name: &PeerName) {
        let Some(place) = self.topology.peer(name).cloned() else { return };
        self.say(|| format!("{name} is killed"));
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.alive = false;
        self.topology.peers.retain(|p| p.name != *name);
        self.topology.epoch += 1;
        // Half of the time the kernel of the dead machine tells everybody; else only silence does.
        if self.draw(2) == 0 {
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
        let after = 300 + self.draw(1500);
        self.at(after, Event::Join(place.span, place.shadows));
    }

    /// All sessions of living gateways are done, all are asked, and leases have had time to end.
    fn finished(&self) -> bool {
        let asked = self.asked.len() as u32 == self.scenario.sessions;
        let done = self.asked.values().all(|a| a.done || !self.gateways[&a.gateway].alive);
        let clean = self.peers.values().all(|p| !p.alive || p.clean());
        asked && done && clean && self.now > self.last_fault + 100
    }

    fn judge(&mut self) {
        for (session, asked) in &self.asked {
            let want = expected(
                &asked.prompt,
                LAYERS,
                asked.max_len as usize,
                session.0 - 1,
                asked.adapter.as_deref(),
            );
            let orphan = !self.gateways[&asked.gateway].alive;
            if asked.got != want[..asked.got.len().min(want.len())] {
                self.out.violations.push(format!("session {session} got other tokens"));
            } else if !asked.done && !orphan {
                let (have, all) = (asked.got.len(), want.len());
                self.out.violations.push(format!("session {session} is stuck at {have} of {all} tokens"));
            } else if asked.done && asked.got != want {
                self.out.violations.push(format!("session {session} ended early"));
            }
        }
        if self.asked.len() as u32 != self.scenario.sessions {
            self.out.violations.push("not every session was taken".to_owned());
        }
        for (name, peer) in self.peers.iter().filter(|(_, p)| p.alive) {
            if !peer.clean() {
                let (pages, sessions) = (peer.engine.used(), peer.node.session_count());
                self.out.violations.push(format!("{name} keeps {pages} pages of {sessions} sessions"));
            }
        }
        if self.out.in_flight_max > 5000 {
            self.out.violations.push(format!("{} events at once", self.out.in_flight_max));
        }
    }
}
