//! Which layers each peer executes and which it holds for others. Pure and stable: a peer that is replaced gives its place to the
//! replacement, and nobody else moves.
//!
//! While peers still load, everybody keeps what it held before: a layer is never dropped before its new holders report it.

use std::collections::BTreeSet;

use dunlin_planner::topology::{layer_set, ranges};
use dunlin_planner::{Layers, ModelId, PeerName, PeerState, Topology, TopologyPeer};

use crate::convert::Desired;
use crate::peers::ModelFacts;

/// A peer that can be given layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidate {
    /// Pod name.
    pub name: String,
    /// `ip:port` of its gRPC server.
    pub addr: String,
    /// Its pool.
    pub pool: String,
    /// Its node.
    pub node: String,
    /// Zone of the node.
    pub zone: String,
    /// Its pool is preemptible.
    pub spot: bool,
    /// What it can do.
    pub state: PeerState,
    /// Memory of its container, in bytes.
    pub memory_bytes: u64,
    /// Layers it reports to hold.
    pub held: Vec<Layers>,
}

/// A topology with the words for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Who holds what.
    pub topology: Topology,
    /// One line for people.
    pub summary: String,
    /// Why some peer cannot hold what it is given, and what to do.
    pub shortage: Option<String>,
}

/// The layout for `candidates`. `fill_gaps`: replacements took too long, give a lost peer's layers to those that are there.
///
/// # Errors
/// A broken rule of the result: a bug.
pub fn layout(
    desired: &Desired,
    model: &ModelFacts,
    candidates: &[Candidate],
    previous: Option<&Topology>,
    fill_gaps: bool,
) -> Result<Layout, String> {
    let layers = u32::try_from(model.layer_bytes.len()).unwrap_or(u32::MAX);
    let epoch = previous.map_or(0, |p| p.epoch);
    let previous = previous.filter(|p| p.model.digest == desired.digest && p.layers == layers);
    let members: Vec<&Candidate> = candidates.iter().filter(|c| c.state != PeerState::Draining).collect();
    let (members, spans) = spans(&members, layers, desired.peers() as usize, previous, fill_gaps);
    let shadows = shadows(&members, &spans, desired.shadows as usize);
    let settled = members.iter().zip(spans.iter().zip(&shadows)).all(|(member, (span, shadows))| {
        let held = layer_set(&member.held);
        member.state == PeerState::Ready && span.iter().all(|l| held.contains(&l)) && shadows.is_subset(&held)
    });
    let covered = spans.iter().map(|s| s.len()).sum::<u32>() == layers;

    let shortage = members.iter().zip(spans.iter().zip(&shadows)).find_map(|(member, (span, shadows))| {
        let hold: BTreeSet<u32> = span.iter().chain(shadows.iter().copied()).collect();
        let need: u64 = hold.iter().filter_map(|l| model.layer_bytes.get(*l as usize)).sum();
        (need > member.memory_bytes).then(|| shortage(member, hold.len(), need))
    });
    let mut peers: Vec<TopologyPeer> = Vec::new();
    for (member, (span, shadows)) in members.iter().zip(spans.iter().zip(shadows)) {
        let mut extra = shadows;
        if !(settled && covered) {
            let before = previous.and_then(|p| p.peer(&PeerName::from(member.name.as_str())));
            extra.extend(before.into_iter().flat_map(|p| layer_set(&p.hold())));
        }
        extra.retain(|l| !span.contains(*l));
        peers.push(peer(member, *span, ranges(&extra)));
    }
    for leaving in candidates.iter().filter(|c| c.state == PeerState::Draining) {
        let before = previous.and_then(|p| p.peer(&PeerName::from(leaving.name.as_str())));
        // What it held stays usable until it is gone, but nothing is planned on it.
        let hold = before.map(|p| ranges(&layer_set(&p.hold()))).unwrap_or_default();
        peers.push(peer(leaving, Layers::default(), hold));
    }
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut topology = Topology {
        epoch,
        model: ModelId { name: desired.model.clone(), digest: desired.digest.clone() },
        layers,
        peers,
    };
    if previous != Some(&topology) {
        topology.epoch += 1;
    }
    topology.validate().map_err(|e| e.to_string())?;
    let summary = summary(&topology, covered, settled);
    Ok(Layout { topology, summary, shortage })
}

