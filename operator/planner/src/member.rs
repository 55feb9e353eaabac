//! A peer as a layout sees it.

use dunlin_swarm::{Layers, PeerName, PeerState};

/// A peer that can be given layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// One life of a peer.
    pub name: PeerName,
    /// `host:port` of its gRPC server.
    pub addr: String,
    /// The pool that its pod is of.
    pub pool: String,
    /// The node that its pod runs on: its failure domain.
    pub node: String,
    /// Zone of the node, empty when unknown.
    pub zone: String,
    /// Its pool is preemptible.
    pub spot: bool,
    /// What it can do.
    pub state: PeerState,
    /// Room for weights and KV cache, in bytes.
    pub room_bytes: u64,
    /// How fast it computes beside the others, 1 being usual; 0 while not known. See [`crate::speed`].
    pub speed: f64,
    /// Layers it can execute now.
    pub held: Vec<Layers>,
}
