//! `drain`: moves a peer away with notice, or all of a node, and waits until their sessions have gone over.
//!
//! * [`holders`] what would be lost with a peer, and what became of its sessions · [`look`] what is known of both
//! * [`targets`] which pods · [`steps`] evicts and waits

pub mod holders;
mod look;
pub mod steps;
mod targets;

pub use steps::drain;
