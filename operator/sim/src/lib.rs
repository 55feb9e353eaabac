//! A swarm that serves and the operator that runs it, in virtual time: the operator's own controller, with the planner, on a simulated cluster; and
//! dunlin-sim's network, in which real gateways and stages serve on what was decided. Everything follows from a seed.
//!
//! * [`scenario`] what happens in a run, and what came of it · [`seeds`] seeds one after the other, and the story of one
//! * [`trace`] runs in which nodes come and go as in a recorded trace
//! * [`world`] events: who does what when · [`incidents`] what goes wrong or is changed, [`models`] of which it may be · [`flaw`] what no operator may have
//! * [`cluster`] what the API server has, of which [`objects`] are neither pods nor nodes · [`kubelets`] what happens there by itself · [`process`] the process of a stage
//! * [`operator`] the operator's process, which reads [`clock`] · [`pass`] what becomes of its calls · [`talks`] its conversations, and [`asking`] what is said in them
//! * [`order`] which of two effects must be the first, by what a pass has done [`so_far`]
//! * [`record`] what is known about a run · [`check`] what must hold

mod asking;
mod check;
mod clock;
mod cluster;
pub mod flaw;
mod incidents;
mod kubelets;
mod models;
mod objects;
mod operator;
mod order;
mod pass;
mod process;
mod record;
pub mod scenario;
pub mod seeds;
mod so_far;
mod talks;
pub mod trace;
mod world;

pub use flaw::Flaw;
pub use scenario::{Incident, Outcome, Scenario};
pub use world::run;
