//! A whole swarm in virtual time: real gateways and stages of dunlin-protocol, a fake model, a network that misbehaves.
//!
//! Everything follows from a seed. The fake model's rows are hashes over everything before them, so that a row that is lost, doubled,
//! out of place or computed from another prefix changes the tokens.
//!
//! * [`serving`] gateways and stages of dunlin-protocol, with the engine's own scheduler and pages and a fake model
//! * [`training`] the same for a swarm that trains: conductor, peers and trainers of dunlin-protocol
//! * [`replay`] a training swarm on a recorded spot trace, with a model of its time instead of the protocol
//! * [`calendar`] virtual time, and what is to happen when
//! * [`seeds`] seeds of both one after the other, and the story of one
//! * [`latency`] what round trips cost training

pub mod calendar;
pub mod latency;
pub mod replay;
pub mod seeds;
pub mod serving;
pub mod training;

pub use serving::model;
pub use serving::{Outcome, Scenario, run};
