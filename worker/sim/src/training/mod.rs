//! A whole training swarm in virtual time: the real conductor, peers and trainers of dunlin-protocol, fake tensors, a network that
//! misbehaves.
//!
//! Everything follows from a seed. The fake gradients are hashes over the step, the microbatch and the weights of all stages that it went
//! through, so that a tensor that is stale, lost, doubled or from another step changes every weight after it. What comes out is compared
//! with the same steps done one after the other.
//!
//! * [`numbers`] the fake tensors and the steps without a swarm
//! * [`scenario`] what is run, and what came of it
//! * `peer` the shell around a peer: engine, averages, fetching
//! * `trainer` the shell around a trainer
//! * `net` streams to the conductor, and the conductor's effects
//! * `faults` what goes wrong
//! * [`world`] the events, and what must hold

mod faults;
mod net;
pub mod numbers;
mod peer;
pub mod scenario;
mod trainer;
pub mod world;

pub use scenario::{Kinds, Loss, Outcome, Scenario, Script, Struck};
pub use world::run;
