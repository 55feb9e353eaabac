//! What is wrong with a topology, checked apart from how it was made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use dunlin_swarm::{Layers, PeerName, PeerState, Topology, layer_set, ranges};

use crate::member::Member;
use crate::shadow::nearness;
use crate::wanted::LayoutGoal;

/// Most findings that are told.
pub const FINDINGS_MAX: usize = 32;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LintFinding {
    /// Epochs start at 1.
    EpochZero,
    /// Two peers of one name.
    Duplicate(PeerName),
    /// A range of layers leaves the model or ends before it starts.
    OutOfModel {
        /// The peer that is given the range.
        peer: PeerName,
        /// The range as it is in the plan.
        layers: Layers,
    },
    /// Two peers execute the same layers.
    Overlap {
        /// One of them.
        peer: PeerName,
        /// The other peer.
        other: PeerName,
    },
    /// A peer that is about to go has layers to execute.
    LeavingWithSpan(PeerName),
    /// No peer executes these layers, but some hold them.
    OnShadows(Layers),
    /// No peer holds these layers at all.
    Uncovered(Layers),
    /// Fewer other peers hold these layers than asked for.
    Unshadowed(Layers),
    /// The only shadows of these layers would be lost together with their owner.
    SameDomain {
        /// The peer that executes them.
        owner: PeerName,
        /// The layers whose copies would be lost together.
        layers: Layers,
        /// What owner and shadow share: a node or a zone.
        shared: &'static str,
    },
    /// A peer is given more than its memory takes.
    Overcommit {
        /// The peer that is given too much.
        peer: PeerName,
        /// What it is given, in MiB.
        need_mib: u64,
        /// Its room for weights, in MiB.
        has_mib: u64,
    },
}

impl LintFinding {
    /// A topology with it must not be published: it breaks a rule, rather than being short of something.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(
            self,
            Self::EpochZero
                | Self::Duplicate(_)
                | Self::OutOfModel { .. }
                | Self::Overlap { .. }
                | Self::LeavingWithSpan(_)
        )
    }
}

impl fmt::Display for LintFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EpochZero => f.write_str("the epoch is 0"),
            Self::Duplicate(peer) => write!(f, "peer {peer} is listed twice"),
            Self::OutOfModel { peer, layers } => {
                write!(f, "peer {peer} has layers {layers} outside of the model")
            }
            Self::Overlap { peer, other } => write!(f, "peers {peer} and {other} execute the same layers"),
            Self::LeavingWithSpan(peer) => write!(f, "peer {peer} is leaving and has layers to execute"),
            Self::OnShadows(layers) => write!(f, "layers {layers} run from shadows"),
            Self::Uncovered(layers) => write!(f, "nobody holds layers {layers}"),
            Self::Unshadowed(layers) => write!(f, "layers {layers} have too few shadows"),
            Self::SameDomain { owner, layers, shared } => {
                write!(f, "every shadow of layers {layers} shares its {shared} with {owner}")
            }
            Self::Overcommit { peer, need_mib, has_mib } => {
                write!(f, "peer {peer} is given {need_mib} MiB and has room for {has_mib} MiB")
            }
        }
    }
}

/// Everything that is wrong with `topology`, errors first, at most [`FINDINGS_MAX`]. `wanted` and `members` are what it was made from.
#[must_use]
pub fn lint(topology: &Topology, wanted: &LayoutGoal, members: &[Member]) -> Vec<LintFinding> {
    let mut findings = rules(topology);
    // What follows is about layers inside of the model.
    if !findings.iter().any(|f| matches!(f, LintFinding::OutOfModel { .. })) {
        findings.extend(redundancy(topology, wanted.shadows));
        findings.extend(domains(topology, members));
        findings.extend(memory(topology, wanted, members));
    }
    findings.truncate(FINDINGS_MAX);
    findings
}

fn rules(topology: &Topology) -> Vec<LintFinding> {
    let mut findings = Vec::new();
    if topology.epoch == 0 {
        findings.push(LintFinding::EpochZero);
    }
    let mut names = BTreeSet::new();
    let mut spans: Vec<(Layers, &PeerName)> = Vec::new();
    for peer in &topology.peers {
        if !names.insert(&peer.name) {
            findings.push(LintFinding::Duplicate(peer.name.clone()));
        }
        for layers in peer.shadows.iter().chain([&peer.span]).copied() {
            if layers.start > layers.end || layers.end > topology.layers {
                findings.push(LintFinding::OutOfModel { peer: peer.name.clone(), layers });
            }
        }
        if peer.state == PeerState::Draining && !peer.span.is_empty() {
            findings.push(LintFinding::LeavingWithSpan(peer.name.clone()));
        }
        if !peer.span.is_empty() {
            spans.push((peer.span, &peer.name));
        }
    }
    spans.sort();
    for pair in spans.windows(2) {
        if pair[0].0.intersects(pair[1].0) {
            findings.push(LintFinding::Overlap { peer: pair[0].1.clone(), other: pair[1].1.clone() });
        }
    }
    findings
}

