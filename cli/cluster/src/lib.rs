//! What the tool asks a cluster about its swarms, and does there: `dunlin doctor`, `status`, `drain`, `top`, `support-bundle`, and `plan` of a
//! running swarm.
//!
//! * [`args`] the command line · [`run`](mod@run) from there to whether all is well
//! * [`cluster`] the API server · [`failure`] its errors as sentences · [`swarm`] swarms of both kinds, found by name
//! * [`pods`], [`placement`] what a pod and its node say · [`proxy`] pages of pods, through the API server · [`pages`] what is on them
//! * [`layers`] layers in words and as a picture · [`evidence`] all that is known about a swarm · [`doctor`] what is wrong with it
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
pub mod layers;
pub mod pages;
pub mod placement;
pub mod plan;
pub mod pods;
pub mod proxy;
pub mod run;
pub mod status;
pub mod swarm;
pub mod top;

pub use args::{ClusterArgs, ClusterCommand};
pub use failure::is_for_user;
pub use run::run;
