//! A swarm that serves.
//!
//! * [`scenario`] what happens in a run, and what came of it
//! * [`model`] a fake model
//! * [`engine`] the engine of a peer: dunlin-schedule around that model
//! * [`world`] events: who does what when
//! * [`net`] streams that misbehave
//! * [`faults`] what goes wrong, [`impostors`] frames of sessions of others
//! * [`check`] what must hold in the end

mod check;
mod engine;
mod faults;
mod impostors;
pub mod model;
mod net;
pub mod scenario;
mod world;

pub use scenario::{Fault, Outcome, Scenario};
pub use world::run;
