//! What one asks a cluster about its swarms: `kubectl dunlin …`, and the same commands of whatever program embeds [`Command`].
//!
//! * [`args`] the command line · [`run`](mod@run) from there to an exit code · [`output`] where text goes, tables, colours
//! * [`cluster`] the API server · [`failure`] its errors as sentences · [`swarm`] swarms of both kinds, found by name
//! * [`pods`], [`placement`] what a pod and its node say · [`proxy`] pages of pods, through the API server · [`pages`] what is on them
//! * [`evidence`] all that is known about a swarm · [`doctor`] what is wrong with it
//! * [`status`] who holds which layers · [`plan`] what the planner would do · [`top`] figures of peers
//! * [`drain`] moves a peer away · [`bundle`] all of it in one file
//!
//! Decisions are pure functions of what was gathered before; the rest asks and prints.

pub mod args;
pub mod bundle;
pub mod cluster;
pub mod doctor;
pub mod drain;
pub mod evidence;
pub mod failure;
pub mod output;
pub mod pages;
pub mod placement;
pub mod plan;
pub mod pods;
pub mod proxy;
pub mod run;
pub mod status;
pub mod swarm;
pub mod top;

pub use args::Command;
pub use output::Output;
pub use run::run;
