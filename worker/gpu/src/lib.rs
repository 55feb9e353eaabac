//! Layers on an NVIDIA GPU, behind the seam of the engine ([`dunlin_engine::span`]): the bits are those of the processor.
//!
//! * [`span`] weights and pages, and what the engine asks for
//! * `weights` a layer, a head and an adapter on the device
//! * `batch` what the kernels must know of the rows of a batch, made on the host
//! * `pages` the KV pages of segments
//! * `block` the kernels of a decoder block in their order

#![allow(unsafe_code, reason = "tells kernels where pages are; each block states why it is sound")]
#![deny(unsafe_op_in_unsafe_fn)]

mod batch;
mod block;
mod pages;
pub mod span;
mod weights;

pub use span::GpuSpan;
