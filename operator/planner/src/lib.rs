//! Decisions about a swarm, as pure functions that give reasons.
//!
//! * [`topology`] who holds which layers
//! * [`degrade`] what the swarm is worth after losses: the same for every caller and every order
//! * [`partition`] layers over unequal peers
//! * [`route`] the cheapest way through all layers

pub mod degrade;
pub mod partition;
pub mod route;
pub mod topology;

pub use degrade::degrade;
pub use partition::{Capacity, partition};
pub use route::route;
pub use topology::{
    Epoch, Layers, Load, Loads, ModelId, NoRoute, PeerName, PeerState, Position, RouteHop, Topology,
    TopologyError, TopologyPeer,
};
