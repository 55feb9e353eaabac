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

mod bf16;
mod ggml;
mod pack;
mod packer;

pub use packer::Packer;

use thiserror::Error;

use crate::buffer::Buffer;
use crate::pool::Pool;

/// Columns of a panel.
pub(crate) const PANEL: usize = 16;
/// Inputs of a quantisation block.
pub(crate) const BLOCK: usize = 32;
/// Bytes of one packed block of 32 inputs and 16 columns.
pub(crate) const Q8_BLOCK_BYTES: usize = 32 + 512;
/// As above.
pub(crate) const Q4_BLOCK_BYTES: usize = 64 + 256;
/// Bytes of one packed super-block of 256 inputs and 16 columns.
pub(crate) const Q4K_BLOCK_BYTES: usize = 64 + 256 + 8 * 256;

/// How weights are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(non_camel_case_types, reason = "the names everybody knows them by")]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper halves of 32-bit floats.
    BF16,
    /// 32 int8 with one f16 scale.
    Q8_0,
    /// 32 4-bit values around 8 with one f16 scale.
    Q4_0,
    /// 32 4-bit values with f16 scale and minimum.
    Q4_1,
    /// 256 4-bit values, 8 scales and minima of 6 bits.
    Q4_K,
    /// 256 6-bit values, 16 scales of 8 bits.
    Q6_K,
}

impl Format {
    /// (values, bytes) of one block in a file.
    #[must_use]
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q4_K => (256, 144),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bytes of `values` values in a file, when they fill whole blocks.
    #[must_use]
    pub fn bytes(self, values: usize) -> Option<usize> {
        let (per_block, bytes) = self.block();
        values.is_multiple_of(per_block).then(|| (values / per_block).checked_mul(bytes))?
    }

    /// Bytes of a row of `k` values in a file.
    ///
    /// # Errors
    /// When it does not fill whole blocks.
    pub fn row_bytes(self, k: usize) -> Result<usize, PackError> {
        self.bytes(k).ok_or(PackError::Block { format: self, k, block: self.block().0 })
    }
}

/// Why weights cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PackError {
    /// A row does not fill whole blocks.
    #[error("a row of {k} values does not fill whole blocks of {format:?} ({block} values)")]
    Block {
        /// Format of the weights, which says how many values a block has.
        format: Format,
        /// Values in a row.
        k: usize,
        /// Values in a block.
        block: usize,
    },
    /// Too few or too many bytes.
    #[error("{n} x {k} values of {format:?} are {expected} bytes, not {found}")]
    Length {
        /// Format of the weights, which says how many values a block has.
        format: Format,
        /// Rows.
        n: usize,
        /// Values in a row.
        k: usize,
        /// What they should be.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A value is not a number or infinite.
    #[error("it has values that are not finite; use an intact copy of the model")]
    NotFinite,
}

/// How the values are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
    Q4K,
}

impl Packing {
    fn of(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::F16 | Format::Q6_K => Self::F16,
            // Unless the whole matrix turns out to fit f16.
            Format::BF16 => Self::Bf16,
            Format::Q8_0 => Self::Q8,
            Format::Q4_0 | Format::Q4_1 => Self::Q4,
            Format::Q4_K => Self::Q4K,
        }
    }

    /// Is a product with it a sum of products of floats?
    pub(crate) fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// (values, bytes of them in a panel of 16 columns).
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4 * PANEL),
            Self::F16 | Self::Bf16 => (1, 2 * PANEL),
            Self::Q8 => (BLOCK, Q8_BLOCK_BYTES),
            Self::Q4 => (BLOCK, Q4_BLOCK_BYTES),
            Self::Q4K => (256, Q4K_BLOCK_BYTES),
        }
    }
}

/// A packed linear map of `k` inputs to `n` outputs.
pub struct Matrix {
    pub(crate) packing: Packing,
    pub(crate) data: Buffer<u8>,
    format: Format,
    n: usize,
    k: usize,
}

impl Matrix {
    /// From `n` rows of `k` values.
    ///
    /// # Panics
    /// When `w` has another length.
    #[must_use]
    pub fn from_f32(n: usize, k: usize, w: &[f32]) -> Self {
        assert_eq!(w.len(), n * k, "{n} x {k} values");
        Self { packing: Packing::F32, data: pack::f32(n, k, w), format: Format::F32, n, k }
    }

