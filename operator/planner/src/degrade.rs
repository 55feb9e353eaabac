//! What a swarm is worth after losses.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::{Layers, PeerName, PeerState, Topology, layer_set, ranges};

/// The topology without the peers in `lost`, the layers of their spans given to peers that hold them as shadows.
///
/// Each orphaned layer goes to the holder with the fewest layers to execute so far, ties to the first name; layers are taken in order,
/// so the result depends on (`topology`, `lost`) alone: not on who computes it, nor on the order of the losses. Layers that
/// nobody holds stay without a holder. A span that would no longer be contiguous keeps its own range; the layers taken over beside it are
/// then in `shadows` as before, where [`crate::route`] finds them.
#[must_use]
pub fn degrade(topology: &Topology, lost: &BTreeSet<PeerName>) -> Topology {
    let mut out = topology.clone();
    out.peers.retain(|p| !lost.contains(&p.name));
    let orphans: BTreeSet<u32> =
        topology.peers.iter().filter(|p| lost.contains(&p.name)).flat_map(|p| p.span.iter()).collect();
    let served: BTreeSet<u32> =
        out.peers.iter().filter(|p| p.state == PeerState::Ready).flat_map(|p| p.span.iter()).collect();
    let mut taken: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
    for &layer in orphans.difference(&served) {
        let holder = out
            .peers
            .iter()
            .enumerate()
            .filter(|(_, p)| p.state != PeerState::Loading && p.shadows.iter().any(|s| s.contains(layer)))
            .min_by_key(|(i, p)| {
                // Going on where the layer before was given keeps the route short.
                let follows = taken.get(i).is_some_and(|t| layer > 0 && t.contains(&(layer - 1)));
                let load = p.span.len() as usize + taken.get(i).map_or(0, BTreeSet::len);
                (p.state, !follows, load, p.name.clone())
            })
            .map(|(i, _)| i);
        if let Some(i) = holder {
            taken.entry(i).or_default().insert(layer);
        }
    }
    for (i, layers) in taken {
        let peer = &mut out.peers[i];
        let mut all = layers;
        all.extend(peer.span.iter());
        if let [joined] = ranges(&all)[..] {
            let rest: BTreeSet<u32> =
                layer_set(&peer.shadows).into_iter().filter(|&l| !joined.contains(l)).collect();
            peer.span = joined;
            peer.shadows = ranges(&rest);
        }
    }
    out
}

/// Layers of `topology` that a peer which is not loading holds.
#[must_use]
pub fn coverage(topology: &Topology) -> Vec<Layers> {
    let held = topology.peers.iter().filter(|p| p.state != PeerState::Loading).flat_map(|p| p.hold());
    ranges(&held.flat_map(|l| l.start..l.end).collect())
}
