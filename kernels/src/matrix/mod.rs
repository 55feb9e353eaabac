//! Weights of a linear map, packed once.
//!
//! One layout serves every instruction set: panels of 16 output columns, the input dimension inside. `n` is padded to whole panels with zeros.
//!
//! | kind | one panel |
//! |---|---|
//! | dense f32, f16, bf16 | `[k][16]` |
//! | Q8 | per block of 32 inputs: `d [16] f16`, `q [8][16][4] i8` |
//! | Q4, Q5 | per block of 32 inputs: `d [16] f16`, `m [16] f16`, `q` of 4 or 5 bits |
//! | IQ4 | per block of 32 inputs: `d [16] f16`, `q` of 4 bits |
//! | Q4_K, Q5_K | per 256 inputs: `d, dmin [16] f16`, `scale, min [8][16] u8`, 8 times `q` of 4 or 5 bits |
//! | Q3_K, Q6_K | per 256 inputs: `d [16] f16`, `scale [16][16] i8` of 16 inputs each, 8 times `q` of 3 or 6 bits |
//! | Q2_K | per 256 inputs: `d, dmin [16] f16`, `[16][16] u8` of 16 inputs each with a scale in the lower four bits and a minimum above it, 8 times `q` of 2 bits |
//! | IQ4_XS | per 256 inputs: `d [16] f16`, `scale [8][16] i8`, 8 times `q` of 4 bits |
//!
//! Where the bits of `q` lie is in [`bits`].
//!
//! * [`format`](mod@format) how values are stored in a file · [`ggml`] the numbers of a block in it · [`packing`] how they are packed
//! * [`pack`], [`unpack`] from one to the other and back · [`bits`] numbers of a few bits in a panel
//! * [`packed`] the matrix · [`packer`] from a file, some rows at a time · [`bf16`] what is special about that

mod bf16;
mod bits;
mod format;
mod ggml;
mod pack;
mod packed;
mod packer;
mod packing;
mod unpack;

pub use format::{Format, PackError};
pub(crate) use ggml::{
    IQ4_VALUES, iq4_xs_scale, nibble, q2_k_value, q3_k_scale, q3_k_value, q4_k_scale, q4_k_value, q5_k_value,
    q5_value, q6_k_value,
};
pub use packed::Matrix;
pub use packer::Packer;
pub use packing::Packing;
pub(crate) use packing::{
    BLOCK, IQ4_BLOCK_BYTES, IQ4_XS_BLOCK_BYTES, PANEL, Q2_K_BLOCK_BYTES, Q8_BLOCK_BYTES, minima_block_bytes,
    minimum_block_bytes, plane_bytes, sixteens_block_bytes,
};
