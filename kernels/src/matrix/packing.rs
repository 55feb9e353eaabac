//! How values are packed: see the table of [`super`].

use super::format::Format;

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
/// As above.
pub(crate) const Q6K_BLOCK_BYTES: usize = 32 + 256 + 8 * Q6K_PART_BYTES;
/// Bytes of 32 inputs in it.
pub(crate) const Q6K_PART_BYTES: usize = 256 + 128;

/// How the values are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
    Q4K,
    Q6K,
}

impl Packing {
    pub(super) fn of(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::F16
            | Format::Q5_0
            | Format::Q5_1
            | Format::Q2_K
            | Format::Q3_K
            | Format::Q5_K
            | Format::IQ4_NL
            | Format::IQ4_XS => Self::F16,
            // Unless the whole matrix turns out to fit f16.
            Format::BF16 => Self::Bf16,
            Format::Q8_0 => Self::Q8,
            Format::Q4_0 | Format::Q4_1 => Self::Q4,
            Format::Q4_K => Self::Q4K,
            Format::Q6_K => Self::Q6K,
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
            Self::F16 | Self::Bf16 => (1, 2 * PANEL),
            Self::Q8 => (BLOCK, Q8_BLOCK_BYTES),
            Self::Q4 => (BLOCK, Q4_BLOCK_BYTES),
            Self::Q4K => (256, Q4K_BLOCK_BYTES),
            Self::Q6K => (256, Q6K_BLOCK_BYTES),
        }
    }
}
