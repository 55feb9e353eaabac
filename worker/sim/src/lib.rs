//! A whole swarm in virtual time: real gateways and stages of dunlin-protocol, a fake model, a network that misbehaves.
//!
//! Everything follows from a seed. The fake model's rows are hashes over everything before them, so that a row that is lost, doubled,
//! out of place or computed from another prefix changes the tokens.
//!
//! * [`model`] the fake model and engine
//! * [`world`] events, faults, and what must hold
//! * `impostors` frames of sessions of others
//! * [`replay`] another simulation: a training swarm on a recorded spot trace
//! * [`training`] the same for a swarm that trains

mod impostors;
pub mod latency;
pub mod model;
pub mod replay;
pub mod training;
pub mod world;

pub use world::{Outcome, Scenario, run};
