//! The one controller of both kinds of swarm: observe, decide, apply, report. Every step may be cut off at any moment and repeated.
//!
//! * [`contract`] what a kind of swarm is: [`crate::inference`] and [`crate::training`] implement it
//! * [`controller`] one reconciliation and when to try again · [`pass`] its steps · [`write`] the objects, in the order in which they are needed
//! * [`evidence`] what a decision is made from · [`workers`] which pods of one role stay, go and are missing
//! * [`memory`] what a leader keeps between passes, [`resources`] the part of it that no decision sees · [`context`] what all swarms share

pub mod context;
pub mod contract;
mod controller;
pub mod evidence;
pub mod memory;
mod pass;
pub mod resources;
pub mod workers;
mod write;

pub use contract::{Decision, Pass, Policy, Reporter, Swarm, SwarmKind, SwarmStatus, Writer};
pub use controller::Controller;
pub use evidence::Evidence;
#[cfg(test)]
pub use pass::first_status;
pub use resources::Resources;
pub use workers::{Rules, Workers};
