//! Peers that are about to go.

use dunlin_swarm::Layers;

use crate::world::World;

impl World {
    /// Peers say in this moment that they are about to go.
    fn drain(&mut self, names: &[&'static str]) {
        for name in names {
            self.loads.get_mut(name).unwrap().draining = true;
            self.pong(name, &[]);
        }
    }

    /// Peers that the session's newest attempt is on, if there was one since the last look.
    fn moved(&mut self) -> Option<Vec<String>> {
        let (_, hops) = self.opened().pop()?;
        Some(hops.into_iter().map(|(name, _)| name).collect())
    }

    /// A session on a, b and c that has said something.
    fn begun() -> Self {
        let mut world = Self::new();
        world.submit(1, 10, 100);
        world.opened();
        world.token(1, 1, 10);
        world
    }
}

#[test]
fn sessions_leave_a_peer_that_goes_when_others_have_its_layers() {
    let mut world = World::begun();
    world.drain(&["b"]);
    world.pass(1000);
    let on = world.moved().unwrap();
    assert!(!on.contains(&"b".to_owned()) && !on.is_empty(), "{on:?}");
}

#[test]
fn sessions_stay_where_they_are_when_all_go_at_once() {
    let mut world = World::begun();
    // The pods of a swarm are deleted one after the other, and each tells it with its next pong.
    for name in ["b", "a", "c"] {
        world.drain(&[name]);
        world.pass(100);
    }
    for position in 11..16 {
        world.pass(500);
        world.token(1, 1, position);
    }
    assert_eq!(world.moved(), None);
    // What a peer that goes can do for another that is gone, it does.
    world.lose("b");
    let on = world.moved().unwrap();
    assert!(on.iter().all(|peer| peer == "a" || peer == "c"), "{on:?}");
}

#[test]
fn sessions_leave_as_soon_as_somebody_who_stays_has_the_layers() {
    let mut world = World::begun();
    let hold = |world: &mut World, layers: Layers| {
        world.loads.get_mut("c").unwrap().held = vec![layers];
        world.pong("c", &[]);
    };
    hold(&mut world, Layers::new(4, 6));
    world.drain(&["a", "b"]);
    world.pass(1000);
    assert_eq!(world.moved(), None);
    hold(&mut world, Layers::new(0, 6));
    world.pass(1000);
    let on = world.moved().unwrap();
    assert!(on.iter().all(|peer| peer == "c"), "{on:?}");
}
