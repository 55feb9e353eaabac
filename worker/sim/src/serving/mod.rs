//! A swarm that serves.
//!
//! * [`scenario`] what happens in a run, and what came of it
//! * [`model`] a fake model
//! * [`engine`] the engine of a peer: the batches, lines and pages of dunlin-schedule around that model
//! * [`fairness`] whether each batch was fair, and within its budget
//! * [`flaw`] mistakes that are planted to see that the checks find them
//! * [`world`] events: who does what when
//! * [`net`] streams that misbehave
//! * [`faults`] what goes wrong, [`impostors`] frames of sessions of others
//! * [`check`] what must hold in the end
//! * [`hosted`] the same swarm with somebody outside who says which peers and gateways there are

mod check;
mod engine;
mod fairness;
mod faults;
pub mod flaw;
pub mod hosted;
mod impostors;
pub mod model;
mod net;
pub mod scenario;
mod world;

pub use flaw::Flaw;
pub use scenario::{BrokenOff, Fault, Outcome, Scenario};
pub use world::run;
