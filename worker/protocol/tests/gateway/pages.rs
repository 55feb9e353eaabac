//! Who gets pages of the stages, and who waits for them.

use dunlin_protocol::gateway::Rejected;
use dunlin_protocol::{Frame, GatewayEffect, HeldSession, SessionId, Windows};
use dunlin_swarm::{Layers, Paging};

use crate::world::{PEERS, World, hops};

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
fn who_waits_for_pages_is_in_the_queue_as_well_which_has_a_bound() {
    let mut world = World::new();
    for name in PEERS {
        let load = world.loads.get_mut(name).unwrap();
        (load.free_pages, load.spare_pages) = (40, 40);
        world.pong(name, &[]);
    }
    let taken = (0..40).take_while(|session| world.try_submit(*session, 100, 200).is_ok()).count();
    assert!((1..8).contains(&(taken - 8)), "8 wait, and {} of 8 run", taken - 8);
    assert_eq!(world.core.counts(), (taken - 8, 8));
    let busy = world.try_submit(41, 100, 200);
    assert!(matches!(busy, Err(Rejected::Busy { .. })), "{busy:?}");
    assert_eq!(world.core.counts(), (taken - 8, 8), "nothing of it is left");
}

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
