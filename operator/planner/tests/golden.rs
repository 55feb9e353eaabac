//! Scenarios that read like a story: what happens to a swarm, and what is planned. `DUNLIN_UPDATE=1 cargo test -p dunlin-planner --test golden`
//! writes the files anew; read the difference before you keep it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the stories are files")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use dunlin_planner::{Layout, LayoutGoal, May, Member, degrade, layout, lint, report, route};
use dunlin_swarm::{Loads, PeerName, PeerState, Topology, layer_set};

/// A swarm whose story is written down.
struct Story {
    wanted: LayoutGoal,
    members: Vec<Member>,
    topology: Option<Topology>,
    text: String,
}

impl Story {
    fn new(layers: usize, layer_mib: u64, peers: usize) -> Self {
        let wanted = LayoutGoal {
            layer_bytes: vec![layer_mib << 20; layers],
            peers,
            shadows: 1,
            ..LayoutGoal::default()
        };
        Self { wanted, members: Vec::new(), topology: None, text: String::new() }
    }

    /// A peer on a node of its own joins.
    fn join(&mut self, name: &str, zone: &str, speed: f64, room_mib: u64) {
        self.members.push(Member {
            name: name.into(),
            node: format!("node-{name}"),
            pool: "spot".into(),
            zone: zone.into(),
            room_bytes: room_mib << 20,
            speed,
            ..Member::default()
        });
    }

    fn lose(&mut self, name: &str) {
        self.members.retain(|m| m.name.as_str() != name);
    }

    fn leave(&mut self, name: &str) {
        let member = self.members.iter_mut().find(|m| m.name.as_str() == name).unwrap();
        member.state = PeerState::Draining;
    }

    /// Plans once and writes down what is planned.
    fn plan(&mut self, what: &str, may: May) -> Layout {
        let before = self.topology.clone().unwrap_or_default();
        let made = layout(&self.wanted, &self.members, self.topology.as_ref(), may).unwrap();
        let _ = writeln!(self.text, "== {what}: epoch {} -> {}", before.epoch, made.topology.epoch);
        let _ = writeln!(self.text, "{}", report(&made, &self.wanted, &self.members));
        for finding in lint(&made.topology, &self.wanted, &self.members) {
            let _ = writeln!(self.text, "! {finding}");
        }
        if let Some(shortage) = &made.shortage {
            let _ = writeln!(self.text, "! {shortage}");
        }
        if made.gain_percent > 0 {
            let _ = writeln!(self.text, "a new cut would be {} % faster", made.gain_percent);
        }
        if made.spare > 0 {
            let _ = writeln!(self.text, "{} newcomers wait for others", made.spare);
        }
        let moved: usize = made
            .topology
            .peers
            .iter()
            .map(|p| {
                let had = before.peer(&p.name).map(|b| layer_set(&b.hold())).unwrap_or_default();
                layer_set(&p.hold()).difference(&had).count()
            })
            .sum();
        let _ = writeln!(self.text, "{moved} layers to load\n");
        self.topology = Some(made.topology.clone());
        made
    }

    /// Everybody loads what it was given, then it is planned again until nothing changes.
    fn settle(&mut self, may: May) {
        for _ in 0..4 {
            let topology = self.topology.clone().unwrap();
            for member in &mut self.members {
                member.held = topology.peer(&member.name).map(|p| p.hold()).unwrap_or_default();
                if member.state == PeerState::Loading && !member.held.is_empty() {
                    member.state = PeerState::Ready;
                }
            }
            self.topology = Some(layout(&self.wanted, &self.members, Some(&topology), may).unwrap().topology);
            if self.topology == Some(topology) {
                return;
            }
        }
        panic!("the layout does not settle:\n{}", self.text);
    }

    /// What gateways do by themselves when peers are lost.
    fn degraded(&mut self, lost: &[&str]) {
        let lost: BTreeSet<PeerName> = lost.iter().map(|name| PeerName::from(*name)).collect();
        let left = degrade(self.topology.as_ref().unwrap(), &lost);
        let _ = match route(&left, &Loads::new(), &[]) {
            Ok(hops) => {
                let hops: Vec<String> = hops.iter().map(|h| format!("{} {}", h.peer, h.layers)).collect();
                writeln!(self.text, "-- gateways route {}\n", hops.join(" -> "))
            }
            Err(error) => writeln!(self.text, "-- gateways wait: {error}\n"),
        };
    }