fn shortage(member: &Candidate, layers: usize, need: u64) -> String {
    let (need, has) = (need >> 20, member.memory_bytes >> 20);
    format!(
        "{layers} layers of {need} MiB do not fit into the {has} MiB of a peer in pool {}: raise memory.host or the number of peers, \
         or lower redundancy.shadows",
        member.pool
    )
}

fn peer(candidate: &Candidate, span: Layers, shadows: Vec<Layers>) -> TopologyPeer {
    TopologyPeer {
        name: candidate.name.as_str().into(),
        addr: candidate.addr.clone(),
        pool: candidate.pool.clone(),
        node: candidate.node.clone(),
        zone: candidate.zone.clone(),
        spot: candidate.spot,
        span,
        shadows,
        state: candidate.state,
    }
}

/// Members in pipeline order, each with its span.
fn spans<'a>(
    members: &[&'a Candidate],
    layers: u32,
    desired: usize,
    previous: Option<&Topology>,
    fill_gaps: bool,
) -> (Vec<&'a Candidate>, Vec<Layers>) {
    let place = |member: &Candidate| {
        let peer = previous?.peer(&PeerName::from(member.name.as_str()))?;
        (!peer.span.is_empty()).then_some(peer.span)
    };
    let mut placed: Vec<(Layers, &Candidate)> =
        members.iter().filter_map(|m| Some((place(m)?, *m))).collect();
    let mut new: Vec<&Candidate> = members.iter().filter(|m| place(m).is_none()).copied().collect();
    new.sort_by(|a, b| a.name.cmp(&b.name));
    new.reverse();
    placed.sort_by_key(|(span, _)| span.start);
    // Replacements take the places of the lost: the gaps between spans, as wide as they are.
    let served: BTreeSet<u32> = placed.iter().flat_map(|(span, _)| span.iter()).collect();
    let gaps = ranges(&(0..layers).filter(|l| !served.contains(l)).collect());
    let held: BTreeSet<u32> =
        members.iter().filter(|m| m.state == PeerState::Ready).flat_map(|m| layer_set(&m.held)).collect();
    let usual = layers.div_ceil(u32::try_from(desired.max(1)).unwrap_or(u32::MAX));
    let mut open = Vec::new();
    for gap in gaps {
        // Neighbours lost together leave one wide gap: a place for each.
        let mut start = gap.start;
        while start < gap.end {
            let end = if gap.end - start <= usual + usual / 2 { gap.end } else { start + usual };
            match new.pop() {
                Some(member) => placed.push((Layers::new(start, end), member)),
                None => open.push(Layers::new(start, end)),
            }
            start = end;
        }
    }
    placed.sort_by_key(|(span, _)| span.start);
    let bearable = open.iter().all(|gap| gap.iter().all(|l| held.contains(&l)));
    let waits = !open.is_empty() && bearable && !fill_gaps && placed.len() < desired;
    if new.is_empty() && (open.is_empty() || waits) && !placed.is_empty() {
        return placed.into_iter().map(|(span, member)| (member, span)).unzip();
    }
    // More or fewer peers than places: cut anew, keeping the order.
    new.reverse();
    let order: Vec<&Candidate> = placed.into_iter().map(|(_, member)| member).chain(new).collect();
    let spans = even(layers, order.len());
    (order, spans)
}

/// `layers` cut into `parts` spans that differ by at most one layer, wider ones first.
fn even(layers: u32, parts: usize) -> Vec<Layers> {
    let count = u32::try_from(parts).unwrap_or(u32::MAX);
    let mut start = 0;
    (0..count)
        .map(|i| {
            let len = layers / count + u32::from(i < layers % count);
            start += len;
            Layers::new(start - len, start)
        })
        .collect()
}

/// For each member the layers it holds for others: each span goes to the `copies` others that share least with its owner and hold least.
fn shadows(members: &[&Candidate], spans: &[Layers], copies: usize) -> Vec<BTreeSet<u32>> {
    let mut held: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); members.len()];
    for (i, span) in spans.iter().enumerate() {
        let owner = members[i];
        let same = |a: &str, b: &str| !a.is_empty() && a == b;
        let mut others: Vec<usize> = (0..members.len()).filter(|j| *j != i).collect();
        others.sort_by_key(|&j| {
            let other = members[j];
            let ring = (j + members.len() - i) % members.len();
            (
                same(&owner.node, &other.node),
                held[j].len(),
                same(&owner.zone, &other.zone),
                owner.pool == other.pool,
                ring,
            )
        });
        for j in others.into_iter().take(copies) {
            held[j].extend(span.iter());
        }
    }
    held
}

