//! Which rows an engine computes next, and whose its KV pages are: without weights, threads or clocks, so that the simulation runs the same
//! code.
//!
//! * [`line`] jobs that wait, and batches made of them
//! * [`pages`] how many pages of KV cache there are and who has them

pub mod line;
pub mod pages;

pub use line::{Budget, Part, Scheduler};
pub use pages::{PageTable, SegmentKey};
