//! Ways through all layers, as a gateway knows its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use dunlin_planner::{degrade, route};
use dunlin_swarm::{
    Layers, Load, Loads, NoRoute, NumericsClass, PeerName, PeerState, RouteHop, Topology, TopologyPeer,
};
use thiserror::Error;

/// Degraded topologies that are kept; more than this many sets of peers to leave out are rare.
const KEPT_MAX: usize = 32;

/// A way through all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// What all of its peers say that they compute.
    pub arithmetic: Option<NumericsClass>,
    pub hops: Vec<RouteHop>,
}

/// Peers that a way may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WantedNumerics {
    /// Those of the newest class that has a way, and rather of one that has peers which stay.
    Newest,
    /// Those that say this.
    Same(Option<NumericsClass>),
}

/// There is no way through all layers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoWay {
    /// Nobody has said yet who holds what.
    NoTopology,
    /// The peers that all compute the same do not hold all layers.
    Missing {
        /// What none of them holds.
        missing: NoRoute,
        /// What they say that they compute.
        arithmetic: Option<NumericsClass>,
        /// Peers that could help if they computed that, with what they say.
        others: Vec<(PeerName, Option<NumericsClass>)>,
    },
}

impl fmt::Display for NoWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Missing { missing, arithmetic, others } = self else {
            return f.write_str("the gateway has no topology yet: the operator sends it");
        };
        write!(f, "{missing}")?;
        if !others.is_empty() {
            let version = NumericsClass::number_of;
            let differ = |(name, said): &(PeerName, _)| format!("{name} ({})", version(*said));
            let others: Vec<String> = others.iter().map(differ).collect();
            let (wanted, others) = (version(*arithmetic), others.join(", "));
            write!(f, " with version {wanted} of the arithmetic; {others} differ")?;
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
        let way = self.find(&[], &BTreeSet::new(), WantedNumerics::Newest);
        self.fresh = Some(way.clone());
        way
    }

    /// The best way that keeps what it can of `keep`, goes around slow peers and those in `avoid` while there is another one, and has
    /// `wanted` peers alone, which are of one class.
    pub fn find(
        &mut self,
        keep: &[(PeerName, Layers)],
        avoid: &BTreeSet<PeerName>,
        wanted: WantedNumerics,
    ) -> Result<Way, NoWay> {
        let Some(topology) = &self.topology else {
            return Err(NoWay::NoTopology);
        };
        let names: BTreeSet<PeerName> = topology.peers.iter().map(|p| p.name.clone()).collect();
        let said = |name: &PeerName| Some((name.clone(), self.loads.get(name)?.arithmetic));
        let there: BTreeMap<PeerName, Option<NumericsClass>> =
            names.iter().filter(|name| self.up.contains(*name)).filter_map(said).collect();
        // What is rolled back goes to an older class.
        let stays = |peer: &&TopologyPeer| peer.state != PeerState::Draining;
        let staying: BTreeSet<Option<NumericsClass>> =
            topology.peers.iter().filter(stays).filter_map(|peer| there.get(&peer.name)).copied().collect();
        let known: BTreeSet<(bool, Option<NumericsClass>)> =
            there.values().map(|class| (staying.contains(class), *class)).collect();
        let classes = match wanted {
            WantedNumerics::Same(class) => vec![class],
            WantedNumerics::Newest if known.is_empty() => vec![None],
            WantedNumerics::Newest => known.into_iter().rev().map(|(_, class)| class).collect(),
        };
        let mut error = None;
        for arithmetic in classes {
            let lost: BTreeSet<PeerName> =
                names.iter().filter(|name| there.get(*name) != Some(&arithmetic)).cloned().collect();
            let slow_too: BTreeSet<PeerName> = avoid.union(&self.slow).cloned().collect();
            let (mut tried, mut lacks) = (None, None);
            for around in [&slow_too, avoid, &BTreeSet::new()] {
                let without: BTreeSet<PeerName> = lost.union(around).cloned().collect();
                if tried.as_ref() == Some(&without) {
                    continue;
                }
                match route(&self.without(&without), &self.loads, keep) {
                    Ok(hops) => return Ok(Way { arithmetic, hops }),
                    Err(no_route) => lacks = Some(no_route),
                }
                tried = Some(without);
            }
            // The last of them went around none but those that cannot be on it.
            if let Some(missing) = lacks {
                error.get_or_insert_with(|| no_way(missing, arithmetic, &there));
            }
        }
        Err(error.unwrap_or(NoWay::NoTopology))
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

/// `there`: all that are there, with what they say that they compute.
fn no_way(
    missing: NoRoute,
    arithmetic: Option<NumericsClass>,
    there: &BTreeMap<PeerName, Option<NumericsClass>>,
) -> NoWay {
    let others = there.iter().filter(|(_, said)| **said != arithmetic);
    NoWay::Missing { missing, arithmetic, others: others.map(|(name, said)| (name.clone(), *said)).collect() }
}
