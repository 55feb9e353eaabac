//! Who holds layers for whom: as far from the owner as possible, spread evenly, within memory.

use std::collections::BTreeSet;

use crate::layout::{Member, Wanted};
use crate::topology::Layers;

/// For each member the layers it holds for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shadows {
    /// By member, in the order of the members.
    pub layers: Vec<BTreeSet<u32>>,
    /// Copies of layers for which no memory was left.
    pub without_room: u32,
}

/// Shadows for `spans` of `members`, and holders for the layers in `open` that nobody executes.
///
/// Open layers come first, on whoever has them already: they are what keeps the swarm alive. Then each span goes to the `wanted.shadows`
/// others that share least with its owner (zone, then node) and hold least for others.
/// `had`: what each member was given before or reports to hold.
#[must_use]
pub fn shadows(
    wanted: &Wanted,
    members: &[&Member],
    spans: &[Layers],
    open: &[Layers],
    had: &[BTreeSet<u32>],
) -> Shadows {
    let mut out = Shadows { layers: vec![BTreeSet::new(); members.len()], without_room: 0 };
    let mut room: Vec<u64> = members
        .iter()
        .zip(spans)
        .map(|(m, span)| m.room_bytes.saturating_sub(wanted.need(*span, &BTreeSet::new())))
        .collect();
    let gaps = open.iter().flat_map(|gap| by_holders(*gap, had)).map(|gap| (None, gap));
    let owned = spans.iter().enumerate().map(|(i, span)| (Some(i), *span));
    for (owner, piece) in gaps.chain(owned) {
        let others: Vec<usize> = (0..members.len()).filter(|j| Some(*j) != owner).collect();
        let copies = wanted.shadows.max(usize::from(owner.is_none())).min(others.len());
        for _ in 0..copies {
            let mut order = others.clone();
            order.sort_by_key(|&j| {
                let holds = had[j].contains(&piece.start);
                let (near, pool) = owner.map_or((0, false), |i| {
                    (nearness(members[i], members[j]), members[i].pool == members[j].pool)
                });
                // By place, not by what somebody holds at the moment: a replacement then restores the shadows of before a loss.
                let ring = (j + members.len() - owner.unwrap_or(0)) % members.len();
                (owner.is_none() && !holds, near, out.layers[j].len(), pool, ring)
            });
            let mut left: Vec<u32> = piece.iter().collect();
            for j in order {
                left.retain(|&layer| {
                    let bytes = wanted.bytes(layer);
                    let takes =
                        !out.layers[j].contains(&layer) && !spans[j].contains(layer) && bytes <= room[j];
                    if takes {
                        room[j] -= bytes;
                        out.layers[j].insert(layer);
                    }
                    !takes
                });
            }
            out.without_room += u32::try_from(left.len()).unwrap_or(u32::MAX);
        }
    }
    out
}

/// `layers` in pieces that the same members have: so that nobody is given what another has.
fn by_holders(layers: Layers, had: &[BTreeSet<u32>]) -> Vec<Layers> {
    let holders = |layer: u32| had.iter().map(move |of| of.contains(&layer));
    let mut out: Vec<Layers> = Vec::new();
    for layer in layers.iter() {
        match out.last_mut() {
            Some(last) if holders(last.start).eq(holders(layer)) => last.end = layer + 1,
            _ => out.push(Layers::new(layer, layer + 1)),
        }
    }
    out
}

/// What two peers would lose together: 0 neither zone nor node, 1 their zone, 2 their node. An unknown zone or node is taken for another.
#[must_use]
pub fn nearness(a: &Member, b: &Member) -> u8 {
    let same = |a: &str, b: &str| !a.is_empty() && a == b;
    if same(&a.node, &b.node) { 2 } else { u8::from(same(&a.zone, &b.zone)) }
}