    /// `n` rows of `k` zeroes, to be set later.
    #[must_use]
    pub fn zeroed_f32(n: usize, k: usize) -> Self {
        let data = Buffer::zeroed(n.div_ceil(PANEL) * PANEL * k * size_of::<f32>());
        Self { packing: Packing::F32, data, format: Format::F32, n, k }
    }

    /// Makes it one of f32 with `n` rows of `k` values, which may be anything until they are set; memory is kept when it is enough.
    pub(crate) fn resize_f32(&mut self, n: usize, k: usize) {
        let bytes = n.div_ceil(PANEL) * PANEL * k * size_of::<f32>();
        if self.packing != Packing::F32 || self.data.len() != bytes {
            *self = Self::zeroed_f32(n, k);
        }
        (self.n, self.k) = (n, k);
    }

    /// Replaces the values by `n` rows of `k`, in place.
    ///
    /// # Panics
    /// When `w` has another length or the matrix is not of f32.
    pub fn set(&mut self, pool: &Pool, w: &[f32]) {
        assert!(w.len() == self.n * self.k && self.packing == Packing::F32, "{} x {} values", self.n, self.k);
        let (n, k) = (self.n, self.k);
        let panel_len = k * PANEL;
        pool.split_rows([(self.f32s(), panel_len)], &|range, [panels]| {
            for (p, panel) in range.zip(panels.chunks_exact_mut(panel_len)) {
                let rows = &w[p * panel_len..(p * panel_len + panel_len).min(n * k)];
                pack::panel_f32(pool.isa(), rows, k, panel);
            }
        });
    }

    /// Replaces the values by the transpose of `k` rows of `n`, in place.
    ///
    /// # Panics
    /// When `w` has another length or the matrix is not of f32.
    pub fn set_transposed(&mut self, pool: &Pool, w: &[f32]) {
        assert!(w.len() == self.n * self.k && self.packing == Packing::F32, "{} x {} values", self.n, self.k);
        let (n, panel_len) = (self.n, self.k * PANEL);
        pool.split_rows([(self.f32s(), panel_len)], &|range, [panels]| {
            for (p, panel) in range.zip(panels.chunks_exact_mut(panel_len)) {
                let (column, count) = (p * PANEL, PANEL.min(n - p * PANEL));
                for (row, out) in w.chunks_exact(n).zip(panel.as_chunks_mut::<PANEL>().0) {
                    match row[column..].first_chunk::<PANEL>() {
                        Some(whole) => *out = *whole,
                        None => out[..count].copy_from_slice(&row[column..]),
                    }
                }
            }
        });
    }

    /// The values of a matrix of f32: `[n / 16][k][16]`.
    pub(crate) fn values(&self) -> &[f32] {
        assert!(self.packing == Packing::F32, "values of {:?}", self.format);
        // SAFETY: the buffer is aligned to 64 bytes, its length is a multiple of 4, and any bytes are floats.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.data.len() / 4) }
    }

    fn f32s(&mut self) -> &mut [f32] {
        // SAFETY: the buffer is aligned to 64 bytes, its length is a multiple of 4, and any bytes are floats.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), self.data.len() / 4) }
    }

    /// Memory that a matrix of `n` rows of `k` values of a file takes when it is packed.
    ///
    /// # Errors
    /// When a row does not fill whole blocks.
    pub fn packed_bytes(format: Format, n: usize, k: usize) -> Result<usize, PackError> {
        format.row_bytes(k)?;
        let (values, bytes) = Packing::of(format).block();
        Ok(n.div_ceil(PANEL) * (k / values) * bytes)
    }

    /// From the bytes of a tensor of a GGUF file, `n` rows of `k` values, all at once: see [`Packer`].
    ///
    /// # Errors
    /// When a row does not fill whole blocks, the length is not right or values in bf16 are not finite.
    pub fn from_ggml(format: Format, n: usize, k: usize, bytes: &[u8]) -> Result<Self, PackError> {
        let mut packer = Packer::new(format, n, k)?;
        packer.push(bytes)?;
        packer.finish()
    }

    /// Outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The format it came from.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The packed values, padding included.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.data
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        self.data.len() / self.panels().max(1)
    }

    /// Row `i` as f32: the values that products are computed with.
    ///
    /// # Panics
    /// When `i >= n` or `out` is not `k` long.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n && out.len() == self.k, "row {i} of {} x {}", self.n, self.k);
        let panel = &self.data[i / PANEL * self.panel_bytes()..][..self.panel_bytes()];
        pack::row(self.packing, panel, i % PANEL, out);
    }
}
