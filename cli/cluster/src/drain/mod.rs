//! `drain`: moves a peer away with notice, and waits until its sessions have gone over.
//!
//! * [`holders`] what would be lost with it, and what became of its sessions · [`steps`] asks, evicts, waits

pub mod holders;
pub mod steps;

pub use steps::drain;
