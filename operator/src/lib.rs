//! `dunlin-operator`: observe -> plan -> apply.
//!
//! * [`observe`] watches fill caches; one immutable view per swarm · [`peers`] what workers say over gRPC
//! * [`key`] which swarm · [`pools`] those of its manifest, in numbers · [`targets`] whom to ask · [`labels`] how all of it is called
//! * [`swarm`] the controller of both kinds of swarm: the order of its steps · [`inference`], [`training`] what each kind decides and writes
//! * [`roster`], [`turnover`] which pods stay, go and are missing, [`roll`] those from before a change among them, [`deletion`] one to delete
//! * [`api`] what the API server is asked, as values, and the client that performs it
//! * [`trust`] certificates · [`making`] new pods
//! * [`apply`] manifests and server-side apply, [`spot`] how platforms mark nodes, [`quantity`] amounts of Kubernetes · [`status`] conditions, Events
//! * [`lease`] who may write · [`lead`] one term of it · [`error`] why a pass failed, and when to try again
//! * [`config`] the command line · [`health`] probes, [`metrics`] counters, [`telemetry`] logs and traces

pub mod api;
pub mod apply;
pub mod config;
pub mod deletion;
pub mod error;
pub mod health;
pub mod inference;
pub mod key;
pub mod labels;
pub mod lead;
pub mod lease;
pub mod making;
pub mod metrics;
pub mod observe;
pub mod peers;
pub mod pools;
pub mod quantity;
pub mod roll;
pub mod roster;
pub mod spot;
pub mod status;
pub mod swarm;
pub mod targets;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod training;
pub mod trust;
pub mod turnover;
