//! How sessions go on after a disturbance, and how peers and gateways go.

use dunlin_protocol::gateway::Failure;
use dunlin_protocol::{GatewayEffect, HeldSession, Refusal, SessionId};
use dunlin_swarm::{Layers, PeerName};

use crate::world::{PEERS, World, hops};

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
