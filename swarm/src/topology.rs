//! Who holds what, and ways through all layers.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::layers::{Layers, in_words, layer_set, ranges};
use crate::limits::{LAYERS_MAX, PEERS_MAX};
use crate::model::ModelId;
use crate::peer::{PeerName, PeerState};

/// Number of a plan; it grows, and nobody obeys an older one.
pub type Epoch = u64;

/// One stage peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyPeer {
    /// One life of a peer.
    pub name: PeerName,
    /// `host:port` of its gRPC server.
    pub addr: String,
    /// Pool it was made for.
    pub pool: String,
    /// Node it runs on.
    pub node: String,
    /// Zone of that node, empty when unknown.
    pub zone: String,
    /// Its pool is of preemptible capacity.
    pub spot: bool,
    /// Layers it executes.
    pub span: Layers,
    /// Layers it holds for others.
    pub shadows: Vec<Layers>,
    /// What it can do.
    pub state: PeerState,
}

impl TopologyPeer {
    /// Span and shadows, as maximal ranges.
    #[must_use]
    pub fn hold(&self) -> Vec<Layers> {
        let mut all = layer_set(&self.shadows);
        all.extend(self.span.iter());
        ranges(&all)
    }

    /// Holds every layer of `layers`.
    #[must_use]
    pub fn holds(&self, layers: Layers) -> bool {
        self.hold().iter().any(|r| r.covers(layers))
    }
}

/// The swarm as gateways route over it: stored in a ConfigMap, pushed over gRPC, checked on arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Number of the plan.
    pub epoch: Epoch,
    /// The model that it divides.
    pub model: ModelId,
    /// Layers of the model.
    pub layers: u32,
    /// Peers that are alive, by name.
    pub peers: Vec<TopologyPeer>,
}

/// Why a topology is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TopologyError {
    /// Not JSON of this shape.
    #[error("the topology is not valid JSON: {0}")]
    Json(String),
    /// A number or list is larger than any real swarm has.
    #[error("the topology has {what} {found}, at most {limit} are allowed")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much was found.
        found: usize,
        /// How much is allowed.
        limit: usize,
    },
    /// A range of layers leaves the model.
    #[error("peer {peer} has layers {layers} of a model with {total} layers")]
    Layers {
        /// The peer that they are given to.
        peer: PeerName,
        /// The range that leaves the model.
        layers: Layers,
        /// Layers of the model.
        total: u32,
    },
    /// Two peers of one name.
    #[error("peer {0} is listed twice")]
    Duplicate(PeerName),
}

impl Topology {
    /// Reads and checks the JSON of a ConfigMap or a push.
    ///
    /// # Errors
    /// When it is no topology, or breaks a bound.
    pub fn parse(json: &str) -> Result<Self, TopologyError> {
        let topology: Self = serde_json::from_str(json).map_err(|e| TopologyError::Json(e.to_string()))?;
        topology.validate()?;
        Ok(topology)
    }

    /// Bounds, ranges inside of the model, unique names.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), TopologyError> {
        let bound = |what, found: usize, limit: usize| {
            if found > limit { Err(TopologyError::TooLarge { what, found, limit }) } else { Ok(()) }
        };
        bound("layers", self.layers as usize, LAYERS_MAX as usize)?;
        bound("peers", self.peers.len(), PEERS_MAX)?;
        let mut names = BTreeSet::new();
        for peer in &self.peers {
            bound("shadow ranges of a peer", peer.shadows.len(), LAYERS_MAX as usize)?;
            for &layers in peer.shadows.iter().chain([&peer.span]) {
                if layers.start > layers.end || layers.end > self.layers {
                    return Err(TopologyError::Layers {
                        peer: peer.name.clone(),
                        layers,
                        total: self.layers,
                    });
                }
            }
            if !names.insert(&peer.name) {
                return Err(TopologyError::Duplicate(peer.name.clone()));
            }
        }
        Ok(())
    }

    /// The peer of that name.
    #[must_use]
    pub fn peer(&self, name: &PeerName) -> Option<&TopologyPeer> {
        self.peers.iter().find(|p| &p.name == name)
    }
}

/// One step of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteHop {
    /// The peer that executes it.
    pub peer: PeerName,
    /// `host:port` of its gRPC server.
    pub addr: String,
    /// The layers that it executes.
    pub layers: Layers,
}

/// No peers cover these layers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no peer holds {} at the moment", in_words(.missing))]
pub struct NoRoute {
    /// What nobody holds.
    pub missing: Vec<Layers>,
}

#[cfg(test)]
mod tests {
    use super::NoRoute;
    use crate::layers::Layers;

    #[test]
    fn missing_layers_are_told_in_words() {
        let said = |missing: &[(u32, u32)]| {
            let missing = missing.iter().map(|&(start, end)| Layers::new(start, end)).collect();
            NoRoute { missing }.to_string()
        };
        assert_eq!(said(&[(0, 2)]), "no peer holds layers 0 to 1 at the moment");
        assert_eq!(said(&[(3, 4)]), "no peer holds layer 3 at the moment");
        assert_eq!(
            said(&[(0, 2), (5, 6), (9, 12)]),
            "no peer holds layers 0 to 1, 5 and 9 to 11 at the moment"
        );
    }
}
