//! Events in virtual time: who does what when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_planner::shadow::shadows;
use dunlin_planner::{LayoutGoal, Member};
use dunlin_protocol::frame::Attempt;
use dunlin_protocol::gateway::{Failure, Rejected, Submission};
use dunlin_protocol::{
    Frame, GatewayConfig, GatewayCore, GatewayEffect, GatewayId, Recipient, SamplingParams, SessionId,
    StageConfig, StageEffect, StageNode,
};
use dunlin_swarm::{Layers, ModelId, NumericsClass, PeerName, PeerState, Topology, TopologyPeer, ranges};

use super::engine::{Command, Engine};
use super::model::{HIDDEN, LAYERS, ReadModel, mix, windows};
use super::scenario::{BrokenOff, Fault, Outcome, Scenario};
use crate::calendar::Calendar;

pub(super) const PING_MS: u64 = 200;
pub(super) const SILENCE_MS: u64 = 650;
const LEASE_MS: u64 = 10_000;
const TICK_MS: u64 = 25;
/// The same where somebody else says who is there: seldom, as such runs are minutes long.
const HOSTED_TICK_MS: u64 = 100;
/// Adapters of the model.
pub(super) const ADAPTERS: [&str; 2] = ["a", "b"];
/// Everything is finished this long after the last fault, and after what answers take one after the other, or something is stuck.
const LIVENESS_MS: u64 = 60_000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Gateway(u64),
    Peer(PeerName),
}

pub(super) enum Event {
    /// A frame arrives on a stream; streams that were reset have another generation.
    Deliver {
        from: Who,
        to: Who,
        generation: u64,
        frame: Frame,
    },
    /// A batch is done.
    Computed(PeerName),
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
    /// A client goes away.
    Cancel(SessionId),
    /// A fault at random, or a planned one.
    Fault(u32),
    Planned(Fault),
    /// A replacement for a lost peer joins, or silence ends.
    Join(Layers, Vec<Layers>, NumericsClass),
    Unsilence(PeerName),
    /// A peer is told to go.
    Retire(PeerName),
    /// A peer has loaded its adapters.
    Adapt(PeerName),
    /// A topology reaches the gateways.
    Publish,
}

pub(super) struct Peer {
    pub node: StageNode,
    pub engine: Engine,
    pub alive: bool,
    pub silent: bool,
    /// Broken without knowing it: it answers pings and loses every row.
    pub deaf: bool,
    /// It never gets the adapters.
    pub bare: bool,
    /// Everything takes this many times as long.
    pub slow: u64,
    pub arithmetic: NumericsClass,
    pub model: ReadModel,
    /// It is about to go.
    pub draining: bool,
    /// Layers that it has.
    pub held: Vec<Layers>,
}

impl Peer {
    /// Nothing of any session is left.
    pub fn is_clean(&self) -> bool {
        self.engine.is_clean() && self.node.session_count() == 0 && self.node.journal_bytes() == 0
    }
}

pub(super) struct Gateway {
    pub core: GatewayCore,
    pub model: ReadModel,
    pub alive: bool,
    /// It takes no more sessions.
    pub closing: bool,
    pub connected: BTreeSet<PeerName>,
    pub heard: BTreeMap<PeerName, u64>,
}

pub(super) struct Asked {
    pub prompt: Vec<u32>,
    pub max_len: u32,
    pub adapter: Option<Arc<str>>,
    pub gateway: u64,
    pub begun_ms: u64,
    pub got: Vec<u32>,
    /// Its client knows that there will be no more.
    pub done: bool,
    /// Its client went away before that.
    pub cancelled: bool,
    /// What its client was told in place of an answer.
    pub failed: Option<Failure>,
}

pub(super) struct World {
    pub scenario: Scenario,
    pub calendar: Calendar<Event>,
    draws: u64,
    pub peers: BTreeMap<PeerName, Peer>,
    pub gateways: BTreeMap<u64, Gateway>,
    pub generations: BTreeMap<(Who, Who), u64>,
    /// Streams are first in, first out: the next frame arrives no earlier than the one before.
    pub last_arrival: BTreeMap<(Who, Who), u64>,
    pub topology: Topology,
    pub asked: BTreeMap<SessionId, Asked>,
    /// How often each layer computed each position of a session.
    pub computed: BTreeMap<(SessionId, u32), Vec<u32>>,
    made: u32,
    pub last_fault: u64,
    /// Whom a peer told that it goes no further, and in which attempt.
    pub refused: BTreeSet<(PeerName, SessionId, Attempt)>,
    /// Somebody else says who is there and what each gateway knows (`hosted.rs`).
    pub hosted: bool,
    /// Classes of peers that may have lost all holders of a layer: their answers may fail for that.
    pub excused: BTreeSet<NumericsClass>,
    pub out: Outcome,
}

