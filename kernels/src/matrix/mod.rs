//! Weights of a linear map, packed once.
//!
//! One layout serves every instruction set: panels of 16 output columns, the input dimension inside. `n` is padded to whole panels with zeros.
//!
//! | kind | one panel |
//! |---|---|
//! | dense f32, f16, bf16 | `[k][16]` |
//! | Q8 | per block of 32 inputs: `d [16] f16`, `q [8][16][4] i8` |
//! | Q4 | per block of 32 inputs: `d [16] f16`, `m [16] f16`, `q [4][16][4]` with inputs `4g+j` and `16+4g+j` in one byte |
//! | Q4_K | per 256 inputs: `d, dmin [16] f16`, `scale, min [8][16] u8`, `q [8]` as in Q4 |
//! | Q6_K | per 256 inputs: `d [16] f16`, `scale [16][16] i8` of 16 inputs each, and 8 times the lower 4 bits as in Q4 and the upper 2 bits `[2][16][4]`, with those of inputs `8v+j`, `16+8v+j`, `8v+4+j` and `16+8v+4+j` in one byte |
//!
//! * [`format`](mod@format) how values are stored in a file · [`packing`] how they are packed, [`pack`] from one to the other
//! * [`packed`] the matrix · [`packer`] from a file, some rows at a time · [`bf16`], [`ggml`] what is special about some formats

mod bf16;
mod format;
mod ggml;
mod pack;
mod packed;
mod packer;
mod packing;

pub use format::{Format, PackError};
pub(crate) use ggml::{as_f16, q4_k_scale, q6_k_value};
pub use packed::Matrix;
pub use packer::Packer;
pub(crate) use packing::{
    BLOCK, PANEL, Packing, Q4_BLOCK_BYTES, Q4K_BLOCK_BYTES, Q6K_BLOCK_BYTES, Q6K_PART_BYTES, Q8_BLOCK_BYTES,
};
