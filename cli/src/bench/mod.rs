//! How fast parts of a swarm are on this machine.

pub mod average;