/// Runs a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario.clone());
    let patience_ms = LIVENESS_MS + scenario.alone_ms();
    while let Some(event) = world.calendar.pop() {
        if world.finished() || world.now() > world.last_fault + patience_ms {
            break;
        }
        world.handle(event);
    }
    world.judge();
    world.out
}

pub(super) fn gateway_id(id: u64) -> GatewayId {
    GatewayId { name: format!("g{}", id % 2), incarnation: id }
}

fn even(parts: u32) -> Vec<Layers> {
    (0..parts).map(|i| Layers::new(LAYERS * i / parts, LAYERS * (i + 1) / parts)).collect()
}

/// Who of equal peers with these spans holds what for others, as the planner says: for each layer one, or nobody.
fn planned_shadows(spans: &[Layers], one_each: bool) -> Vec<Vec<Layers>> {
    let wanted = LayoutGoal {
        layer_bytes: vec![1; LAYERS as usize],
        shadows: usize::from(one_each),
        ..LayoutGoal::default()
    };
    let member = Member { room_bytes: u64::MAX, ..Member::default() };
    let had = vec![BTreeSet::new(); spans.len()];
    shadows(&wanted, &vec![&member; spans.len()], spans, &[], &had).layers.iter().map(ranges).collect()
}

impl World {
    /// Nobody is there, and nothing happens.
    pub fn empty(scenario: Scenario) -> Self {
        Self {
            calendar: Calendar::default(),
            draws: 0,
            peers: BTreeMap::new(),
            gateways: BTreeMap::new(),
            generations: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            topology: Topology { layers: LAYERS, model: ModelId::default(), ..Topology::default() },
            asked: BTreeMap::new(),
            computed: BTreeMap::new(),
            made: 0,
            last_fault: 0,
            refused: BTreeSet::new(),
            hosted: false,
            excused: BTreeSet::new(),
            out: Outcome::default(),
            scenario,
        }
    }

    fn new(scenario: Scenario) -> Self {
        let mut world = Self::empty(scenario);
        let spans = even(world.scenario.peers);
        for (span, shadows) in spans.iter().zip(planned_shadows(&spans, world.scenario.shadows)) {
            world.join(*span, shadows, NumericsClass::FIRST);
        }
        for id in 0..world.scenario.gateways {
            world.start_gateway(id, ReadModel::default());
        }
        world.at(0, Event::Publish);
        world.at(1, Event::Tick);
        for i in 0..world.scenario.sessions {
            let after = 50 + world.draw(world.scenario.asked_ms);
            world.at(after, Event::Submit(i));
        }
        for i in 0..world.scenario.faults {
            let after = 200 + world.draw(4000);
            world.at(after, Event::Fault(i));
        }
        for (at, fault) in world.scenario.plan.clone() {
            world.at(at, Event::Planned(fault));
        }
        world
    }