    fn check(&self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
        if std::env::var_os("DUNLIN_UPDATE").is_some() {
            std::fs::write(&path, &self.text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(self.text, found, "{}: DUNLIN_UPDATE=1 writes it anew", path.display());
    }
}

const NOTHING: May = May { fill_gaps: false, grow: false, rebalance: false };

fn three_equal() -> Story {
    let mut story = Story::new(30, 4, 3);
    for name in ["a", "b", "c"] {
        story.join(name, "", 1.0, 256);
    }
    story
}

#[test]
fn three_equal_peers() {
    let mut story = three_equal();
    story.plan("three peers join", NOTHING);
    story.settle(NOTHING);
    story.plan("they have loaded", NOTHING);
    story.check("three-equal-peers");
}

#[test]
fn unequal_rates() {
    let mut story = Story::new(30, 4, 3);
    for (name, speed) in [("a", 2.0), ("b", 1.0), ("c", 0.5)] {
        story.join(name, "", speed, 256);
    }
    story.plan("peers of speed 4:2:1 join", NOTHING);
    story.settle(NOTHING);
    story.members[2].speed = 0.52;
    story.plan("c gets a little faster", NOTHING);
    story.members[0].speed = 0.5;
    story.plan("a is slowed down", NOTHING);
    story.plan("it stays slow", May { rebalance: true, ..NOTHING });
    story.settle(NOTHING);
    story.plan("they have loaded", NOTHING);
    story.check("unequal-rates");
}

#[test]
fn bound_by_memory() {
    let mut story = Story::new(30, 4, 3);
    for (name, room) in [("a", 24), ("b", 128), ("c", 128)] {
        story.join(name, "", 1.0, room);
    }
    story.plan("a has memory for 6 layers", NOTHING);
    story.settle(NOTHING);
    story.members[0].room_bytes = 12 << 20;
    story.plan("a has memory for 3 layers", NOTHING);
    for member in &mut story.members {
        member.room_bytes = 20 << 20;
    }
    story.plan("nobody has memory for more than 5", NOTHING);
    story.check("bound-by-memory");
}

#[test]
fn two_zones() {
    let mut story = Story::new(24, 4, 4);
    for (name, zone) in [("a", "east"), ("b", "east"), ("c", "west"), ("d", "west")] {
        story.join(name, zone, 1.0, 256);
    }
    story.plan("two peers in each of two zones", NOTHING);
    story.settle(NOTHING);
    story.degraded(&["a", "b"]);
    story.lose("a");
    story.lose("b");
    story.plan("a zone is lost", NOTHING);
    story.check("two-zones");
}

#[test]
fn five_become_three() {
    let mut story = Story::new(30, 4, 5);
    for name in ["a", "b", "c", "d", "e"] {
        story.join(name, "", 1.0, 256);
    }
    story.plan("five peers", NOTHING);
    story.settle(NOTHING);
    story.wanted.peers = 3;
    story.leave("d");
    story.leave("e");
    story.plan("three are wanted", NOTHING);
    story.settle(NOTHING);
    story.lose("d");
    story.lose("e");
    story.plan("two have gone", NOTHING);
    story.wanted.peers = 5;
    story.join("f", "", 0.0, 256);
    story.plan("five again, the first newcomer is there", NOTHING);
    story.join("g", "", 0.0, 256);
    story.plan("the second, too", NOTHING);
    story.check("five-become-three");
}

#[test]
fn one_lost() {
    let mut story = three_equal();
    story.plan("three peers", NOTHING);
    story.settle(NOTHING);
    story.degraded(&["b"]);
    story.lose("b");
    story.plan("b is lost", NOTHING);
    // The survivors read new shadows: nothing may be cut anew for that.
    for member in &mut story.members {
        member.state = PeerState::Loading;
    }
    story.plan("the survivors load shadows", NOTHING);
    story.settle(NOTHING);
    story.plan("they have loaded", NOTHING);
    story.join("d", "", 0.0, 256);
    story.plan("a replacement joins", NOTHING);
    story.settle(NOTHING);
    story.plan("it has loaded", NOTHING);
    story.check("one-lost");
}

#[test]
fn two_neighbours_lost() {
    let mut story = three_equal();
    story.plan("three peers", NOTHING);
    story.settle(NOTHING);
    story.degraded(&["b", "c"]);
    story.lose("b");
    story.lose("c");
    story.plan("b and c are lost", NOTHING);
    story.join("d", "", 0.0, 256);
    story.plan("one replacement joins", NOTHING);
    story.join("e", "", 0.0, 256);
    story.plan("the other joins", NOTHING);
    story.settle(NOTHING);
    story.plan("they have loaded", NOTHING);
    story.check("two-neighbours-lost");
}

#[test]
fn what_nobody_holds_is_replaced_first() {
    let mut story = Story::new(30, 4, 5);
    for name in ["a", "b", "c", "d", "e"] {
        story.join(name, "", 1.0, 256);
    }
    story.plan("five peers", NOTHING);
    story.settle(NOTHING);
    for name in ["a", "c", "d"] {
        story.lose(name);
    }
    story.plan("three are lost: b and e hold the layers of a for it, nobody all of c's and d's", NOTHING);
    for name in ["f", "g", "h"] {
        story.join(name, "", 0.0, 256);
        story.plan("a replacement joins", NOTHING);
    }
    story.check("what-nobody-holds-first");
}

#[test]
fn no_replacement() {
    let mut story = three_equal();
    story.plan("three peers", NOTHING);
    story.settle(NOTHING);
    story.lose("b");
    story.plan("b is lost", NOTHING);
    story.settle(NOTHING);
    story.plan("no replacement came for long", May { fill_gaps: true, ..NOTHING });
    story.settle(NOTHING);
    story.join("d", "", 0.0, 256);
    story.plan("one comes after all", NOTHING);
    story.check("no-replacement");
}
