//! The roles of a swarm's processes, each with the sockets, files and threads around the machines that decide: what `dunlin-worker` runs.
//!
//! * [`stage`] executes layers
//! * [`gateway`] speaks OpenAI's HTTP API and owns sessions
//! * [`training`] conductor, peers and trainers of a training swarm
//!
//! The tool `dunlin` starts these processes on one machine. It shares with them how a process logs ([`telemetry`]), ends ([`exit`]) and finds
//! its memory ([`memory`]) and its model ([`model`]); [`cli`] is the command line, of which it has some options, too.

mod certificates;
pub mod cli;
pub mod exit;
pub mod gateway;
mod health;
pub mod memory;
pub mod model;
pub mod stage;
pub mod telemetry;
pub mod training;