/// Bounded by naming ranges and counts, not every peer of a large swarm.
fn summary(topology: &Topology, covered: bool, settled: bool) -> String {
    let mut stages: Vec<&TopologyPeer> = topology.peers.iter().filter(|p| !p.span.is_empty()).collect();
    stages.sort_by_key(|p| p.span.start);
    let shown: Vec<String> = stages
        .iter()
        .take(8)
        .map(|p| format!("{} {}-{}", p.name, p.span.start, p.span.end.saturating_sub(1)))
        .collect();
    let more = if stages.len() > 8 { format!(" and {} more", stages.len() - 8) } else { String::new() };
    let mut text =
        format!("{} peers hold {} layers: {}{more}", stages.len(), topology.layers, shown.join(", "));
    if !covered {
        text.push_str("; a lost peer's layers run from shadows until a replacement joins");
    } else if !settled {
        text.push_str("; layers are being loaded");
    }
    text
}

#[cfg(test)]
mod tests {
    use dunlin_planner::topology::ranges;

    use super::*;
    use crate::testing::desired;

    fn model() -> ModelFacts {
        ModelFacts { layer_bytes: vec![1; 30] }
    }

    fn candidate(name: &str, state: PeerState) -> Candidate {
        Candidate {
            name: name.into(),
            node: format!("n-{name}"),
            pool: "spot".into(),
            state,
            memory_bytes: 1 << 20,
            ..Candidate::default()
        }
    }

    /// Everybody is Ready and has loaded what the topology says.
    fn settle(names: &[&str], topology: &Topology) -> Vec<Candidate> {
        names
            .iter()
            .map(|name| {
                let held = topology.peer(&PeerName::from(*name)).map(TopologyPeer::hold).unwrap_or_default();
                Candidate { held, ..candidate(name, PeerState::Ready) }
            })
            .collect()
    }

    fn first(names: &[&str]) -> Topology {
        let desired = desired(u32::try_from(names.len()).unwrap());
        let coming: Vec<Candidate> = names.iter().map(|n| candidate(n, PeerState::Loading)).collect();
        let loading = layout(&desired, &model(), &coming, None, false).unwrap().topology;
        layout(&desired, &model(), &settle(names, &loading), Some(&loading), false).unwrap().topology
    }

    fn span(topology: &Topology, name: &str) -> (u32, u32) {
        let span = topology.peer(&PeerName::from(name)).unwrap().span;
        (span.start, span.end)
    }

    fn holders(topology: &Topology, layer: u32) -> usize {
        topology.peers.iter().filter(|p| p.hold().iter().any(|r| r.contains(layer))).count()
    }

    #[test]
    fn three_peers_share_evenly_and_every_layer_has_a_shadow_elsewhere() {
        let topology = first(&["a", "b", "c"]);
        assert_eq!(
            [span(&topology, "a"), span(&topology, "b"), span(&topology, "c")],
            [(0, 10), (10, 20), (20, 30)]
        );
        assert!((0..30).all(|l| holders(&topology, l) == 2));
    }

    #[test]
    fn layers_that_do_not_fit_are_told_with_what_to_do() {
        let large = ModelFacts { layer_bytes: vec![1 << 20; 30] };
        let all = settle(&["a", "b", "c"], &first(&["a", "b", "c"]));
        let told = layout(&desired(3), &large, &all, None, false).unwrap().shortage.unwrap();
        assert!(told.contains("20 layers of 20 MiB do not fit into the 1 MiB"), "{told}");
        assert_eq!(layout(&desired(3), &model(), &all, None, false).unwrap().shortage, None);
    }

    #[test]
    fn nothing_new_keeps_the_epoch_and_a_change_raises_it() {
        let topology = first(&["a", "b", "c"]);
        let all = settle(&["a", "b", "c"], &topology);
        let again = layout(&desired(3), &model(), &all, Some(&topology), false).unwrap().topology;
        assert_eq!(again, topology);
        let lost = layout(&desired(3), &model(), &all[..2], Some(&topology), false).unwrap().topology;
        assert_eq!(lost.epoch, topology.epoch + 1);
    }

