//! The cheapest way through all layers.

use std::collections::BTreeMap;

use crate::topology::{
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
    // best[b] = (cost to stand at boundary b, hop that got there)
    let mut best: BTreeMap<u32, (u64, Option<RouteHop>)> = BTreeMap::from([(0, (0, None))]);
    for at in 0..total {
        let Some(&(cost, _)) = best.get(&at) else { continue };
        for peer in &topology.peers {
            let load = loads.get(&peer.name);
            let Some(held) = held(peer, load).into_iter().find(|r| r.contains(at)) else { continue };
            for end in exits(topology, held, at, keep) {
                let layers = Layers::new(at, end);
                let reached = cost + hop_us(peer, load, layers, keep);
                if best.get(&end).is_none_or(|(known, _)| reached < *known) {
                    let hop = RouteHop { peer: peer.name.clone(), addr: peer.addr.clone(), layers };
                    best.insert(end, (reached, Some(hop)));
                }
            }
        }
    }
    let mut hops = Vec::new();
    let mut at = total;
    while at > 0 {
        let Some((_, Some(hop))) = best.get(&at) else {
            return Err(NoRoute { missing: missing(topology, loads) });
        };
        at = hop.layers.start;
        hops.push(hop.clone());
    }
    hops.reverse();
    Ok(hops)
}

/// What a peer can execute now.
fn held(peer: &TopologyPeer, load: Option<&Load>) -> Vec<Layers> {
    match load {
        Some(load) => load.held.clone(),
        None if peer.state == PeerState::Loading => Vec::new(),
        None => peer.hold(),
    }
}

/// Where one may leave `peer` after entering at `at`: where its span or what it holds ends, where spans of others begin, and
/// exactly where a kept hop ended.
fn exits(topology: &Topology, held: Layers, at: u32, keep: &[(PeerName, Layers)]) -> Vec<u32> {
    let borders = topology.peers.iter().flat_map(|p| p.hold().into_iter().chain([p.span]));
    let mut ends: Vec<u32> = borders.flat_map(|l| [l.start, l.end]).collect();
    ends.extend(keep.iter().flat_map(|(_, l)| [l.start, l.end]));
    ends.push(held.end);
    ends.retain(|&end| at < end && end <= held.end);
    ends.sort_unstable();
    ends.dedup();
    ends
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
        cost += DRAINING_US;
    }
    cost
}

/// Layers that nobody can execute now.
fn missing(topology: &Topology, loads: &Loads) -> Vec<Layers> {
    let held: Vec<Layers> = topology.peers.iter().flat_map(|p| held(p, loads.get(&p.name))).collect();
    let held = layer_set(&held);
    ranges(&(0..topology.layers).filter(|l| !held.contains(l)).collect())
}
