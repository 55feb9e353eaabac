//! Who executes and who keeps what, on one machine: even spans, the shadow of a span on the next peer.

use std::collections::BTreeSet;

use dunlin_planner::topology::{layer_set, ranges};
use dunlin_planner::{Capacity, Layers, ModelId, PeerName, PeerState, Topology, TopologyPeer, partition};

/// A stage that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub addr: String,
    /// Layers of the model.
    pub layers: u32,
    /// What it can do.
    pub state: PeerState,
}

/// The topology for `members`: those that have a span keep it, newcomers take the spans of the lost, first those that nobody keeps as shadows.
///
/// # Errors
/// When there are no members.
pub fn plan(
    members: &[Member],
    previous: &Topology,
    wanted: usize,
    shadows: usize,
) -> anyhow::Result<Topology> {
    let Some(layers) = members.first().map(|m| m.layers) else { return Ok(previous.clone()) };
    let place = |m: &Member| previous.peer(&PeerName::from(m.name.as_str())).map(|p| p.span);
    let mut spans: Vec<Option<Layers>> = members.iter().map(place).collect();
    if spans.iter().all(Option::is_none) {
        // Processes on one machine are equally fast.
        let capacities = vec![Capacity { rate: 1.0, layers_max: layers }; members.len()];
        spans = partition(layers, &capacities)?.into_iter().map(Some).collect();
    }
    // What no span covers was lost; neighbours lost together leave a gap for each of them.
    let served = layer_set(&spans.iter().flatten().copied().collect::<Vec<_>>());
    let gaps = ranges(&(0..layers).filter(|l| !served.contains(l)).collect());
    let usual = layers.div_ceil(u32::try_from(wanted.max(1)).unwrap_or(u32::MAX));
    let mut open: Vec<Layers> = gaps.iter().flat_map(|gap| cut(*gap, usual)).collect();
    // What somebody keeps as a shadow can wait for the next replacement.
    let before = |m: &Member| previous.peer(&PeerName::from(m.name.as_str())).map(|p| p.shadows.clone());
    let kept = layer_set(&members.iter().filter_map(before).flatten().collect::<Vec<_>>());
    open.sort_by_key(|span| (span.iter().all(|layer| kept.contains(&layer)), span.start));
    open.reverse();
    for span in spans.iter_mut().filter(|s| s.is_none()) {
        *span = open.pop();
    }
    let mut order: Vec<(Layers, &Member)> =
        members.iter().zip(spans).filter_map(|(m, span)| Some((span?, m))).collect();
    order.sort_by_key(|(span, _)| span.start);
    // Spans without a peer stay on their shadows: whoever kept them keeps them until a replacement is there.
    let missing: Vec<Layers> = open;
    let count = order.len();
    let mut peers: Vec<TopologyPeer> = Vec::new();
    for (i, (span, member)) in order.iter().enumerate() {
        let mut kept: Vec<Layers> =
            (1..=shadows.min(count.saturating_sub(1))).map(|k| order[(i + k) % count].0).collect();
        let before = previous
            .peer(&PeerName::from(member.name.as_str()))
            .map(|p| p.shadows.clone())
            .unwrap_or_default();
        let lost: BTreeSet<u32> = missing.iter().flat_map(|gap| gap.iter()).collect();
        let mut all = layer_set(&kept);
        all.extend(layer_set(&before).intersection(&lost));
        kept = ranges(&all);
        peers.push(TopologyPeer {
            name: member.name.as_str().into(),
            addr: member.addr.clone(),
            pool: "local".to_owned(),
            node: member.name.clone(),
            zone: String::new(),
            spot: false,
            span: *span,
            shadows: kept,
            state: member.state,
        });
    }
    let mut topology = Topology { epoch: previous.epoch, model: ModelId::default(), layers, peers };
    if topology != *previous {
        topology.epoch += 1;
    }
    topology.validate()?;
    Ok(topology)
}

