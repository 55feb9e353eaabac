//! What holds for every swarm, loss and order.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use dunlin_planner::speed::{PeerPace, beside};
use dunlin_planner::{LayoutGoal, May, Member, degrade, layout, lint, route};
use dunlin_swarm::{Layers, Loads, PeerName, PeerState, Topology, TopologyPeer, layer_set};
use proptest::prelude::*;

/// Peers with contiguous spans over all layers, random shadows and states.
fn topology() -> impl Strategy<Value = Topology> {
    let peer = (1..6u32, prop::collection::vec((0..30u32, 1..12u32), 0..4), 0..6u8);
    prop::collection::vec(peer, 1..7).prop_map(|of| {
        let layers: u32 = of.iter().map(|(len, ..)| len).sum();
        let mut start = 0;
        let mut peers = Vec::new();
        for (i, (len, shadows, state)) in of.into_iter().enumerate() {
            start += len;
            let within = |(at, len): (u32, u32)| Layers::new(at.min(layers), (at + len).min(layers));
            peers.push(TopologyPeer {
                name: format!("p{i}").into(),
                span: Layers::new(start - len, start),
                shadows: shadows.into_iter().map(within).filter(|l| !l.is_empty()).collect(),
                state: match state {
                    0 => PeerState::Loading,
                    1 => PeerState::Draining,
                    _ => PeerState::Ready,
                },
                ..TopologyPeer::default()
            });
        }
        Topology { epoch: 1, layers, peers, ..Topology::default() }
    })
}

fn some_lost(topology: &Topology, lost: &[bool]) -> Vec<PeerName> {
    topology.peers.iter().zip(lost).filter(|(_, lost)| **lost).map(|(p, _)| p.name.clone()).collect()
}

fn set(names: &[PeerName]) -> BTreeSet<PeerName> {
    names.iter().cloned().collect()
}

