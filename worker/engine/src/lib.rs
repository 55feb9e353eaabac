//! What executes layers: one thread that owns weights and KV cache.
//!
//! * [`memory`] what a stage needs memory for, and how it is divided (pure)
//! * [`pages`] who has how many pages of KV cache (pure)
//! * [`sched`] which rows run next (pure)
//! * [`executor`] the thread: takes commands, runs batches, reports results
//!
//! Batches differ from stage to stage and from run to run; the bits of a row do not (kernels/ARITHMETIC.md), so nobody has to agree on them.

pub mod executor;
pub mod memory;
pub mod pages;
pub mod sched;

pub use executor::{Command, Engine, EngineConfig, EngineStatus};
