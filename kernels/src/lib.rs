//! Reproducible CPU kernels: the bits of an output row depend on that row and the weights alone.
//!
//! Not on the number of rows computed with it, its place among them, the number of threads, or the vector width. The arithmetic is fixed
//! in ARITHMETIC.md. Each operation has a folder: `mod.rs` with what callers use, and `reference.rs`, which says the same as ARITHMETIC.md in plain
//! loops. `tests/reference.rs` compares the bits of both, for every instruction set and number of threads.
//!
//! * [`matrix`] weights, packed once so that one layout serves scalar, AVX2 and AVX-512
//! * [`linear`] `y = x W^T`, the bulk of the work
//! * [`attention`] over KV pages of 16 positions
//! * [`norm`], [`rope`], [`activation`], [`softmax`] the rest of a decoder block
//! * [`causal`] attention of whole sequences, forward and backward; [`weight_gradient`], [`embedding`], [`loss`] the rest of training
//! * [`math`] exp, sin and cos of our own: libm differs between systems
//! * [`gradient_sum`], [`bit_sum`] sums that any order of additions gives, and what tells that memory has changed
//! * `lanes` registers, as algorithms written by hand see them
//! * [`pool`] threads that split columns, rows or heads, never sums, and lend operations their buffers · [`buffer`] memory aligned to a cache line · [`isa`] which instructions there are
#![allow(unsafe_code, reason = "vector intrinsics; each block states why it is sound")]
#![deny(unsafe_op_in_unsafe_fn)]
#![allow(clippy::needless_range_loop, reason = "kernels index several arrays by one row or lane")]

pub mod activation;
pub mod attention;
pub mod bit_sum;
pub mod buffer;
pub mod causal;
pub mod embedding;
pub mod gradient_sum;
pub mod isa;
mod lanes;
mod lender;
pub mod linear;
pub mod loss;
pub mod math;
pub mod matrix;
pub mod norm;
pub mod pool;
pub mod rope;
pub mod softmax;
mod tile;
pub mod weight_gradient;

pub use activation::{add, add_bias, geglu, swiglu, swiglu_backward};
pub use attention::{AttentionRow, Heads, PAGE, SEGMENT, attention, page_len, write_kv};
pub use causal::{CausalForward, CausalShape, causal_attention, causal_attention_backward};
pub use embedding::embedding_gradient;
pub use gradient_sum::{Changed, GradientSums, OutOfRange};
pub use isa::Isa;
pub use linear::{linear, linear_add, linear_many, linear_transposed};
pub use loss::{IGNORED, cross_entropy};
pub use matrix::{Format, Matrix, PackError, Packer, Packing};
pub use norm::{rms_norm, rms_norm_backward};
pub use pool::Pool;
pub use rope::{RopeLayout, RopeScaling, RopeTable, Stretch, rope, rope_rows};
pub use softmax::all_finite;
pub use weight_gradient::{Begin, bias_gradient, weight_gradient};

/// The first version of ARITHMETIC.md whose results without quantised weights are those of the present one, bit for bit: with a version that
/// changes the hashes of `tests/training_bits.rs`, it is that version.
pub const UNQUANTISED_SINCE: u32 = 4;

/// Version of ARITHMETIC.md: peers of different versions may compute different bits.
pub const ARITHMETIC_VERSION: u32 = 4;
