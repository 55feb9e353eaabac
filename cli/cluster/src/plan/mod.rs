//! `plan NAME`: what the planner would do now with the swarm's manifest and pods, and why.
//!
//! * [`inputs`] what the planner is given, from what can be seen from outside · [`view`] what it says · [`show`](mod@show) the command

pub mod inputs;
pub mod show;
pub mod view;

pub use show::show;
