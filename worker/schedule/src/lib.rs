//! Which rows an engine computes next, whose its KV pages are, and what becomes of both: without weights, threads or clocks, so that the simulation
//! runs the same code.
//!
//! * [`batcher`] jobs come in, batches run, results go out, in that order
//! * [`line`] jobs that wait, and batches made of them
//! * [`pages`] how many pages of KV cache there are and who has them

pub mod batcher;
pub mod line;
pub mod pages;

pub use batcher::{Batcher, Runner};
pub use line::{Budget, Part, Scheduler, Waiting};
pub use pages::{PageTable, SegmentKey};
