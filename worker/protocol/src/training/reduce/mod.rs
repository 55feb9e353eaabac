//! The average of a shard among its members: each member's side as a machine that is given events and says what is to be done.
//!
//! Vectors are not in it. It handles members by their index in the group, ranges of the shard's values, and [`PartRef`]s: names of values that
//! whoever performs its effects has. So sockets and tensors, or virtual time and hashes, can be around the same decisions.
//!
//! * [`event`] what happens to an average, and what is to be done
//! * [`butterfly`] part `j` of everybody's sums goes to member `j`, which adds them and gives the result to all

pub mod butterfly;
pub mod event;
#[cfg(test)]
mod tests;

pub use butterfly::Butterfly;
pub use event::{Half, PartRef, ReduceConfig, ReduceEffect, ReduceEvent};
