//! Ways through all layers, as a gateway knows its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use dunlin_planner::{degrade, route};
use dunlin_swarm::{Layers, Load, Loads, NoRoute, PeerName, PeerState, RouteHop, Topology, TopologyPeer};
use thiserror::Error;

/// Degraded topologies that are kept; more than this many sets of peers to leave out are rare.
const KEPT_MAX: usize = 32;

/// A way through all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Version of the arithmetic of its peers.
    pub arithmetic: u32,
    pub hops: Vec<RouteHop>,
}

/// There is no way through all layers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct NoWay {
    /// What nobody holds; nothing when there is no topology yet.
    pub missing: Option<NoRoute>,
    /// The version that all peers of the way must have.
    pub arithmetic: Option<u32>,
    /// Peers that could help if it was theirs, with theirs.
    pub others: Vec<(PeerName, u32)>,
}

impl fmt::Display for NoWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(missing) = &self.missing else {
            return f.write_str("the gateway has no topology yet: the operator sends it");
        };
        write!(f, "{missing}")?;
        if let (Some(wanted), [_, ..]) = (self.arithmetic, &self.others[..]) {
            let others: Vec<String> = self.others.iter().map(|(name, v)| format!("{name} ({v})")).collect();
            write!(f, " with version {wanted} of the arithmetic; {} differ", others.join(", "))?;
        }
        Ok(())
    }
}

/// The topology, who is there, how they are doing, and the ways that follow. What does not change from one question to the next is kept.
#[derive(Default)]
pub(super) struct Routes {
    topology: Option<Topology>,
    /// Peers with a working link. They are on routes from their first pong on: before it nobody knows what they can do.
    up: BTreeSet<PeerName>,
    loads: Loads,
    /// Peers to go around while there is another way.
    slow: BTreeSet<PeerName>,
    /// What is left of the topology without some peers.
    degraded: BTreeMap<BTreeSet<PeerName>, Arc<Topology>>,
    /// The way of a session that has not begun.
    fresh: Option<Result<Way, NoWay>>,
}

impl Routes {
    pub fn topology(&self) -> Option<&Topology> {
        self.topology.as_ref()
    }

    pub fn up(&self) -> &BTreeSet<PeerName> {
        &self.up
    }

    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    pub fn set_topology(&mut self, topology: Topology) {
        self.topology = Some(topology);
        self.degraded.clear();
        self.fresh = None;
    }

    pub fn peer_up(&mut self, peer: PeerName) {
        self.up.insert(peer);
        self.fresh = None;
    }

    pub fn peer_lost(&mut self, peer: &PeerName) {
        self.up.remove(peer);
        self.loads.remove(peer);
        self.fresh = None;
    }

    /// Takes over what a peer with a working link says; returns what it said before.
    pub fn set_load(&mut self, peer: &PeerName, load: Load) -> Option<Load> {
        self.fresh = None;
        self.loads.insert(peer.clone(), load)
    }

    pub fn set_slow(&mut self, slow: BTreeSet<PeerName>) {
        if self.slow != slow {
            self.slow = slow;
            self.fresh = None;
        }
    }

    /// The best way for a session that has not begun.
    pub fn fresh(&mut self) -> Result<Way, NoWay> {
        if let Some(known) = &self.fresh {
            return known.clone();
        }
        let way = self.find(&[], &BTreeSet::new(), None);
        self.fresh = Some(way.clone());
        way
    }

    /// The best way that keeps what it can of `keep`, goes around slow peers and those in `avoid` while there is another one, and stays with
    /// one version of the arithmetic: `pinned`, or the newest that has a way, of peers that stay if there is one.
    pub fn find(
        &mut self,
        keep: &[(PeerName, Layers)],
        avoid: &BTreeSet<PeerName>,
        pinned: Option<u32>,
    ) -> Result<Way, NoWay> {
        let Some(topology) = &self.topology else {
            return Err(NoWay { missing: None, arithmetic: None, others: Vec::new() });
        };
        let version = |name: &PeerName| {
            self.loads.get(name).filter(|_| self.up.contains(name)).map(|load| load.arithmetic)
        };
        let known: BTreeMap<PeerName, Option<u32>> =
            topology.peers.iter().map(|p| (p.name.clone(), version(&p.name))).collect();
        // Rather one of peers that stay, and then rather the newest: what is rolled back goes to an older one.
        let version_of = |peer: &TopologyPeer| Some((peer.state != PeerState::Draining, known[&peer.name]?));
        let there: BTreeSet<(bool, u32)> = topology.peers.iter().filter_map(version_of).collect();
        let versions = match pinned {
            Some(version) => vec![version],
            None if there.is_empty() => vec![0],
            None => there.into_iter().rev().map(|(_, version)| version).collect(),
        };
        let mut error = None;
        for arithmetic in versions {
            let lost: BTreeSet<PeerName> =
                known.iter().filter(|(_, v)| **v != Some(arithmetic)).map(|(n, _)| n.clone()).collect();
            let slow_too: BTreeSet<PeerName> = avoid.union(&self.slow).cloned().collect();
            let mut tried = None;
            for around in [&slow_too, avoid, &BTreeSet::new()] {
                let without: BTreeSet<PeerName> = lost.union(around).cloned().collect();
                if tried.as_ref() == Some(&without) {
                    continue;
                }
                match route(&self.without(&without), &self.loads, keep) {
                    Ok(hops) => return Ok(Way { arithmetic, hops }),
                    Err(no_route) if around.is_empty() => {
                        error.get_or_insert_with(|| no_way(no_route, arithmetic, &known));
                    }
                    Err(_) => {}
                }
                tried = Some(without);
            }
        }
        Err(error.unwrap_or(NoWay { missing: None, arithmetic: None, others: Vec::new() }))
    }

    fn without(&mut self, lost: &BTreeSet<PeerName>) -> Arc<Topology> {
        if let Some(known) = self.degraded.get(lost) {
            return Arc::clone(known);
        }
        if self.degraded.len() >= KEPT_MAX {
            self.degraded.clear();
        }
        let left = Arc::new(self.topology.as_ref().map(|t| degrade(t, lost)).unwrap_or_default());
        self.degraded.insert(lost.clone(), Arc::clone(&left));
        left
    }
}

fn no_way(missing: NoRoute, arithmetic: u32, known: &BTreeMap<PeerName, Option<u32>>) -> NoWay {
    let other = |(name, version): (&PeerName, &Option<u32>)| {
        version.filter(|version| *version != arithmetic).map(|version| (name.clone(), version))
    };
    NoWay {
        missing: Some(missing),
        arithmetic: Some(arithmetic),
        others: known.iter().filter_map(other).collect(),
    }
}
