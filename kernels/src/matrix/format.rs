//! How weights are stored in a file.

use thiserror::Error;

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
    /// 32 5-bit values around 16 with one f16 scale.
    Q5_0,
    /// 32 5-bit values with f16 scale and minimum.
    Q5_1,
    /// 256 2-bit values, 16 scales and minima of 4 bits.
    Q2_K,
    /// 256 3-bit values, 16 scales of 6 bits.
    Q3_K,
    /// 256 4-bit values, 8 scales and minima of 6 bits.
    Q4_K,
    /// 256 5-bit values, 8 scales and minima of 6 bits.
    Q5_K,
    /// 256 6-bit values, 16 scales of 8 bits.
    Q6_K,
    /// 32 values of sixteen that are not evenly spaced, with one f16 scale.
    IQ4_NL,
    /// 256 of these, 8 scales of 6 bits.
    IQ4_XS,
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
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
            Self::IQ4_NL => (32, 18),
            Self::IQ4_XS => (256, 136),
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
