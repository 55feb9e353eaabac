//! One gateway among stages that the test plays.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use dunlin_protocol::gateway::{Failure, Submission};
use dunlin_protocol::{
    Frame, GatewayConfig, GatewayCore, GatewayEffect, GatewayId, HeldSession, Open, Refusal, SamplingParams,
    SessionId, Windows,
};
use dunlin_swarm::{Layers, Load, NumericsClass, Paging, PeerName, PeerState, Topology, TopologyPeer};

/// Three peers with two layers each, and the next one's as shadows.
const PEERS: [&str; 3] = ["a", "b", "c"];

fn topology(epoch: u64, names: &[&str]) -> Topology {
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

fn load(topology: &Topology, name: &str) -> Load {
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

struct World {
    core: GatewayCore,
    topology: Topology,
    loads: BTreeMap<&'static str, Load>,
    now_ms: u64,
    out: Vec<GatewayEffect>,
}

impl World {
    fn new() -> Self {
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

    fn up(&mut self, name: &'static str) {
        self.core.peer_up(name.into());
        self.pong(name, &[]);
    }

    fn pong(&mut self, name: &'static str, held: &[HeldSession]) {
        let frame = Frame::Pong { seq: 0, load: self.loads[name].clone(), held: held.to_vec() };
        self.core.frame(&name.into(), frame, self.now_ms, &mut self.out);
    }

    fn lose(&mut self, name: &str) {
        self.core.peer_lost(&name.into(), self.now_ms, &mut self.out);
    }

    /// b is replaced by a peer that computes these bits and has all layers. No other peer has its own.
    fn replace_b(&mut self, arithmetic: Option<NumericsClass>) {
        self.loads.get_mut("a").unwrap().held = vec![Layers::new(0, 2)];
        self.pong("a", &[]);
        self.lose("b");
        let b = self.loads.get_mut("b").unwrap();
        (b.arithmetic, b.held) = (arithmetic, vec![Layers::new(0, 6)]);
        self.up("b");
        self.pass(3000);
    }

    fn submit(&mut self, session: u64, prompt: usize, max_len: u32) {
        self.submit_to(session, prompt, max_len, Windows::default());
    }

    /// To a model whose layers keep this of a sequence.
    fn submit_to(&mut self, session: u64, prompt: usize, max_len: u32, windows: Windows) {
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
        self.core.submit(submission, self.now_ms, &mut self.out).unwrap();
    }

    fn token(&mut self, session: u64, attempt: u32, position: u32) {
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

    fn refuse(&mut self, session: u64, attempt: u32, index: u32, reason: Refusal) {
        let frame = Frame::Refused { session: SessionId(session), attempt, index, reason };
        self.core.frame(&PEERS[index as usize].into(), frame, self.now_ms, &mut self.out);
    }

    /// Time passes in ticks.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 25 {
            self.now_ms += 25;
            self.core.tick(self.now_ms, &mut self.out);
        }
    }

    /// Sessions opened since the last look: attempt, hops with where they go on.
    fn opened(&mut self) -> Vec<(u32, Vec<(String, u32)>)> {
        let open = |effect| match effect {
            GatewayEffect::Send { frame: Frame::Open(Open { attempt, route, .. }), .. } => {
                Some((attempt, route.into_iter().map(|hop| (hop.peer.0, hop.from)).collect()))
            }
            _ => None,
        };
        self.out.drain(..).filter_map(open).collect()
    }

    /// Positions of tokens that were said since the last look.
    fn emitted(&mut self) -> Vec<u32> {
        let said = |effect| match effect {
            GatewayEffect::Emit { position, .. } => Some(position),
            _ => None,
        };
        self.out.drain(..).filter_map(said).collect()
    }

    fn phase(&self, session: u64) -> String {
        self.core.views().into_iter().find(|v| v.session == SessionId(session)).unwrap().phase
    }
}

fn hops(list: &[(&str, u32)]) -> Vec<(String, u32)> {
    list.iter().map(|(name, from)| ((*name).to_owned(), *from)).collect()
}

#[test]
fn a_peer_is_behind_until_it_has_said_that_it_holds_what_it_was_given() {
    let mut world = World::new();
    assert!(world.core.behind().is_empty());
    world.lose("a");
    world.core.peer_up("a".into());
    assert!(world.core.behind().contains(&"a".into()));
    // Its own layers, and not yet its shadows.
    world.loads.get_mut("a").unwrap().held = vec![Layers::new(0, 2)];
    world.pong("a", &[]);
    assert!(world.core.behind().contains(&"a".into()));
    world.loads.get_mut("a").unwrap().held = vec![Layers::new(0, 4)];
    world.pong("a", &[]);
    assert!(world.core.behind().is_empty());
}

#[test]
fn a_session_waits_for_a_holder_without_forgetting_who_has_what() {
    let mut world = World::new();
    world.submit(1, 10, 100);
    assert_eq!(world.opened(), [(1, hops(&[("a", 0), ("b", 0), ("c", 0)]))]);
    (10..40).for_each(|position| world.token(1, 1, position));
    // Nobody else has the layers of b: a does, but it does not hold them any more.
    world.loads.get_mut("a").unwrap().held = vec![Layers::new(0, 2)];
    world.pong("a", &[]);
    world.lose("b");
    world.pass(5000);
    assert_eq!(world.opened(), []);
    assert!(world.phase(1).contains("no peer holds layers"), "{}", world.phase(1));
    world.up("b");
    assert_eq!(world.opened(), [(2, hops(&[("a", 39), ("b", 39), ("c", 39)]))], "b may have kept everything");
    world.refuse(1, 2, 1, Refusal::NeedReplay { have: 0 });
    assert_eq!(world.opened(), [(3, hops(&[("a", 39), ("b", 0), ("c", 39)]))]);
}

#[test]
fn a_stage_that_gave_up_its_journal_is_not_taken_for_broken() {
    let mut world = World::new();
    world.submit(1, 10, 100);
    let mut attempt = world.opened()[0].0;
    for _ in 0..5 {
        // a has computed the prompt when c, which lacks something, says so.
        let layers = Layers::new(0, 2);
        world.pong("a", &[HeldSession { session: SessionId(1), attempt, layers, have: 9, waiting: 0 }]);
        world.refuse(1, attempt, 2, Refusal::NotHolding { layers: Layers::new(4, 6) });
        world.pass(2000);
        let opened = world.opened();
        assert_eq!(opened, [(attempt + 1, hops(&[("a", 9), ("b", 0), ("c", 0)]))]);
        world.refuse(1, attempt + 1, 0, Refusal::NoJournal);
        let opened = world.opened();
        assert_eq!(opened, [(attempt + 2, hops(&[("a", 0), ("b", 0), ("c", 0)]))]);
        attempt += 2;
    }
    // It says so of rows that it cannot have given up: a session goes around that.
    for _ in 0..3 {
        world.refuse(1, attempt, 0, Refusal::NoJournal);
        attempt += 1;
    }
    let opened = world.opened();
    assert!(opened[2].1.iter().all(|(name, _)| name != "a"), "{opened:?}");
}

#[test]
fn a_prefill_that_was_interrupted_goes_on_where_it_was() {
    let mut world = World::new();
    world.submit(1, 500, 600);
    world.opened();
    let held =
        |layers: Layers, have| HeldSession { session: SessionId(1), attempt: 1, layers, have, waiting: 9 };
    world.pong("a", &[held(Layers::new(0, 2), 384)]);
    world.pong("b", &[held(Layers::new(2, 4), 256)]);
    world.lose("c");
    assert_eq!(world.opened(), [(2, hops(&[("a", 384), ("b", 256), ("b", 0)]))]);
}

#[test]
fn waiting_in_the_line_of_an_engine_that_works_is_progress() {
    let mut world = World::new();
    world.submit(1, 500, 600);
    world.opened();
    let held =
        HeldSession { session: SessionId(1), attempt: 1, layers: Layers::new(0, 2), have: 0, waiting: 500 };
    for _ in 0..100 {
        world.loads.get_mut("a").unwrap().layer_rows += 128;
        world.pong("a", std::slice::from_ref(&held));
        world.pass(200);
    }
    assert_eq!(world.opened(), [], "20 s are no stall");
    for _ in 0..11 {
        world.pong("a", std::slice::from_ref(&held));
        world.pass(200);
    }
    assert_eq!(world.opened().len(), 1, "the engine stands still");
}

#[test]
fn a_gateway_that_was_asleep_blames_nobody() {
    let mut world = World::new();
    world.submit(1, 500, 600);
    world.opened();
    world.pass(100);
    world.now_ms += 60_000;
    world.pass(1000);
    assert_eq!(world.opened(), []);
}

#[test]
fn waits_begin_with_50_ms_and_events_neither_prolong_nor_forget_them() {
    let mut world = World::new();
    world.submit(1, 10, 100);
    world.opened();
    let mut attempt = 1;
    let mut waited = Vec::new();
    for _ in 0..7 {
        world.refuse(1, attempt, 1, Refusal::NotHolding { layers: Layers::new(2, 4) });
        let began_ms = world.now_ms;
        let opened = loop {
            let opened = world.opened();
            if !opened.is_empty() {
                break opened;
            }
            world.pass(25);
        };
        waited.push(world.now_ms - began_ms);
        attempt = opened[0].0;
    }
    assert_eq!(waited, [50, 100, 200, 400, 800, 1600, 2000]);
}

#[test]
fn nobody_is_let_in_before_there_are_pages_for_it_and_nobody_younger_before_it() {
    let mut world = World::new();
    // Two layers: 2 * ceil((16 + 256) / 16) = 34 pages a hop.
    for name in PEERS {
        let load = world.loads.get_mut(name).unwrap();
        (load.free_pages, load.spare_pages) = (40, 40);
        world.pong(name, &[]);
    }
    world.submit(1, 16, 1000);
    world.submit(2, 16, 1000);
    world.submit(3, 1, 2);
    assert_eq!(world.opened().len(), 1);
    assert_eq!(world.core.counts(), (1, 2));
    assert!(world.phase(2).contains("34 pages"), "{}", world.phase(2));
    let held = |layers| HeldSession { session: SessionId(1), attempt: 1, layers, have: 1, waiting: 0 };
    for (i, name) in PEERS.into_iter().enumerate() {
        world.loads.get_mut(name).unwrap().spare_pages = 6;
        world.pong(name, &[held(Layers::new(2 * i as u32, 2 * i as u32 + 2))]);
    }
    world.pass(1000);
    assert_eq!(world.core.counts(), (1, 2), "3 would fit, but it is younger than 2");
    for (i, name) in PEERS.into_iter().enumerate() {
        world.loads.get_mut(name).unwrap().spare_pages = 36;
        world.pong(name, &[held(Layers::new(2 * i as u32, 2 * i as u32 + 2))]);
    }
    assert_eq!(world.core.counts(), (3, 0));
}

/// Peers and gateways of two versions may have pages of two sizes: those of the peer count.
#[test]
fn pages_are_counted_as_the_peer_counts_them() {
    let mut world = World::new();
    for (name, paging, spare) in [
        // 2 * ceil(16 / 64), 2 * ceil((16 + 1024) / 16) and 2 * ceil((16 + 256) / 16).
        ("a", Paging { page_positions: 64, positions_ahead: 0, ..Paging::OWN }, 2),
        ("b", Paging { positions_ahead: 1024, ..Paging::OWN }, 129),
        ("c", Paging::OWN, 34),
    ] {
        let load = world.loads.get_mut(name).unwrap();
        (load.free_pages, load.spare_pages, load.paging) = (spare, spare, paging);
        world.pong(name, &[]);
    }
    world.submit(1, 16, 2000);
    assert_eq!(world.opened().len(), 0);
    assert!(
        world.phase(1).contains("memory on b: 130 pages of KV cache, it can spare 129"),
        "{}",
        world.phase(1)
    );
    world.loads.get_mut("b").unwrap().spare_pages = 130;
    world.pong("b", &[]);
    assert_eq!(world.opened().len(), 1, "a and c have enough as they count");
}

#[test]
fn a_long_sequence_needs_no_more_pages_than_windows_keep() {
    let mut world = World::new();
    // 16 positions, 256 that are kept as well and a batch of 128: 26 pages in each of two layers.
    for name in PEERS {
        let load = world.loads.get_mut(name).unwrap();
        (load.free_pages, load.spare_pages) = (52, 52);
        world.pong(name, &[]);
    }
    world.submit_to(1, 3000, 4000, Windows::new([Some(16); 6]));
    assert_eq!(world.core.counts(), (1, 0));
    world.submit(2, 3000, 4000);
    assert!(world.phase(2).contains("408 pages"), "{}", world.phase(2));
}

#[test]
fn what_a_layer_has_beyond_its_window_is_counted_as_its_peer_says() {
    let mut world = World::new();
    let b = world.loads.get_mut("b").unwrap();
    // 16 positions and 1024: 66 pages in each of two layers.
    (b.paging.positions_behind, b.free_pages, b.spare_pages) = (1024, 131, 131);
    world.pong("b", &[]);
    world.submit_to(1, 3000, 4000, Windows::new([Some(16); 6]));
    assert!(world.phase(1).contains("memory on b: 132 pages"), "{}", world.phase(1));
    world.loads.get_mut("b").unwrap().spare_pages = 132;
    world.pong("b", &[]);
    assert_eq!(world.opened().len(), 1);
}

#[test]
fn a_prompt_that_waits_for_pages_holds_none_meanwhile() {
    let mut world = World::new();
    world.submit(1, 500, 600);
    assert_eq!(world.opened().len(), 1);
    let held = |layers| HeldSession { session: SessionId(1), attempt: 1, layers, have: 256, waiting: 0 };
    let on_a = held(Layers::new(0, 2));
    world.loads.get_mut("b").unwrap().spare_pages = 10;
    world.pong("a", std::slice::from_ref(&on_a));
    world.pong("b", &[held(Layers::new(2, 4))]);
    // The layers of c are b's shadow, and b has no pages for them.
    world.lose("c");
    assert!(world.phase(1).starts_with("memory on b"), "{}", world.phase(1));
    let closed = |world: &mut World| -> Vec<String> {
        let to = |effect| match effect {
            GatewayEffect::Send { peer, frame: Frame::Close { .. } } => Some(peer.0),
            _ => None,
        };
        world.out.drain(..).filter_map(to).collect()
    };
    assert_eq!(closed(&mut world), ["a", "b"]);
    world.pass(1000);
    assert_eq!(closed(&mut world), [""; 0], "once is enough");
    // Its opening may have overtaken that on its way from peer to peer.
    world.pong("a", std::slice::from_ref(&on_a));
    assert_eq!(closed(&mut world), ["a"]);
    world.loads.get_mut("b").unwrap().spare_pages = 1000;
    world.pong("b", &[]);
    let opened = world.opened();
    assert_eq!(opened, [(3, hops(&[("a", 0), ("b", 0)]))]);
}

#[test]
fn a_prompt_that_waits_for_pages_does_not_go_back_to_a_peer_that_leads_nowhere() {
    let mut world = World::new();
    world.submit(1, 10, 100);
    let held =
        HeldSession { session: SessionId(1), attempt: 1, layers: Layers::new(0, 2), have: 9, waiting: 0 };
    // Nothing is ever heard of b. Its layers are a's shadow, and a has no pages for them.
    world.loads.get_mut("a").unwrap().spare_pages = 0;
    world.pong("a", &[held]);
    world.opened();
    for ms in [2500, 4500] {
        world.pass(ms);
        assert_eq!(world.opened().len(), 1);
    }
    world.pass(8500 + 10_000);
    assert_eq!(world.opened(), [], "it has seen three times that nothing comes of b");
    assert!(world.phase(1).starts_with("memory on a"), "{}", world.phase(1));
    world.loads.get_mut("a").unwrap().spare_pages = 1000;
    world.pong("a", &[]);
    let opened = world.opened();
    let peers: Vec<&str> = opened[0].1.iter().map(|(peer, _)| peer.as_str()).collect();
    assert_eq!(peers, ["a", "c"]);
}

#[test]
fn a_session_says_which_layers_it_waits_for_also_when_it_was_to_go_around_who_had_them() {
    let mut world = World::new();
    world.loads.get_mut("a").unwrap().held = vec![Layers::new(0, 2)];
    world.pong("a", &[]);
    world.submit(1, 10, 100);
    world.refuse(1, 1, 0, Refusal::LinkDown { to: "b".into() });
    world.lose("b");
    assert!(world.phase(1).starts_with("no peer holds layers 2 to 3"), "{}", world.phase(1));
}

#[test]
fn a_way_has_one_arithmetic_and_who_differs_is_named() {
    let mut world = World::new();
    world.submit(1, 10, 100);
    world.opened();
    (10..20).for_each(|position| world.token(1, 1, position));
    world.replace_b(NumericsClass::from_number(2));
    assert!(world.opened().is_empty());
    let phase = world.phase(1);
    assert!(phase.contains("version 1 of the arithmetic") && phase.contains("b (2)"), "{phase}");
    world.submit(2, 10, 100);
    let opened = world.opened();
    assert_eq!(opened.len(), 1);
    assert!(opened[0].1.iter().all(|(name, _)| name == "b"), "{opened:?}");
    // Nobody brings back a peer of the first version: the session does not keep its place from others until its deadline.
    let failed = |world: &mut World| {
        let over = |effect| match effect {
            GatewayEffect::Failed { error, .. } => Some(error),
            _ => None,
        };
        world.out.drain(..).find_map(over)
    };
    world.pass(110_000);
    assert_eq!(failed(&mut world), None);
    world.pass(10_000);
    let over = failed(&mut world);
    assert!(matches!(over, Some(Failure::OtherArithmetic { .. })), "{over:?}");
}

#[test]
fn a_new_session_takes_the_arithmetic_of_peers_that_stay() {
    let mut world = World::new();
    // Older peers come for newer ones, which stay until they are not needed.
    let mut topology = topology(2, &PEERS);
    for peer in &mut topology.peers {
        if peer.name.as_str() == "a" {
            (peer.span, peer.shadows) = (Layers::new(0, 6), Vec::new());
        } else {
            (peer.span, peer.state) = (Layers::default(), PeerState::Draining);
        }
    }
    for name in ["b", "c"] {
        let load = world.loads.get_mut(name).unwrap();
        (load.arithmetic, load.held) = (NumericsClass::from_number(2), vec![Layers::new(0, 6)]);
        world.pong(name, &[]);
    }
    world.core.set_topology(topology, world.now_ms, &mut world.out);
    world.submit(1, 10, 100);
    let opened = world.opened();
    assert!(opened[0].1.iter().all(|(name, _)| name != "a"), "it has not loaded its layers: {opened:?}");
    world.loads.get_mut("a").unwrap().held = vec![Layers::new(0, 6)];
    world.pong("a", &[]);
    world.submit(2, 10, 100);
    let opened = world.opened();
    assert!(opened[0].1.iter().all(|(name, _)| name == "a"), "{opened:?}");
}

#[test]
fn a_token_of_another_arithmetic_that_comes_late_is_no_part_of_the_answer() {
    let mut world = World::new();
    world.submit(1, 10, 100);
    world.opened();
    // Before the first token comes, all of the next version are there, and a layer of the first is with nobody any more.
    for name in PEERS {
        world.loads.get_mut(name).unwrap().arithmetic = NumericsClass::from_number(2);
        world.pong(name, &[]);
    }
    world.lose("b");
    world.up("b");
    world.pass(3000);
    let attempt = world.opened()[0].0;
    assert!(attempt > 1);
    world.token(1, attempt - 1, 10);
    assert_eq!(world.emitted(), [0; 0], "it is of the first version");
    world.token(1, attempt, 10);
    assert_eq!(world.emitted(), [10]);
}

#[test]
fn a_session_that_began_on_peers_that_say_no_arithmetic_stays_with_their_like() {
    let mut world = World::new();
    for name in PEERS {
        world.loads.get_mut(name).unwrap().arithmetic = None;
        world.pong(name, &[]);
    }
    world.submit(1, 10, 100);
    world.opened();
    (10..20).for_each(|position| world.token(1, 1, position));
    world.replace_b(Some(NumericsClass::FIRST));
    assert!(world.opened().is_empty());
    let phase = world.phase(1);
    assert!(phase.contains("version 0 of the arithmetic; b (1) differ"), "{phase}");
    world.loads.get_mut("b").unwrap().arithmetic = None;
    world.pong("b", &[]);
    world.pass(2000);
    assert_eq!(world.opened().len(), 1);
}

#[test]
fn a_session_says_its_arithmetic_and_goes_around_who_has_another() {
    let mut world = World::new();
    world.submit(1, 10, 100);
    let said = world.out.iter().find_map(|effect| match effect {
        GatewayEffect::Send { frame: Frame::Open(open), .. } => Some(open.arithmetic),
        _ => None,
    });
    assert_eq!(said, Some(Some(NumericsClass::FIRST)));
    world.opened();
    // b has begun anew since its last pong. a has its layers, too.
    world.refuse(1, 1, 1, Refusal::OtherArithmetic { own: NumericsClass::from_number(2).unwrap() });
    assert!(world.phase(1).contains("one has version 2"), "{}", world.phase(1));
    world.pass(100);
    let opened = world.opened();
    assert!(opened[0].1.iter().all(|(name, _)| name != "b"), "{opened:?}");
}

#[test]
fn a_peer_whose_pings_take_long_is_slow_and_is_tried_again_after_a_while() {
    let mut world = World::new();
    let slow = PeerName::from("b");
    world.submit(1, 10, 4000);
    world.opened();
    let mut position = 10;
    let mut look = |world: &mut World, ms: u64, micros: u64| {
        for _ in 0..ms / 200 {
            for name in PEERS {
                let trip = if name == "b" { micros } else { 500 };
                world.core.round_trip(&name.into(), trip, world.now_ms);
            }
            world.pass(200);
            world.token(1, 1, position);
            position += 1;
        }
        world.core.slow().contains(&slow)
    };
    assert!(!look(&mut world, 10_000, 600));
    assert!(!look(&mut world, 1000, 45_000), "a bad moment");
    assert!(!look(&mut world, 10_000, 600));
    assert!(look(&mut world, 4000, 45_000));
    let opened = world.opened();
    assert!(opened.iter().any(|(_, hops)| hops.iter().all(|(name, _)| name != "b")), "{opened:?}");
    assert!(look(&mut world, 10_000, 600), "it is left alone for a while");
    assert!(!look(&mut world, 6000, 600));
}

#[test]
fn sessions_of_a_gateway_that_ends_are_told() {
    let mut world = World::new();
    world.submit(1, 10, 100);
    world.core.end_all(world.now_ms, &mut world.out);
    let failed = |effect: &GatewayEffect| {
        matches!(effect, GatewayEffect::Failed { session: SessionId(1), error: Failure::Ending })
    };
    assert!(world.out.iter().any(failed));
    assert_eq!(world.core.counts(), (0, 0));
}
