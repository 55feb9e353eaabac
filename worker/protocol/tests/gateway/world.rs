//! The gateway, and the stages that the test plays.

use std::collections::BTreeMap;

use dunlin_protocol::gateway::{Rejected, Submission};
use dunlin_protocol::{
    Frame, GatewayConfig, GatewayCore, GatewayEffect, GatewayId, HeldSession, Open, Refusal, SamplingParams,
    SessionId, Windows,
};
use dunlin_swarm::{Layers, Load, NumericsClass, PeerState, Topology, TopologyPeer};

/// Three peers with two layers each, and the next one's as shadows.
pub const PEERS: [&str; 3] = ["a", "b", "c"];

pub fn topology(epoch: u64, names: &[&str]) -> Topology {
    let span = |i: u32| Layers::new(2 * i, 2 * i + 2);
    let peer = |(i, name): (usize, &&str)| TopologyPeer {
        name: (*name).into(),
        addr: format!("{name}:1"),
        span: span(i as u32),
        shadows: vec![span((i as u32 + 1) % 3)],
        state: PeerState::Ready,
        ..TopologyPeer::default()
    };
    Topology {
        epoch,
        layers: 6,
        peers: PEERS.iter().enumerate().filter(|(_, n)| names.contains(n)).map(peer).collect(),
        ..Topology::default()
    }
}

pub fn load(topology: &Topology, name: &str) -> Load {
    Load {
        free_pages: 1000,
        spare_pages: 1000,
        total_pages: 1000,
        arithmetic: Some(NumericsClass::FIRST),
        rows_per_s_per_layer: 1000.0,
        held: topology.peer(&name.into()).map(TopologyPeer::hold).unwrap_or_default(),
        ..Load::default()
    }
}

pub struct World {
    pub core: GatewayCore,
    pub topology: Topology,
    pub loads: BTreeMap<&'static str, Load>,
    pub now_ms: u64,
    pub out: Vec<GatewayEffect>,
}

impl World {
    pub fn new() -> Self {
        let core = GatewayCore::new(GatewayConfig {
            id: GatewayId { name: "g".into(), incarnation: 1 },
            model_digest: String::new(),
            started_ms: 0,
            running_max: 8,
            queue_max: 8,
            stall_ms: 2000,
            retry_after_s: 1,
        });
        let topology = topology(1, &PEERS);
        let loads = PEERS.map(|name| (name, load(&topology, name))).into();
        let mut world = Self { core, topology, loads, now_ms: 1000, out: Vec::new() };
        world.core.set_topology(world.topology.clone(), 1000, &mut world.out);
        PEERS.into_iter().for_each(|name| world.up(name));
        world
    }

    pub fn up(&mut self, name: &'static str) {
        self.core.peer_up(name.into());
        self.pong(name, &[]);
    }

    pub fn pong(&mut self, name: &'static str, held: &[HeldSession]) {
        let frame = Frame::Pong { seq: 0, load: self.loads[name].clone(), held: held.to_vec() };
        self.core.frame(&name.into(), frame, self.now_ms, &mut self.out);
    }

    pub fn lose(&mut self, name: &str) {
        self.core.peer_lost(&name.into(), self.now_ms, &mut self.out);
    }

    /// b is replaced by a peer that computes these bits and has all layers. No other peer has its own.
    pub fn replace_b(&mut self, arithmetic: Option<NumericsClass>) {
        self.loads.get_mut("a").unwrap().held = vec![Layers::new(0, 2)];
        self.pong("a", &[]);
        self.lose("b");
        let b = self.loads.get_mut("b").unwrap();
        (b.arithmetic, b.held) = (arithmetic, vec![Layers::new(0, 6)]);
        self.up("b");
        self.pass(3000);
    }

    pub fn submit(&mut self, session: u64, prompt: usize, max_len: u32) {
        self.submit_to(session, prompt, max_len, Windows::default());
    }

    /// To a model whose layers keep this of a sequence.
    pub fn submit_to(&mut self, session: u64, prompt: usize, max_len: u32, windows: Windows) {
        self.submission(session, prompt, max_len, windows).unwrap();
    }

    pub fn try_submit(&mut self, session: u64, prompt: usize, max_len: u32) -> Result<(), Rejected> {
        self.submission(session, prompt, max_len, Windows::default())
    }

    fn submission(
        &mut self,
        session: u64,
        prompt: usize,
        max_len: u32,
        windows: Windows,
    ) -> Result<(), Rejected> {
        let submission = Submission {
            session: SessionId(session),
            tokens: vec![7; prompt],
            max_len,
            sampling: SamplingParams::default(),
            eos: Vec::new(),
            windows,
            adapter: None,
            deadline_ms: u64::MAX,
        };
        self.core.submit(submission, self.now_ms, &mut self.out)
    }

    pub fn token(&mut self, session: u64, attempt: u32, position: u32) {
        let frame = Frame::Token {
            session: SessionId(session),
            attempt,
            position,
            token: 7,
            logprob: 0.0,
            top: Vec::new(),
            finish: None,
        };
        self.core.frame(&"c".into(), frame, self.now_ms, &mut self.out);
    }

    pub fn refuse(&mut self, session: u64, attempt: u32, index: u32, reason: Refusal) {
        let frame = Frame::Refused { session: SessionId(session), attempt, index, reason };
        self.core.frame(&PEERS[index as usize].into(), frame, self.now_ms, &mut self.out);
    }

    /// Time passes in ticks.
    pub fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 25 {
            self.now_ms += 25;
            self.core.tick(self.now_ms, &mut self.out);
        }
    }

    /// Sessions opened since the last look: attempt, hops with where they go on.
    pub fn opened(&mut self) -> Vec<(u32, Vec<(String, u32)>)> {
        let open = |effect| match effect {
            GatewayEffect::Send { frame: Frame::Open(Open { attempt, route, .. }), .. } => {
                Some((attempt, route.into_iter().map(|hop| (hop.peer.0, hop.from)).collect()))
            }
            _ => None,
        };
        self.out.drain(..).filter_map(open).collect()
    }

    /// Positions of tokens that were said since the last look.
    pub fn emitted(&mut self) -> Vec<u32> {
        let said = |effect| match effect {
            GatewayEffect::Emit { position, .. } => Some(position),
            _ => None,
        };
        self.out.drain(..).filter_map(said).collect()
    }

    pub fn phase(&self, session: u64) -> String {
        self.core.views().into_iter().find(|v| v.session == SessionId(session)).unwrap().phase
    }
}

pub fn hops(list: &[(&str, u32)]) -> Vec<(String, u32)> {
    list.iter().map(|(name, from)| ((*name).to_owned(), *from)).collect()
}
