//! How values are packed: see the table of [`super`].

use super::format::Format;

/// Columns of a panel.
pub(crate) const PANEL: usize = 16;
/// Inputs of a quantisation block.
pub(crate) const BLOCK: usize = 32;
/// An f16 for every column.
const HALVES: usize = 2 * PANEL;
/// Bytes of one packed block of 32 inputs and 16 columns of int8.
pub(crate) const Q8_BLOCK_BYTES: usize = HALVES + BLOCK * PANEL;
/// As above, of IQ4.
pub(crate) const IQ4_BLOCK_BYTES: usize = HALVES + plane_bytes(4);
/// Bytes of one packed super-block of 256 inputs and 16 columns of IQ4_XS.
pub(crate) const IQ4_XS_BLOCK_BYTES: usize = HALVES + 8 * PANEL + 8 * plane_bytes(4);
/// As above, of Q2_K.
pub(crate) const Q2_K_BLOCK_BYTES: usize = 2 * HALVES + 16 * PANEL + 8 * plane_bytes(2);

/// Bytes of 32 inputs and 16 columns of so many bits: see [`super::bits`].
pub(crate) const fn plane_bytes(bits: usize) -> usize {
    bits * BLOCK * PANEL / 8
}

/// Bytes of one packed block of 32 inputs and 16 columns that have scale and minimum (Q4, Q5).
pub(crate) const fn minimum_block_bytes(bits: usize) -> usize {
    2 * HALVES + plane_bytes(bits)
}

/// Bytes of one packed super-block of 256 inputs and 16 columns in which every 32 have scale and minimum (Q4_K, Q5_K).
pub(crate) const fn minima_block_bytes(bits: usize) -> usize {
    2 * HALVES + 2 * 8 * PANEL + 8 * plane_bytes(bits)
}

/// Bytes of one packed super-block of 256 inputs and 16 columns in which every sixteen have a scale (Q3_K, Q6_K).
pub(crate) const fn sixteens_block_bytes(bits: usize) -> usize {
    HALVES + 16 * PANEL + 8 * plane_bytes(bits)
}

/// How the values are packed: what [`crate::Matrix::as_bytes`] has in a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// int8 with a scale for 32.
    Q8,
    /// 4 bits, with scale and minimum for 32.
    Q4,
    /// 5 bits, with scale and minimum for 32.
    Q5,
    /// 4 bits that stand for one of sixteen values, with a scale for 32.
    Iq4,
    /// 2 bits, with scale and minimum of 4 bits for 16.
    Q2K,
    /// 3 bits, with a scale of 6 bits for 16.
    Q3K,
    /// 4 bits, with scale and minimum of 6 bits for 32.
    Q4K,
    /// 5 bits, with scale and minimum of 6 bits for 32.
    Q5K,
    /// 6 bits, with a scale of 8 bits for 16.
    Q6K,
    /// As [`Self::Iq4`], with a scale of 6 bits for 32.
    Iq4Xs,
}

impl Packing {
    pub(super) fn of(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::F16 => Self::F16,
            // Unless the whole matrix turns out to fit f16.
            Format::BF16 => Self::Bf16,
            Format::Q8_0 => Self::Q8,
            Format::Q4_0 | Format::Q4_1 => Self::Q4,
            Format::Q5_0 | Format::Q5_1 => Self::Q5,
            Format::Q2_K => Self::Q2K,
            Format::Q3_K => Self::Q3K,
            Format::Q4_K => Self::Q4K,
            Format::Q5_K => Self::Q5K,
            Format::Q6_K => Self::Q6K,
            Format::IQ4_NL => Self::Iq4,
            Format::IQ4_XS => Self::Iq4Xs,
        }
    }

    /// Is a product with it a sum of products of floats?
    pub(crate) fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// (values, bytes of them in a panel of 16 columns).
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4 * PANEL),
            Self::F16 | Self::Bf16 => (1, HALVES),
            Self::Q8 => (BLOCK, Q8_BLOCK_BYTES),
            Self::Q4 => (BLOCK, minimum_block_bytes(4)),
            Self::Q5 => (BLOCK, minimum_block_bytes(5)),
            Self::Iq4 => (BLOCK, IQ4_BLOCK_BYTES),
            Self::Q2K => (256, Q2_K_BLOCK_BYTES),
            Self::Q3K => (256, sixteens_block_bytes(3)),
            Self::Q4K => (256, minima_block_bytes(4)),
            Self::Q5K => (256, minima_block_bytes(5)),
            Self::Q6K => (256, sixteens_block_bytes(6)),
            Self::Iq4Xs => (256, IQ4_XS_BLOCK_BYTES),
        }
    }
}
