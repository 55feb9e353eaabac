//! What executes layers: one thread that owns weights and KV cache.
//!
//! * [`memory`] what a stage needs memory for, and how it is divided (pure)
//! * [`executor`] the thread: takes commands, runs batches, reports results
//! * [`pace`] how long batches take
//!
//! Which rows run next and who has how many pages is dunlin-schedule's. Batches differ from stage to stage and from run to run; the bits of
//! a row do not (kernels/ARITHMETIC.md), so nobody has to agree on them.

pub mod executor;
pub mod memory;
pub mod pace;

pub use executor::{Command, Engine, EngineConfig, EngineStatus};