    pub fn draw(&mut self, below: u64) -> u64 {
        self.draws += 1;
        mix(self.scenario.seed, self.draws.wrapping_mul(0x1234_5678_9abc_def1)) % below.max(1)
    }

    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if self.scenario.trace {
            let line = format!("{:>7} ms  {}", self.now(), text());
            self.out.trace.push(line);
        }
    }

    pub fn now(&self) -> u64 {
        self.calendar.now()
    }

    pub fn at(&mut self, after_ms: u64, event: Event) {
        self.calendar.at(after_ms, event);
    }

    pub fn start_gateway(&mut self, id: u64, model: ReadModel) {
        let core = GatewayCore::new(GatewayConfig {
            id: gateway_id(id),
            model_digest: model.digest.clone(),
            started_ms: 0,
            running_max: self.scenario.running_max,
            queue_max: self.scenario.queue_max,
            stall_ms: 2000,
            retry_after_s: 1,
        });
        let (connected, heard) = (BTreeSet::new(), BTreeMap::new());
        let gateway = Gateway { core, model, alive: true, closing: false, connected, heard };
        self.gateways.insert(id, gateway);
    }

    fn join(&mut self, span: Layers, shadows: Vec<Layers>, arithmetic: NumericsClass) {
        self.made += 1;
        let name = PeerName(format!("p{}", self.made));
        let all: BTreeSet<u32> = shadows.iter().chain([&span]).flat_map(|l| l.iter()).collect();
        self.start_peer(&name, ranges(&all), arithmetic, ReadModel::default());
        // The first of some swarms never has them.
        let is_late = self.scenario.late_adapters
            && mix(self.scenario.seed, 1000 + u64::from(self.made)).is_multiple_of(4);
        let bare = is_late && self.made == 1;
        if let Some(peer) = self.peers.get_mut(&name) {
            peer.bare = bare;
        }
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
            let after = if is_late { mix(self.scenario.seed, u64::from(self.made)) % 3000 } else { 0 };
            self.at(after, Event::Adapt(name));
        }
    }

    pub fn start_peer(
        &mut self,
        name: &PeerName,
        held: Vec<Layers>,
        arithmetic: NumericsClass,
        model: ReadModel,
    ) {
        let mut node = StageNode::new(StageConfig {
            name: name.clone(),
            hidden: HIDDEN,
            arithmetic,
            positions_max: 4096,
            windows: windows(self.scenario.slides),
            pages: self.scenario.pages as u32,
            sessions_max: 16.max(2 * self.scenario.running_max),
            journal_bytes_max: self.scenario.journal_bytes_max,
            lease_ms: LEASE_MS,
        });
        node.set_held(held.clone());
        let peer = Peer {
            node,
            engine: Engine::new(&self.scenario, arithmetic, &model.source),
            alive: true,
            silent: false,
            deaf: false,
            bare: false,
            slow: 1,
            arithmetic,
            model,
            draining: false,
            held,
        };
        self.peers.insert(name.clone(), peer);
    }

    /// An event happens; how many there are at once is noted.
    pub fn handle(&mut self, event: Event) {
        self.happens(event);
        self.out.in_flight_max = self.out.in_flight_max.max(self.calendar.count());
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, generation, frame } => self.deliver(from, to, generation, frame),
            Event::Computed(name) => {
                let now = self.now();
                let Some(peer) = self.peers.get_mut(&name).filter(|p| p.alive) else { return };
                let mut effects = Vec::new();
                for done in peer.engine.end() {
                    peer.node.computed(done, now, &mut effects);
                }
                self.stage_effects(&name, effects);
            }
            Event::Broken { at: Who::Gateway(id), other: Who::Peer(peer) } => self.gateway_lost(id, &peer),
            Event::Broken { at: Who::Peer(name), other: Who::Peer(other) } => {
                let Some(p) = self.peers.get_mut(&name).filter(|p| p.alive) else { return };
                let mut effects = Vec::new();
                p.node.link_down(&other, &mut effects);
                self.stage_effects(&name, effects);
            }
            Event::Broken { .. } => {}
            Event::Connected { gateway, peer } => self.connected(gateway, peer),
            Event::Tick => self.tick(),
            Event::Submit(i) => self.submit(i),
            Event::Cancel(session) => self.cancel(session),
            Event::Fault(i) => self.fault(i),
            Event::Planned(fault) => self.planned(&fault),
            Event::Join(span, shadows, arithmetic) => {
                self.join(span, shadows, arithmetic);
                self.at(20, Event::Publish);
            }
            Event::Retire(name) => self.retire(name),
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

    pub fn alive_gateways(&self) -> Vec<u64> {
        self.gateways.iter().filter(|(_, g)| g.alive).map(|(id, _)| *id).collect()
    }

    pub fn gateway(&mut self, id: u64, act: impl FnOnce(&mut Gateway, u64, &mut Vec<GatewayEffect>)) {
        let now = self.now();
        let mut out = Vec::new();
        if let Some(gateway) = self.gateways.get_mut(&id).filter(|g| g.alive) {
            act(gateway, now, &mut out);
        }
        self.gateway_effects(id, out);
    }

    pub fn stage_effects(&mut self, name: &PeerName, effects: Vec<StageEffect>) {
        for effect in effects {
            let command = match effect {
                StageEffect::Send {
                    to: Recipient::Peer { name: other, .. } | Recipient::Upstream(other),
                    frame,
                } => {
                    self.send(Who::Peer(name.clone()), Who::Peer(other), frame);
                    continue;
                }
                StageEffect::Send { to: Recipient::Gateway(gateway), frame } => {
                    let to = Who::Gateway(gateway.incarnation);
                    if let Frame::Refused { session, attempt, .. } = &frame {
                        self.refused.insert((name.clone(), *session, *attempt));
                    }
                    if self.exists(&to) {
                        self.send(Who::Peer(name.clone()), to, frame);
                    }
                    continue;
                }
                // Nobody lies here: whatever is late, doubled or stale is still its sender's to send.
                StageEffect::Forbidden { from, rule } => {
                    self.out.violations.push(format!("{from} to {name}: {rule}"));
                    continue;
                }
                StageEffect::Compute(job) => Command::Job(job),
                StageEffect::Truncate { session, layers, to } => Command::Truncate(session, layers, to),
                StageEffect::Free { session, layers } => Command::Truncate(session, layers, 0),
            };
            if let Some(peer) = self.peers.get_mut(name) {
                peer.engine.command(command);
            }
        }
        self.compute(name);
    }

    /// The engine takes up its next batch, if it has none.
    fn compute(&mut self, name: &PeerName) {
        let more = self.draw(2);
        let Some(peer) = self.peers.get_mut(name).filter(|p| p.alive) else { return };
        let (begun, slow) = (peer.engine.begin(), peer.slow);
        let wrong = peer.engine.wrong();
        self.out.violations.extend(wrong.into_iter().map(|what| format!("{name}: {what}")));
        let Some((layer_rows, parts)) = begun else { return };
        let after = 1 + more + layer_rows * self.scenario.row_us * slow / 1000;
        for ((session, layers), start, count) in parts {
            for layer in layers.iter() {
                let times = self.computed.entry((session, layer)).or_default();
                times.resize(times.len().max((start + count) as usize), 0);
                times[start as usize..(start + count) as usize].iter_mut().for_each(|n| *n += 1);
            }
        }
        self.at(after, Event::Computed(name.clone()));
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
                GatewayEffect::Send { peer, frame } => {
                    self.check_open(id, &frame);
                    self.say_open(&frame);
                    self.send(Who::Gateway(id), Who::Peer(peer), frame);
                }
                GatewayEffect::Emit { session, position, token, .. } => {
                    self.emitted(session, position, token)
                }
                GatewayEffect::Finished { session, .. } => {
                    self.say(|| format!("session {session} is finished"));
                    self.out.finished_ms = self.now();
                    self.ended(session, None);
                }
                GatewayEffect::Failed { session, error } => {
                    self.say(|| format!("session {session} fails: {error:?}"));
                    self.ended(session, Some(error));
                }
                GatewayEffect::TopologyRefused(why) => self.say(|| format!("gateway {id}: {why}")),
                GatewayEffect::Recovered { session, recovery } => {
                    *self.out.recoveries.entry(recovery.reason).or_default() += 1;
                    self.out.replayed_rows += recovery.replayed_rows;
                    self.out.stall_ms_max = self.out.stall_ms_max.max(recovery.stall_ms);
                    self.say(|| format!("session {session} goes on: {recovery:?}"));
                }
            }
        }
    }

    fn say_open(&mut self, frame: &Frame) {
        let Frame::Open(open) = frame else { return };
        self.say(|| {
            let hops = open.route.iter().map(|hop| format!("{} {} from {}", hop.peer, hop.layers, hop.from));
            let (session, attempt, tokens) = (open.session, open.attempt, open.tokens.len());
            format!(
                "session {session}, attempt {attempt} with {tokens} tokens: {}",
                hops.collect::<Vec<_>>().join(", ")
            )
        });
    }

    /// A session's client is told that there will be no more.
    fn ended(&mut self, session: SessionId, failed: Option<Failure>) {
        let Some(asked) = self.asked.get_mut(&session) else { return };
        if asked.done {
            self.out.violations.push(format!("session {session} ends again: {failed:?}"));
        }
        asked.done = true;
        if let Some(Failure::OtherModel(_)) = &failed {
            let source = self.gateways[&asked.gateway].model.source.clone();
            let (begun_ms, at_ms) = (asked.begun_ms, self.calendar.now());
            self.out.broken_off.push(BrokenOff { session: session.0, source, begun_ms, at_ms });
        }
        asked.failed = failed;
    }

    /// A client goes away in the middle.
    fn cancel(&mut self, session: SessionId) {
        let Some(asked) = self.asked.get_mut(&session).filter(|asked| !asked.done) else { return };
        (asked.done, asked.cancelled) = (true, true);
        self.out.cancelled += 1;
        let id = asked.gateway;
        self.say(|| format!("the client of session {session} goes away"));
        self.gateway(id, |g, now, out| g.core.cancel(session, now, out));
    }

    fn emitted(&mut self, session: SessionId, position: u32, token: u32) {
        let Some(asked) = self.asked.get_mut(&session) else { return };
        if position as usize != asked.prompt.len() + asked.got.len() {
            let want = asked.prompt.len() + asked.got.len();
            self.out.violations.push(format!("session {session} got position {position}, not {want}"));
        }
        if asked.done {
            self.out.violations.push(format!("session {session} got a token behind its end"));
        }
        asked.got.push(token);
    }

    fn tick(&mut self) {
        for id in self.alive_gateways() {
            self.gateway(id, |g, now, out| g.core.tick(now, out));
            self.ping(id);
        }
        let names: Vec<PeerName> =
            self.peers.iter().filter(|(_, p)| p.alive).map(|(n, _)| n.clone()).collect();
        for name in names {
            let mut effects = Vec::new();
            let now = self.now();
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.node.tick(now, &mut effects);
            }
            self.stage_effects(&name, effects);
            self.starved(&name);
        }
        self.at(if self.hosted { HOSTED_TICK_MS } else { TICK_MS }, Event::Tick);
    }

    /// A stage hears whether its engine lacks pages. Whoever has to make room hears of it.
    fn starved(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.alive) else { return };
        let is_starved = peer.engine.line().is_starved();
        let held = if is_starved { peer.node.held() } else { BTreeMap::new() };
        let mut effects = Vec::new();
        peer.node.starved(is_starved, &mut effects);
        self.out.starved += u32::from(is_starved);
        self.check_told(name, &held, &effects);
        self.stage_effects(name, effects);
    }

    fn submit(&mut self, i: u32) {
        let mut gateways = self.alive_gateways();
        gateways.retain(|id| !self.gateways[id].closing);
        if gateways.is_empty() {
            return self.at(300, Event::Submit(i));
        }
        let gateway = gateways[self.draw(gateways.len() as u64) as usize];
        let session = SessionId(u64::from(i) + 1);
        let (prompt_max, answer_max) = (self.scenario.prompt_max, self.scenario.answer_max);
        let (mut len, mut answer) =
            (1 + self.draw(prompt_max), 20 + self.draw(answer_max.saturating_sub(20)));
        if self.scenario.is_exact {
            (len, answer) = (prompt_max, answer_max);
        }
        let prompt: Vec<u32> = (0..len).map(|p| (mix(u64::from(i), p) % 1000) as u32).collect();
        let max_len = (len + answer) as u32;
        // Every third session is of the model itself.
        let adapter: Option<Arc<str>> = ADAPTERS.get(i as usize % 3).map(|&name| name.into());
        let submission = Submission {
            session,
            tokens: prompt.clone(),
            max_len,
            sampling: SamplingParams { seed: u64::from(i), ..SamplingParams::default() },
            eos: Vec::new(),
            windows: windows(self.scenario.slides),
            adapter: adapter.clone(),
            deadline_ms: u64::MAX,
        };
        let mut outcome = Ok(());
        self.gateway(gateway, |g, now, out| outcome = g.core.submit(submission, now, out));
        match outcome {
            Ok(()) => {
                self.say(|| format!("session {session} starts on gateway {gateway}"));
                let asked = Asked {
                    prompt,
                    max_len,
                    adapter,
                    gateway,
                    begun_ms: self.now(),
                    got: Vec::new(),
                    done: false,
                    cancelled: false,
                    failed: None,
                };
                if self.scenario.cancels && mix(self.scenario.seed, 2000 + u64::from(i)).is_multiple_of(3) {
                    let after = mix(self.scenario.seed, 3000 + u64::from(i)) % 1500;
                    self.at(after, Event::Cancel(session));
                }
                self.asked.insert(session, asked);
            }
            // As a client would: again, after a while.
            Err(rejected @ (Rejected::Busy { .. } | Rejected::NoCapacity { .. })) => {
                self.out.turned_away += u32::from(matches!(rejected, Rejected::Busy { .. }));
                self.at(300, Event::Submit(i));
            }
            Err(Rejected::Invalid { message }) => self.out.violations.push(message),
        }
    }
}
