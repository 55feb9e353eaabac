//! Why values or bytes cannot be taken.

use dunlin_kernels::Changed;
use thiserror::Error;

use super::kind::Codec;

/// Why values or bytes cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// Not a number, infinite, or too large.
    #[error(
        "value {index} is not finite, or too large for {codec:?}: training has diverged, or the codec is too narrow for this model"
    )]
    Range {
        /// The codec that was asked for.
        codec: Codec,
        /// Which value; the first of its block for F16Scaled and Q8.
        index: usize,
    },
    /// Not as many bytes as the values take.
    #[error("{found} bytes are not the {expected} of {values} values in {codec:?}")]
    Length {
        /// The codec that was asked for.
        codec: Codec,
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
        /// Values asked for.
        values: usize,
    },
    /// Not as many bytes as exact sums take.
    #[error("{found} bytes are not the {expected} of {values} gradient sums")]
    Sums {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
        /// Sums asked for.
        values: usize,
    },
    /// Gradient sums that are not what was added to them.
    #[error(transparent)]
    Changed(#[from] Changed),
    /// Bytes that no encoder makes.
    #[error("the bytes at {0} are not an encoding: the message is damaged")]
    Malformed(usize),
}
