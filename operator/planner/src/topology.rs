//! Who holds what: the vocabulary shared by planner, protocol, gateway and operator.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Index of a token in a sequence, and of the row made from it.
pub type Position = u32;
/// Number of a plan; it grows, and nobody obeys an older one.
pub type Epoch = u64;

/// Most layers a model may have; bounds what is read from a topology.
pub const LAYERS_MAX: u32 = 4096;
/// Most peers of one swarm.
pub const PEERS_MAX: usize = 4096;

/// A peer's name is one life of it: a pod name, never used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerName(pub String);

impl PeerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PeerName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl From<String> for PeerName {
    fn from(name: String) -> Self {
        Self(name)
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A half-open range of layers, `start..end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Layers {
    /// First layer.
    pub start: u32,
    /// One past the last layer.
    pub end: u32,
}

impl Layers {
    /// `start..end`; an `end` before `start` gives an empty range at `start`.
    #[must_use]
    pub fn new(start: u32, end: u32) -> Self {
        Self { start, end: end.max(start) }
    }

    /// Number of layers.
    #[must_use]
    pub fn len(self) -> u32 {
        self.end - self.start
    }

    /// No layers at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Is `layer` inside?
    #[must_use]
    pub fn contains(self, layer: u32) -> bool {
        self.start <= layer && layer < self.end
    }

    /// Is all of `other` inside?
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// Do the two share a layer?
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// The layers of both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Every layer index.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.start..self.end
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{},{})", self.start, self.end)
    }
}

/// `layers 0 to 1, 7 and 9 to 11`, the last ones included.
fn in_words(layers: &[Layers]) -> String {
    let range = |l: &Layers| match l.end.saturating_sub(1) {
        last if last > l.start => format!("{} to {last}", l.start),
        _ => l.start.to_string(),
    };
    let noun = if let [Layers { start, end }] = layers
        && end - start < 2
    {
        "layer"
    } else {
        "layers"
    };
    match layers {
        [] => "some layers".to_owned(),
        [one] => format!("{noun} {}", range(one)),
        [all @ .., last] => {
            let all: Vec<String> = all.iter().map(range).collect();
            format!("{noun} {} and {}", all.join(", "), range(last))
        }
    }
}

/// Joins sorted or unsorted layer indices into maximal ranges.
#[must_use]
pub fn ranges(layers: &BTreeSet<u32>) -> Vec<Layers> {
    let mut out: Vec<Layers> = Vec::new();
    for &layer in layers {
        match out.last_mut() {
            Some(last) if last.end == layer => last.end = layer + 1,
            _ => out.push(Layers::new(layer, layer + 1)),
        }
    }
    out
}

/// Every layer index of a list of ranges.
#[must_use]
pub fn layer_set(ranges: &[Layers]) -> BTreeSet<u32> {
    ranges.iter().flat_map(|r| r.iter()).collect()
}

/// Which model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// The name clients ask for.
    pub name: String,
    /// A digest of its source: peers of different digests never work together.
    pub digest: String,
}

/// What a peer can do at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PeerState {
    /// Reads its layers.
    #[default]
    Loading,
    /// Executes them.
    Ready,
    /// Executes them still and is about to go.
    Draining,
}

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
    /// Which model.
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
        /// The bound.
        limit: usize,
    },
    /// A range of layers leaves the model.
    #[error("peer {peer} has layers {layers} of a model with {total} layers")]
    Layers {
        /// Which peer.
        peer: PeerName,
        /// The range.
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

/// What a peer reports about itself five times a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Rows waiting for the engine.
    pub queue_rows: u32,
    /// KV pages not in use.
    pub free_pages: u32,
    /// Of those, pages that sessions which are here already are not about to take.
    pub spare_pages: u32,
    /// KV pages in all.
    pub total_pages: u32,
    /// Rows put through a layer since the engine started: a count that stands still only when the engine does.
    pub layer_rows: u64,
    /// Version of the arithmetic it computes with: peers of two versions are never on one route.
    pub arithmetic: u32,
    /// Measured rows per second through one layer, one row at a time.
    pub rows_per_s_per_layer: f64,
    /// Layers it can execute now.
    pub held: Vec<Layers>,
    /// It is about to go.
    pub draining: bool,
}

/// One step of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteHop {
    /// Who.
    pub peer: PeerName,
    /// Where.
    pub addr: String,
    /// Which layers.
    pub layers: Layers,
}

/// No peers cover these layers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no peer holds {} at the moment", in_words(.missing))]
pub struct NoRoute {
    /// What nobody holds.
    pub missing: Vec<Layers>,
}

/// Loads by peer.
pub type Loads = BTreeMap<PeerName, Load>;

#[cfg(test)]
mod tests {
    use super::{Layers, NoRoute};

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