    #[test]
    fn a_loss_moves_nobody_and_the_replacement_takes_the_place() {
        let topology = first(&["a", "b", "c"]);
        let left = settle(&["a", "c"], &topology);
        let lost = layout(&desired(3), &model(), &left, Some(&topology), false).unwrap();
        assert_eq!([span(&lost.topology, "a"), span(&lost.topology, "c")], [(0, 10), (20, 30)]);
        assert!((0..30).all(|l| holders(&lost.topology, l) >= 1));
        assert!(lost.summary.contains("run from shadows"), "{}", lost.summary);
        let mut joined = left.clone();
        joined.push(candidate("d", PeerState::Loading));
        let joining = layout(&desired(3), &model(), &joined, Some(&lost.topology), false).unwrap().topology;
        assert_eq!(
            [span(&joining, "a"), span(&joining, "d"), span(&joining, "c")],
            [(0, 10), (10, 20), (20, 30)]
        );
        // Until d reports its layers, a and c keep all that they held.
        for name in ["a", "c"] {
            let name = PeerName::from(name);
            let before = layer_set(&lost.topology.peer(&name).unwrap().hold());
            assert!(before.is_subset(&layer_set(&joining.peer(&name).unwrap().hold())));
        }
        let done = layout(&desired(3), &model(), &settle(&["a", "c", "d"], &joining), Some(&joining), false)
            .unwrap();
        assert!((0..30).all(|l| holders(&done.topology, l) == 2));
    }

    #[test]
    fn layers_that_nobody_holds_any_more_are_cut_anew_at_once() {
        let topology = first(&["a", "b", "c", "d"]);
        let left = settle(&["a"], &topology);
        let alone = layout(&desired(4), &model(), &left, Some(&topology), false).unwrap().topology;
        assert_eq!(span(&alone, "a"), (0, 30));
    }

    #[test]
    fn two_replacements_of_neighbours_share_the_gap() {
        let topology = first(&["a", "b", "c"]);
        let mut joined = settle(&["a"], &topology);
        joined.extend([candidate("x", PeerState::Loading), candidate("y", PeerState::Loading)]);
        let both = layout(&desired(3), &model(), &joined, Some(&topology), false).unwrap().topology;
        assert_eq!([span(&both, "a"), span(&both, "x"), span(&both, "y")], [(0, 10), (10, 20), (20, 30)]);
    }

    #[test]
    fn a_gap_is_filled_when_replacements_do_not_come() {
        let topology = first(&["a", "b", "c"]);
        let left = settle(&["a", "c"], &topology);
        let filled = layout(&desired(3), &model(), &left, Some(&topology), true).unwrap().topology;
        assert_eq!([span(&filled, "a"), span(&filled, "c")], [(0, 15), (15, 30)]);
    }

    #[test]
    fn more_and_fewer_peers_are_cut_anew_and_the_leaving_keep_what_they_hold() {
        let topology = first(&["a", "b", "c"]);
        let mut five = settle(&["a", "b", "c"], &topology);
        five.extend([candidate("d", PeerState::Loading), candidate("e", PeerState::Loading)]);
        let grown = layout(&desired(5), &model(), &five, Some(&topology), false).unwrap().topology;
        assert!(["a", "b", "c", "d", "e"].iter().all(|n| span(&grown, n).1 - span(&grown, n).0 == 6));
        let mut two = settle(&["a", "b", "c"], &topology);
        two[2].state = PeerState::Draining;
        let shrunk = layout(&desired(2), &model(), &two, Some(&topology), false).unwrap().topology;
        assert_eq!([span(&shrunk, "a"), span(&shrunk, "b")], [(0, 15), (15, 30)]);
        let leaving = shrunk.peer(&PeerName::from("c")).unwrap();
        assert_eq!((leaving.span.len(), leaving.state), (0, PeerState::Draining));
        assert_eq!(leaving.hold(), ranges(&layer_set(&topology.peer(&PeerName::from("c")).unwrap().hold())));
    }

    #[test]
    fn another_model_starts_afresh() {
        let mut topology = first(&["a", "b", "c"]);
        topology.model.digest = "another".into();
        topology.epoch = 9;
        let new =
            layout(&desired(1), &model(), &[candidate("x", PeerState::Loading)], Some(&topology), false)
                .unwrap();
        assert_eq!((span(&new.topology, "x"), new.topology.epoch), ((0, 30), 10));
    }
}