/// A gap in pieces of the usual length; a rest that is too short goes with the last.
fn cut(gap: Layers, usual: u32) -> Vec<Layers> {
    let pieces = (gap.len() / usual.max(1)).max(1);
    let at = |i: u32| gap.start + gap.len() * i / pieces;
    (0..pieces).map(|i| Layers::new(at(i), at(i + 1))).collect()
}

#[cfg(test)]
mod tests {
    use dunlin_planner::{Layers, PeerState, Topology};

    use super::{Member, layer_set, plan};

    fn members(names: &[&str]) -> Vec<Member> {
        let member = |name: &&str| Member {
            name: (*name).to_owned(),
            addr: format!("{name}:1"),
            layers: 30,
            state: PeerState::Ready,
        };
        names.iter().map(member).collect()
    }

    fn spans(topology: &Topology) -> Vec<(String, u32, u32, usize)> {
        topology.peers.iter().map(|p| (p.name.0.clone(), p.span.start, p.span.end, p.shadows.len())).collect()
    }

    #[test]
    fn a_replacement_takes_the_place_of_the_lost_and_nobody_else_moves() {
        let first = plan(&members(&["a", "b", "c"]), &Topology::default(), 3, 1).unwrap();
        assert_eq!(spans(&first), [("a".into(), 0, 10, 1), ("b".into(), 10, 20, 1), ("c".into(), 20, 30, 1)]);
        assert_eq!(first.epoch, 1);
        assert_eq!(plan(&members(&["a", "b", "c"]), &first, 3, 1).unwrap(), first);
        let replaced = plan(&members(&["a", "c", "d"]), &first, 3, 1).unwrap();
        assert_eq!(
            spans(&replaced),
            [("a".into(), 0, 10, 1), ("d".into(), 10, 20, 1), ("c".into(), 20, 30, 1)]
        );
        assert_eq!(replaced.epoch, 2);
    }

    #[test]
    fn shadows_of_the_lost_stay_until_they_are_replaced() {
        let first = plan(&members(&["a", "b", "c"]), &Topology::default(), 3, 1).unwrap();
        let lost = plan(&members(&["a", "c"]), &first, 3, 1).unwrap();
        let a = lost.peers.iter().find(|p| p.name.0 == "a").unwrap();
        assert!(layer_set(&a.shadows).is_superset(&Layers::new(10, 20).iter().collect()), "{:?}", a.shadows);
        let still = plan(&members(&["a", "c"]), &lost, 3, 1).unwrap();
        assert_eq!(still, lost, "however long it takes");
        let replaced = plan(&members(&["a", "c", "d"]), &lost, 3, 1).unwrap();
        assert_eq!(spans(&replaced)[1], ("d".into(), 10, 20, 1));
    }

    #[test]
    fn a_replacement_takes_first_what_nobody_keeps() {
        let first = plan(&members(&["a", "b", "c"]), &Topology::default(), 3, 1).unwrap();
        // The layers of a are shadows of c, those of b were shadows of a.
        let alone = plan(&members(&["c"]), &first, 3, 1).unwrap();
        let replaced = plan(&members(&["c", "d"]), &alone, 3, 1).unwrap();
        assert_eq!(replaced.peer(&"d".into()).unwrap().span, Layers::new(10, 20));
        let served: std::collections::BTreeSet<u32> =
            layer_set(&replaced.peers.iter().flat_map(|p| p.hold()).collect::<Vec<_>>());
        assert_eq!(served.len(), 30, "{replaced:?}");
    }

    #[test]
    fn two_replacements_share_what_two_neighbours_had() {
        let first = plan(&members(&["a", "b", "c"]), &Topology::default(), 3, 1).unwrap();
        let alone = plan(&members(&["a"]), &first, 3, 1).unwrap();
        let both = plan(&members(&["a", "d", "e"]), &alone, 3, 1).unwrap();
        assert_eq!(spans(&both), [("a".into(), 0, 10, 1), ("e".into(), 10, 20, 1), ("d".into(), 20, 30, 1)]);
    }
}