fn redundancy(topology: &Topology, shadows: usize) -> Vec<LintFinding> {
    let mut executed = BTreeSet::new();
    let mut holders: BTreeMap<u32, usize> = BTreeMap::new();
    for peer in &topology.peers {
        executed.extend(peer.span.iter());
        for layer in peer.hold().into_iter().flat_map(Layers::iter) {
            *holders.entry(layer).or_insert(0) += 1;
        }
    }
    let staying = topology.peers.iter().filter(|p| p.state != PeerState::Draining).count();
    // A swarm of two cannot have three holders of a layer.
    let copies = 1 + shadows.min(staying.saturating_sub(1));
    let that = |fits: &dyn Fn(u32, usize) -> bool| {
        let all = (0..topology.layers).filter(|l| fits(*l, holders.get(l).copied().unwrap_or(0)));
        ranges(&all.collect())
    };
    let uncovered = that(&|_, holders| holders == 0);
    let on_shadows = that(&|layer, holders| holders > 0 && !executed.contains(&layer));
    let unshadowed = that(&|layer, holders| executed.contains(&layer) && holders < copies);
    let uncovered = uncovered.into_iter().map(LintFinding::Uncovered);
    uncovered
        .chain(on_shadows.into_iter().map(LintFinding::OnShadows))
        .chain(unshadowed.into_iter().map(LintFinding::Unshadowed))
        .collect()
}

fn domains(topology: &Topology, members: &[Member]) -> Vec<LintFinding> {
    let member = |name: &PeerName| members.iter().find(|m| m.name == *name);
    let mut findings = Vec::new();
    for peer in topology.peers.iter().filter(|p| !p.span.is_empty()) {
        let Some(owner) = member(&peer.name) else { continue };
        let mut by_sharing: BTreeMap<&'static str, BTreeSet<u32>> = BTreeMap::new();
        for layer in peer.span.iter() {
            let others = topology.peers.iter().filter(|p| p.name != peer.name);
            let holders = others.filter(|p| p.hold().iter().any(|l| l.contains(layer)));
            let nearest = holders.filter_map(|p| member(&p.name)).map(|m| nearness(owner, m)).min();
            match nearest {
                Some(2) => by_sharing.entry("node").or_default().insert(layer),
                Some(1) => by_sharing.entry("zone").or_default().insert(layer),
                _ => false,
            };
        }
        for (shared, layers) in by_sharing {
            let owner = &peer.name;
            let finding = |layers| LintFinding::SameDomain { owner: owner.clone(), layers, shared };
            findings.extend(ranges(&layers).into_iter().map(finding));
        }
    }
    findings
}

fn memory(topology: &Topology, wanted: &LayoutGoal, members: &[Member]) -> Vec<LintFinding> {
    let given = |peer: &dunlin_swarm::TopologyPeer| wanted.need(peer.span, &layer_set(&peer.shadows));
    let over = topology.peers.iter().filter_map(|peer| {
        let (need, room) = (given(peer), members.iter().find(|m| m.name == peer.name)?.room_bytes);
        (need > room).then(|| LintFinding::Overcommit {
            peer: peer.name.clone(),
            need_mib: need >> 20,
            has_mib: room >> 20,
        })
    });
    over.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_swarm::TopologyPeer;

    fn peer(name: &str, span: (u32, u32), shadows: &[(u32, u32)]) -> TopologyPeer {
        TopologyPeer {
            name: name.into(),
            span: Layers::new(span.0, span.1),
            shadows: shadows.iter().map(|s| Layers::new(s.0, s.1)).collect(),
            state: PeerState::Ready,
            ..TopologyPeer::default()
        }
    }

    fn member(name: &str, node: &str, zone: &str, room: u64) -> Member {
        let (node, zone) = (node.into(), zone.into());
        Member { name: name.into(), node, zone, room_bytes: room << 20, ..Member::default() }
    }

    fn wanted() -> LayoutGoal {
        LayoutGoal { layer_bytes: vec![1 << 20; 20], peers: 2, shadows: 1, ..LayoutGoal::default() }
    }

    fn told(topology: &Topology, members: &[Member]) -> Vec<String> {
        lint(topology, &wanted(), members).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_topology_has_no_findings() {
        let peers = vec![peer("a", (0, 10), &[(10, 20)]), peer("b", (10, 20), &[(0, 10)])];
        let topology = Topology { epoch: 1, layers: 20, peers, ..Topology::default() };
        assert!(told(&topology, &[member("a", "1", "x", 20), member("b", "2", "y", 20)]).is_empty());
    }

    #[test]
    fn broken_rules_are_errors() {
        let mut peers =
            vec![peer("a", (0, 11), &[]), peer("a", (10, 20), &[(0, 99)]), peer("c", (0, 5), &[])];
        peers[2].state = PeerState::Draining;
        let topology = Topology { layers: 20, peers, ..Topology::default() };
        let findings = lint(&topology, &wanted(), &[]);
        assert!(findings.iter().all(LintFinding::is_error));
        assert_eq!(
            findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "the epoch is 0",
                "peer a is listed twice",
                "peer a has layers [0,99) outside of the model",
                "peer c is leaving and has layers to execute",
                "peers c and a execute the same layers",
                "peers a and a execute the same layers",
            ]
        );
    }

    #[test]
    fn shortcomings_are_told_and_do_not_forbid() {
        let peers = vec![peer("a", (0, 8), &[(8, 12)]), peer("b", (12, 18), &[(0, 4)])];
        let topology = Topology { epoch: 1, layers: 20, peers, ..Topology::default() };
        let members = [member("a", "1", "x", 20), member("b", "1", "x", 9)];
        let findings = lint(&topology, &wanted(), &members);
        assert!(!findings.iter().any(LintFinding::is_error));
        assert_eq!(
            told(&topology, &members),
            [
                "nobody holds layers [18,20)",
                "layers [8,12) run from shadows",
                "layers [4,8) have too few shadows",
                "layers [12,18) have too few shadows",
                "every shadow of layers [0,4) shares its node with a",
                "peer b is given 10 MiB and has room for 9 MiB",
            ]
        );
    }
}
