//! The kernels of `dunlin-kernels` on an NVIDIA GPU, with the same bits.
//!
//! One binary runs on machines with and without a GPU: the driver is looked for when [`Gpu::open`] is called, and nothing of CUDA is linked. What a
//! row comes to depends on that row and the weights alone, as on the CPU, and is the same bit for bit (`kernels/ARITHMETIC.md`): an answer that
//! begins on a GPU goes on elsewhere. `tests/bits.rs` compares every kernel with the CPU's function of the same name, on a driver that emulates
//! the device.
//!
//! Operations are put on a queue of the device, in the order of the calls, and return before they are done: [`Gpu::read`] and
//! [`Gpu::synchronize`] wait, and say what failed until then.
//!
//! * [`gpu`] a device, and what is known of it · [`image`] which machine code it gets · [`error`] what can fail
//! * [`memory`] buffers on the device, and copies · [`stream`] copies beside the computation
//! * [`pages`] memory of KV pages
//! * [`matrix`] weights · [`linear`] products with them · [`attention`] over KV pages · [`rows`] the rest of a decoder block
//! * `launch` how a kernel is started · `names` what they are called
//!
//! The kernels themselves are in `device/`.
#![allow(unsafe_code, reason = "calls the driver; each block states why it is sound")]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod attention;
pub mod error;
pub mod gpu;
pub mod image;
mod launch;
pub mod linear;
pub mod matrix;
pub mod memory;
mod names;
pub mod pages;
pub mod rows;
pub mod stream;

pub use error::{GpuError, OpenError};
pub use gpu::{Facts, Gpu};
pub use linear::Scratch;
pub use matrix::DeviceMatrix;
pub use memory::{DeviceBuffer, Slice, SliceMut};
pub use stream::{PinnedBuffer, StreamEvent};
