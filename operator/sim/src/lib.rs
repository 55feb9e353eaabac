//! A swarm that serves and the operator that runs it, in virtual time: the operator's own decisions, with the planner, on what a simulated cluster
//! shows; and dunlin-sim's network, in which real gateways and stages serve on what was decided. Everything follows from a seed.
//!
//! * [`scenario`] what happens in a run, and what came of it · [`seeds`] seeds one after the other, and the story of one
//! * [`trace`] runs in which nodes come and go as in a recorded trace
//! * [`world`] events: who does what when · [`incidents`] what goes wrong or is changed · [`flaw`] what no operator may have
//! * [`cluster`] what the API server has · [`kubelets`] what happens there by itself · [`process`] the process of a stage
//! * [`operator`] the operator's process · [`pass`] one pass of it · [`talks`] what it asks workers
//! * [`record`] what is known about a run · [`check`] what must hold

mod check;
mod cluster;
pub mod flaw;
mod incidents;
mod kubelets;
mod operator;
mod pass;
mod process;
mod record;
pub mod scenario;
pub mod seeds;
mod talks;
pub mod trace;
mod world;

pub use flaw::Flaw;
pub use scenario::{Incident, Outcome, Scenario};
pub use world::run;
