//! Which arithmetic an answer is of.

use dunlin_protocol::gateway::Failure;
use dunlin_protocol::{Frame, GatewayEffect, Refusal};
use dunlin_swarm::{Layers, NumericsClass, PeerState};

use crate::world::{PEERS, World, topology};

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
