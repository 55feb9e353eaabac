//! What workers say about themselves, and what they are told.
//!
//! * [`monitor`] the conversations of a leader, over [`client`] · [`talk`] what one consists of
//! * [`report`] what a worker says of itself, of which [`observation`] is a conductor's · [`pace`] how fast they are beside one another

mod client;
mod monitor;
pub mod observation;
mod pace;
pub mod report;
pub mod talk;

pub use client::GrpcConnector;
pub use monitor::Monitor;
pub use observation::{Observation, ObservedCheckpoint, RunPhase};
pub use report::{WorkerRecord, WorkerState};
pub use talk::{Connect, Conversations, Target, WorkerOrder};
