//! What computations read: packed copies of the parameters, and weights that stay as they are. Whoever holds them can tell by the sums of their bits
//! ([`dunlin_kernels::bit_sum`]) whether they are still what they were packed from.

use std::ops::Range;

use dunlin_kernels::{Isa, Matrix, bit_sum};

/// Values that are held.
#[derive(Clone, Debug)]
pub struct HeldValues<'a> {
    /// The parameters that they are a copy of, in the stage's vector; none for weights that stay as they are.
    pub of: Option<Range<usize>>,
    /// Where they are.
    pub bits: Bits<'a>,
}

/// Bits in memory.
#[derive(Clone, Copy, Debug)]
pub enum Bits<'a> {
    /// Values.
    Values(&'a [f32]),
    /// Values of whatever format.
    Bytes(&'a [u8]),
}

impl<'a> HeldValues<'a> {
    pub(super) fn of(place: Range<usize>, bits: Bits<'a>) -> Self {
        Self { of: Some(place), bits }
    }

    pub(super) fn frozen(bits: Bits<'a>) -> Self {
        Self { of: None, bits }
    }
}

impl<'a> From<&'a Matrix> for Bits<'a> {
    fn from(matrix: &'a Matrix) -> Self {
        Self::Bytes(matrix.as_bytes())
    }
}

impl<'a> Bits<'a> {
    /// The same in parts of at most `values` values of 32 bits.
    pub fn parts(self, values: usize) -> Vec<Self> {
        match self {
            Self::Values(all) => all.chunks(values).map(Self::Values).collect(),
            Self::Bytes(all) => all.chunks(4 * values).map(Self::Bytes).collect(),
        }
    }

    /// The sum of their patterns.
    #[must_use]
    pub fn sum(self, isa: Isa) -> u64 {
        match self {
            Self::Values(values) => bit_sum::of_values(isa, values),
            Self::Bytes(bytes) => bit_sum::of_bytes(isa, bytes),
        }
    }
}
