//! What executes layers: one thread that owns weights and KV cache.
//!
//! * [`memory`] what a stage needs memory for, and how it is divided (pure)
//! * [`executor`] the thread: takes commands, runs batches, reports results
//! * `runner` from the inputs of a batch to its outputs
//! * [`span`] what computes: weights and the memory of KV pages, on the processor or on another device
//! * [`status`] what it tells of itself
//! * [`pace`] how long batches take
//!
//! Which rows run next, who has how many pages and what becomes of a batch is dunlin-schedule's. Batches differ from stage to stage and from run to run; the bits of
//! a row do not (kernels/ARITHMETIC.md), so nobody has to agree on them.

pub mod executor;
pub mod memory;
pub mod pace;
mod runner;
pub mod span;
pub mod status;

pub use executor::{Command, Engine, EngineConfig};
pub use span::cpu::CpuSpan;
pub use status::EngineStatus;
