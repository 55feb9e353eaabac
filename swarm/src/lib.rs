//! The words that every part of a swarm uses: planner, protocol, engine, gateway and operator. Pure, and below all of them.
//!
//! * [`layers`] ranges of layers
//! * [`peer`] peers: names, states, what they report
//! * [`model`] which model, and the sizes of its layers
//! * [`numerics`] which bits a process computes
//! * [`run`] words and defaults of a training run
//! * [`topology`] who holds what, and ways through all layers
//! * [`timing`] times, and [`limits`] bounds, that two processes must agree on

pub mod layers;
pub mod limits;
pub mod model;
pub mod numerics;
pub mod peer;
pub mod run;
pub mod timing;
pub mod topology;

pub use layers::{Layers, layer_set, ranges};
pub use limits::{LAYERS_MAX, PEERS_MAX};
pub use model::{ModelId, ModelSizes, is_other_model};
pub use numerics::NumericsClass;
pub use peer::{Load, Loads, Paging, PeerName, PeerState};
pub use topology::{Epoch, NoRoute, RouteHop, Topology, TopologyError, TopologyPeer};

/// Index of a token in a sequence, and of the row made from it.
pub type Position = u32;
