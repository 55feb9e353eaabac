//! Who holds layers for whom: as far from the owner as possible, spread evenly, within memory.
//!
//! Two others hold half a span each, if they can those before and behind it in the pipeline: when its owner is lost, both compute its part
//! of the replay at once, each joins its half to its own span, and nobody has twice as much to do as before.

use std::collections::BTreeSet;

use dunlin_swarm::Layers;

use crate::member::Member;
use crate::wanted::LayoutGoal;

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
/// Open layers come first, on whoever has them already: they are what keeps the swarm alive. Then each half of each span goes to the
/// `wanted.shadows` others that share least with its owner (zone, then node) and hold least for others.
/// `had`: what each member was given before or reports to hold.
#[must_use]
pub fn shadows(
    wanted: &LayoutGoal,
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
    let gaps = open.iter().flat_map(|gap| by_holders(*gap, had)).map(|gap| (None, Side::Upper, gap));
    let owned = spans
        .iter()
        .enumerate()
        .flat_map(|(i, span)| halves(*span).map(|(side, half)| (Some(i), side, half)));
    for (owner, side, piece) in gaps.chain(owned) {
        let others: Vec<usize> = (0..members.len()).filter(|j| Some(*j) != owner).collect();
        let copies = wanted.shadows.max(usize::from(owner.is_none())).min(others.len());
        for _ in 0..copies {
            let mut order = others.clone();
            order.sort_by_key(|&j| {
                let (nobody, holds) = (owner.is_none(), had[j].contains(&piece.start));
                let (near, pool) = owner.map_or((0, false), |i| {
                    (nearness(members[i], members[j]), members[i].pool == members[j].pool)
                });
                // By place, not by what somebody holds at the moment: a replacement then restores the shadows of before a loss.
                let owner = owner.unwrap_or(0);
                let ring = match side {
                    Side::Lower => owner + members.len() - j,
                    Side::Upper => j + members.len() - owner,
                } % members.len();
                (nobody && !holds, near, out.layers[j].len(), pool, ring)
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

/// Which half of a span: the lower one is next to the peer before in the pipeline, the upper one to the peer behind.
#[derive(Clone, Copy)]
enum Side {
    Lower,
    Upper,
}

/// Both halves of a span; a single layer is the upper one.
fn halves(span: Layers) -> [(Side, Layers); 2] {
    let middle = span.start + span.len() / 2;
    [(Side::Lower, Layers::new(span.start, middle)), (Side::Upper, Layers::new(middle, span.end))]
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
