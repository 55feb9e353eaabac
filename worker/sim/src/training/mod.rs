//! A whole training swarm in virtual time: the real conductor, peers and trainers of dunlin-protocol, fake tensors, a network that
//! misbehaves.
//!
//! Everything follows from a seed. The fake gradients are hashes over the step, the microbatch and the weights of all stages that it went
//! through, so that a tensor that is stale, lost, doubled or from another step changes every weight after it. What comes out is compared
//! with the same steps done one after the other.
//!
//! * [`numbers`] the fake tensors and the steps without a swarm
//! * [`scenario`] what is run, and what came of it
//! * `peer_shell` what a peer has; `peer` how it begins, and what its driver wants done; `lives` how it ends
//! * `engine` its jobs one after the other: `calls` of trainers, `update`, `saving`
//! * `pulls` what peers ask of each other (`pulling`: pulls under way): `average` (`averaging`: what a member has of one), `fetch` (`got`: what has come)
//! * `trainer_shell` the shell around a trainer, `trainer` what it does
//! * `net` streams to the conductor, and the conductor's effects
//! * `faults` what goes wrong, `flaw` in a peer that goes on
//! * [`order`] in which peers do what they decide, or not
//! * `events` what happens, [`world`] in order, and what must hold

mod average;
mod averaging;
mod calls;
mod engine;
mod events;
mod faults;
mod fetch;
mod flaw;
mod got;
mod lives;
mod net;
pub mod numbers;
pub mod order;
mod peer;
mod peer_shell;
mod pulling;
mod pulls;
mod saving;
pub mod scenario;
mod trainer;
mod trainer_shell;
mod update;
pub mod world;

pub use order::{Order, Pair};
pub use scenario::{Kinds, Loss, Outcome, Scenario, Script, Struck};
pub use world::run;
