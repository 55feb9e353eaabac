//! The cheapest way through all layers.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::{
    Layers, Load, Loads, NoRoute, PeerName, PeerState, RouteHop, Topology, TopologyPeer, layer_set, ranges,
};

/// A hop costs about as much as this many microseconds, beside the work in it.
const HOP_US: u64 = 300;
/// A peer that has not measured itself yet is taken for this fast, rows per second through one layer.
const RATE_DEFAULT: f64 = 1000.0;
/// Shadow layers cost this many times as much as span layers: they are for losses, not for balance.
const SHADOW_FACTOR: u64 = 4;
/// Anything else is better than a peer that is about to go.
const DRAINING_US: u64 = 1_000_000;
/// KV cache that is already there is worth this much per layer: keeping a hop beats a slightly faster one.
const KEEP_FACTOR_PERCENT: u64 = 5;

/// Cheapest cover of `0..topology.layers` by peers of `topology` (usually the result of [`crate::degrade`]).
///
/// Shortest path over layer boundaries: from a boundary one may enter any peer that holds the next layer and leave it at any boundary up to
/// the end of what it holds. `loads` refines what peers hold (what they report beats what the plan says) and how fast they are;
/// hops in `keep` are nearly free, because a session's KV cache lies there, and are left where they were.
/// Draining peers are used only for layers that nobody else has; loading ones only for layers they already report.
///
/// # Errors
/// [`NoRoute`] with the layers that nobody holds.
pub fn route(
    topology: &Topology,
    loads: &Loads,
    keep: &[(PeerName, Layers)],
) -> Result<Vec<RouteHop>, NoRoute> {
    let total = topology.layers;
    let borders = borders(topology, keep);
    let holders: Vec<(&TopologyPeer, Option<&Load>, Vec<Layers>)> = topology
        .peers
        .iter()
        .map(|peer| {
            let load = loads.get(&peer.name);
            (peer, load, held(peer, load))
        })
        .collect();
    let mut best: BTreeMap<u32, Reached> = BTreeMap::from([(0, (0, None))]);
    for at in 0..total {
        let Some(&(cost, _)) = best.get(&at) else { continue };
        for (peer, load, held) in &holders {
            let Some(held) = held.iter().find(|r| r.contains(at)) else { continue };
            for end in borders.range(at + 1..held.end).copied().chain([held.end]) {
                let layers = Layers::new(at, end);
                let reached = cost + hop_us(peer, *load, layers, keep);
                if best.get(&end).is_none_or(|(known, _)| reached < *known) {
                    best.insert(end, (reached, Some((*peer, layers))));
                }
            }
        }
    }
    let mut hops = Vec::new();
    let mut at = total;
    while at > 0 {
        let Some(&(_, Some((peer, layers)))) = best.get(&at) else {
            return Err(NoRoute { missing: missing(topology, loads) });
        };
        at = layers.start;
        hops.push(RouteHop { peer: peer.name.clone(), addr: peer.addr.clone(), layers });
    }
    hops.reverse();
    Ok(hops)
}

/// What it costs to stand at a border, and the peer and layers of the hop that got there.
type Reached<'a> = (u64, Option<(&'a TopologyPeer, Layers)>);

/// What a peer can execute now.
fn held(peer: &TopologyPeer, load: Option<&Load>) -> Vec<Layers> {
    match load {
        Some(load) => load.held.clone(),
        None if peer.state == PeerState::Loading => Vec::new(),
        None => peer.hold(),
    }
}

/// Where one may change peers, beside where what a peer holds ends: where spans and holdings begin and end, and exactly where kept hops did.
fn borders(topology: &Topology, keep: &[(PeerName, Layers)]) -> BTreeSet<u32> {
    let held = topology.peers.iter().flat_map(|p| p.hold().into_iter().chain([p.span]));
    held.chain(keep.iter().map(|(_, layers)| *layers)).flat_map(|l| [l.start, l.end]).collect()
}

fn hop_us(peer: &TopologyPeer, load: Option<&Load>, layers: Layers, keep: &[(PeerName, Layers)]) -> u64 {
    let rate = load.map_or(RATE_DEFAULT, |l| l.rows_per_s_per_layer);
    let rate = if rate.is_finite() && rate > 0.0 { rate } else { RATE_DEFAULT };
    let layer_us = ((1e6 / rate) as u64).max(1);
    let own = u64::from(layers.intersection(peer.span).len());
    let shadow = u64::from(layers.len()) - own;
    let queue = load.map_or(0, |l| u64::from(l.queue_rows)) * layer_us;
    let mut cost = HOP_US + own * layer_us + shadow * layer_us * SHADOW_FACTOR + queue;
    if keep.iter().any(|(name, kept)| *name == peer.name && *kept == layers) {
        cost = cost * KEEP_FACTOR_PERCENT / 100;
    }
    if peer.state == PeerState::Draining || load.is_some_and(|l| l.draining) {
        cost += DRAINING_US * u64::from(layers.len());
    }
    cost
}

/// Layers that nobody can execute now.
fn missing(topology: &Topology, loads: &Loads) -> Vec<Layers> {
    let held: Vec<Layers> = topology.peers.iter().flat_map(|p| held(p, loads.get(&p.name))).collect();
    let held = layer_set(&held);
    ranges(&(0..topology.layers).filter(|l| !held.contains(l)).collect())
}
