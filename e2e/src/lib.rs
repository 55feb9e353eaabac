//! End-to-end tests on a real local Kubernetes: the cluster fixture, a view of the swarm under test, a streaming
//! OpenAI client that knows when each token arrived, and the scenarios themselves.
//!
//! * [`cluster`] drives `e2e/cluster/cluster` (nodes that can be killed, silenced, started)
//! * [`kstatus`] asks what Helm and Flux make of an object
//! * [`deploy`] brings images, chart and examples to it · [`report`] figures for people and for the record
//! * [`local`] runs a swarm without Kubernetes, [`losses`] ends and stops its processes
//! * [`chaos`] keeps streams going through losses, [`overload`] asks more than there is room for
//! * [`swarm`] reads what the operator made of a manifest: peers, gateways, conditions
//! * [`gpu`] gives nodes GPUs, which are emulated
//! * [`store`] is a server that takes checkpoints
//! * [`training`] the same of a training run
//! * [`chat`] streams completions and keeps token ids with their arrival times
//! * [`wait`] is the only place that waits, always with a limit and a reason
//! * [`scenarios`] are the promises of the product, one function each
#![allow(clippy::print_stdout, reason = "test drivers and the quick start talk to a terminal")]

pub mod chaos;
pub mod chat;
pub mod cluster;
pub mod deploy;
pub mod gpu;
pub mod kstatus;
pub mod local;
pub mod losses;
pub mod overload;
pub mod report;
pub mod scenarios;
pub mod store;
pub mod swarm;
pub mod training;
pub mod wait;