/// Layers that somebody who is not loading holds.
fn usable(topology: &Topology, without: &BTreeSet<PeerName>) -> BTreeSet<u32> {
    let there = topology.peers.iter().filter(|p| p.state != PeerState::Loading && !without.contains(&p.name));
    there.flat_map(|p| layer_set(&p.hold())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn degrade_depends_on_who_is_lost_and_not_on_the_order_of_peers(
        topology in topology(),
        lost in prop::collection::vec(any::<bool>(), 7),
        turn in 0..7usize,
    ) {
        let lost = set(&some_lost(&topology, &lost));
        let result = degrade(&topology, &lost);
        // Another caller may have the peers in another order.
        let mut turned = topology.clone();
        let by = turn % turned.peers.len();
        turned.peers.rotate_left(by);
        let mut theirs = degrade(&turned, &lost);
        theirs.peers.sort_by(|a, b| a.name.cmp(&b.name));
        let mut ours = result.clone();
        ours.peers.sort_by(|a, b| a.name.cmp(&b.name));
        prop_assert_eq!(ours, theirs);
    }

    #[test]
    fn degrade_assigns_nothing_to_the_lost_and_covers_what_survivors_hold(
        topology in topology(),
        lost in prop::collection::vec(any::<bool>(), 7),
    ) {
        let lost = set(&some_lost(&topology, &lost));
        let result = degrade(&topology, &lost);
        prop_assert!(result.peers.iter().all(|p| !lost.contains(&p.name)));
        prop_assert_eq!(result.validate(), Ok(()));
        prop_assert_eq!(usable(&result, &BTreeSet::new()), usable(&topology, &lost));
        for peer in &result.peers {
            let before = topology.peer(&peer.name).unwrap();
            prop_assert_eq!(layer_set(&peer.hold()), layer_set(&before.hold()), "nobody holds more or less");
            prop_assert!(peer.span.covers(before.span), "nobody gives up its own layers");
        }
    }

    #[test]
    fn routes_are_contiguous_over_live_peers_that_hold_their_layers_or_say_what_is_missing(
        topology in topology(),
        lost in prop::collection::vec(any::<bool>(), 7),
    ) {
        let lost = set(&some_lost(&topology, &lost));
        let left = degrade(&topology, &lost);
        let held = usable(&topology, &lost);
        match route(&left, &Loads::new(), &[]) {
            Ok(hops) => {
                prop_assert_eq!(hops[0].layers.start, 0);
                prop_assert_eq!(hops[hops.len() - 1].layers.end, topology.layers);
                prop_assert!(hops.windows(2).all(|w| w[0].layers.end == w[1].layers.start));
                for hop in &hops {
                    prop_assert!(!hop.layers.is_empty() && !lost.contains(&hop.peer));
                    let peer = topology.peer(&hop.peer).unwrap();
                    prop_assert!(peer.state != PeerState::Loading && peer.holds(hop.layers));
                }
            }
            Err(error) => {
                let missing: BTreeSet<u32> = (0..topology.layers).filter(|l| !held.contains(l)).collect();
                prop_assert!(!missing.is_empty());
                prop_assert_eq!(layer_set(&error.missing), missing);
            }
        }
    }
}

/// What happens to a swarm between two plans.
#[derive(Clone, Debug)]
enum Step {
    Join { zone: u8, rate: u32 },
    Lose(usize),
    Leave(usize),
    Load,
    Want(usize),
    Allow(May),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3u8, 0..4u32).prop_map(|(zone, rate)| Step::Join { zone, rate }),
        2 => (0..8usize).prop_map(Step::Lose),
        1 => (0..8usize).prop_map(Step::Leave),
        3 => Just(Step::Load),
        1 => (1..6usize).prop_map(Step::Want),
        1 => any::<(bool, bool, bool)>().prop_map(|(fill_gaps, grow, rebalance)| {
            Step::Allow(May { fill_gaps, grow, rebalance })
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layouts_break_no_rule_keep_loaded_layers_and_come_to_rest(
        layers in 1..33usize,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut wanted = LayoutGoal { layer_bytes: vec![1; layers], peers: 3, shadows: 1, ..LayoutGoal::default() };
        let (mut members, mut may, mut made) = (Vec::<Member>::new(), May::default(), 0);
        let mut topology: Option<Topology> = None;
        for step in steps {
            let pick = |i: usize, members: &[Member]| (!members.is_empty()).then(|| i % members.len());
            match step {
                Step::Join { zone, rate } => {
                    made += 1;
                    members.push(Member {
                        name: format!("p{made:02}").into(),
                        node: format!("n{made}"),
                        zone: format!("z{zone}"),
                        speed: f64::from(rate),
                        room_bytes: 64,
                        ..Member::default()
                    });
                }
                Step::Lose(i) => { pick(i, &members).map(|i| members.remove(i)); }
                Step::Leave(i) => if let Some(i) = pick(i, &members) {
                    members[i].state = PeerState::Draining;
                },
                Step::Load => load(&mut members, topology.as_ref()),
                Step::Want(peers) => wanted.peers = peers,
                Step::Allow(new) => may = new,
            }
            if members.iter().all(|m| m.state == PeerState::Draining) {
                continue;
            }
            let before = topology.clone();
            let plan = layout(&wanted, &members, before.as_ref(), may).unwrap();
            let findings = lint(&plan.topology, &wanted, &members);
            prop_assert!(!findings.iter().any(|f| f.is_error()), "{:?}", findings);
            prop_assert!(plan.topology.epoch >= before.as_ref().map_or(1, |b| b.epoch));
            // What could be executed before can still be executed by those that are left.
            let all = |topology: &Topology| -> BTreeSet<u32> {
                let there = topology.peers.iter().filter(|p| members.iter().any(|m| m.name == p.name));
                there.flat_map(|p| layer_set(&p.hold())).collect()
            };
            if let Some(before) = &before {
                prop_assert!(all(before).is_subset(&all(&plan.topology)));
            }
            // Planning again with nothing new changes nothing.
            let again = layout(&wanted, &members, Some(&plan.topology), may).unwrap();
            prop_assert_eq!(&again.topology, &plan.topology);
            topology = Some(plan.topology);
        }
    }
}

/// Everybody loads what it was given.
fn load(members: &mut [Member], topology: Option<&Topology>) {
    for member in members {
        let given = topology.and_then(|t| t.peer(&member.name)).map(|p| p.hold()).unwrap_or_default();
        if member.state == PeerState::Loading && !given.is_empty() {
            member.state = PeerState::Ready;
        }
        member.held = given;
    }
}

/// Speeds that peers are measured at in one second: what they are asked for at that moment makes all of them fast or slow together, and
/// noise some.
fn second(speeds: &[f64], noise: &[f64]) -> impl Strategy<Value = Vec<f64>> + use<> {
    let (speeds, noise) = (speeds.to_vec(), noise.to_vec());
    let each = (0.0..1.0f64, -1.0..1.0f64, -1.0..1.0f64);
    (1.0..30.0f64, prop::collection::vec(each, speeds.len())).prop_map(move |(asked, each)| {
        let of = |((speed, noise), (chance, small, large)): ((&f64, &f64), (f64, f64, f64))| {
            // A single measurement is off by up to a factor of 3, the others by a tenth.
            let off = if chance < *noise { 3f64.powf(large) } else { 1.1f64.powf(small) };
            1000.0 * asked * speed * off
        };
        speeds.iter().zip(&noise).zip(each).map(of).collect()
    })
}

/// What a planner that learns of `seconds` one after the other plans after each of them; it may always rebalance.
fn plans(seconds: &[Vec<f64>]) -> Vec<Vec<u32>> {
    let peers = seconds[0].len();
    let wanted = LayoutGoal { layer_bytes: vec![1; 30], peers, shadows: 1, ..LayoutGoal::default() };
    let named = |i: usize| Member { name: format!("p{i}").into(), room_bytes: 64, ..Member::default() };
    let mut members: Vec<Member> = (0..peers).map(named).collect();
    let mut paces = vec![PeerPace::default(); peers];
    let mut topology: Option<Topology> = None;
    let mut plans = Vec::new();
    for rates in seconds {
        for ((pace, member), rate) in paces.iter_mut().zip(&mut members).zip(rates) {
            pace.push(beside(*rate, rates).unwrap());
            member.speed = pace.speed().unwrap_or(0.0);
        }
        load(&mut members, topology.as_ref());
        let may = May { fill_gaps: true, grow: true, rebalance: true };
        let plan = layout(&wanted, &members, topology.as_ref(), may).unwrap();
        plans.push(plan.topology.peers.iter().map(|p| p.span.len()).collect());
        topology = Some(plan.topology);
    }
    plans
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_peers_get_equal_plans_however_noisy_their_measurements_are(
        seconds in (2..6usize).prop_flat_map(|peers| {
            prop::collection::vec(second(&vec![1.0; peers], &vec![0.3; peers]), 500)
        }),
        busy in (0..430usize, 0..6usize),
    ) {
        let mut seconds = seconds;
        // Somebody else keeps one of the machines busy for more than a minute.
        let (from, who) = (busy.0, busy.1 % seconds[0].len());
        seconds[from..from + 70].iter_mut().for_each(|rates| rates[who] /= 3.0);
        let even: Vec<u32> = plans(&seconds[..1])[0].clone();
        prop_assert!(even.iter().max().unwrap() - even.iter().min().unwrap() <= 1, "{:?}", even);
        for (second, plan) in plans(&seconds).into_iter().enumerate() {
            prop_assert_eq!(&plan, &even, "after {} s", second + 1);
        }
    }

    #[test]
    fn a_peer_that_is_slow_for_long_gets_fewer_layers(
        seconds in prop::collection::vec(second(&[1.0, 1.0, 0.3], &[0.3; 3]), 310),
    ) {
        let plans = plans(&seconds);
        prop_assert_eq!(&plans[0], &[10, 10, 10]);
        prop_assert!(plans[309][2] < 7, "{:?}", plans[309]);
    }
}
