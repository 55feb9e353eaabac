//! Rows and averaged gradients as bytes for the wire.
//!
//! | codec | bytes per value | error (RMS, normal values) | refuses |
//! |---|---|---|---|
//! | F32 | 4 | none | what is not finite |
//! | F16 | 2 | 2.1e-4 | also beyond 65,504 |
//! | Q8 | 1.0625 | 5.9e-3 | also beyond 1e38 |
//!
//! Q8 has one f32, the largest magnitude, for each [`q8::BLOCK`] values: see [`q8`]. Bytes come from peers, so decoding checks them all.

mod feedback;
mod q8;

use half::f16;
use half::slice::HalfFloatSliceExt;
use thiserror::Error;

use crate::config::{ActivationWire, GradientWire};
pub use feedback::ErrorFeedback;
pub use q8::BLOCK;

/// How values become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    F32,
    /// Rounded to half precision.
    F16,
    /// One byte a value, and a scale a block.
    Q8,
}

/// Why values or bytes cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// Not a number, infinite, or too large.
    #[error(
        "value {index} is not finite, or too large for {codec:?}: training has diverged, or the codec is too narrow for this model"
    )]
    Range {
        /// The codec.
        codec: Codec,
        /// Which value; the first of its block for Q8.
        index: usize,
    },
    /// Not as many bytes as the values take.
    #[error("{found} bytes are not the {expected} of {values} values in {codec:?}")]
    Length {
        /// The codec.
        codec: Codec,
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
        /// Values asked for.
        values: usize,
    },
    /// Bytes that no encoder makes.
    #[error("the bytes at {0} are not an encoding: the message is damaged")]
    Malformed(usize),
}

impl From<ActivationWire> for Codec {
    fn from(wire: ActivationWire) -> Self {
        match wire {
            ActivationWire::F32 => Self::F32,
            ActivationWire::F16 => Self::F16,
            ActivationWire::Q8 => Self::Q8,
        }
    }
}

impl GradientWire {
    /// The codec of averaged gradients; none when exact sums are averaged, whose result travels as it is.
    #[must_use]
    pub fn codec(self) -> Option<Codec> {
        match self {
            Self::Exact => None,
            Self::F32 => Some(Codec::F32),
            Self::F16 => Some(Codec::F16),
            Self::Q8 => Some(Codec::Q8),
        }
    }
}

impl Codec {
    /// Bytes that `values` values take.
    #[must_use]
    pub fn bytes(self, values: usize) -> usize {
        match self {
            Self::F32 => 4 * values,
            Self::F16 => 2 * values,
            Self::Q8 => values + 4 * values.div_ceil(BLOCK),
        }
    }

    /// Appends the encoding of `values` to `out`, [`Codec::bytes`] long, little-endian.
    ///
    /// # Errors
    /// When a value is not finite or out of range; `out` may have a part of the encoding then.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.reserve(self.bytes(values.len()));
        match self {
            Self::F32 => {
                self.check(values, |v| v.is_finite())?;
                out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            }
            Self::F16 => {
                let mut halves = [f16::ZERO; 1024];
                for (chunk, part) in values.chunks(halves.len()).enumerate() {
                    let halves = &mut halves[..part.len()];
                    halves.convert_from_f32_slice(part);
                    if let Some(at) = halves.iter().position(|h| !h.is_finite()) {
                        return Err(CodecError::Range { codec: self, index: chunk * 1024 + at });
                    }
                    out.extend(halves.iter().flat_map(|h| h.to_le_bytes()));
                }
            }
            Self::Q8 => q8::encode(values, out)?,
        }
        Ok(())
    }

    /// Appends the `values` values that `bytes` encode to `out`.
    ///
    /// # Errors
    /// When the length is not that of the values, or a value is not finite; `out` may have a part of the values then.
    pub fn decode(self, bytes: &[u8], values: usize, out: &mut Vec<f32>) -> Result<(), CodecError> {
        let (found, expected) = (bytes.len(), self.bytes_checked(values));
        if expected != Some(found) {
            let expected = expected.unwrap_or(usize::MAX);
            return Err(CodecError::Length { codec: self, found, expected, values });
        }
        out.reserve(values);
        let start = out.len();
        match self {
            Self::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F16 => {
                let mut halves = [f16::ZERO; 1024];
                let mut floats = [0.0; 1024];
                for part in bytes.as_chunks::<2>().0.chunks(halves.len()) {
                    for (half, bytes) in halves.iter_mut().zip(part) {
                        *half = f16::from_le_bytes(*bytes);
                    }
                    halves[..part.len()].convert_to_f32_slice(&mut floats[..part.len()]);
                    out.extend_from_slice(&floats[..part.len()]);
                }
            }
            Self::Q8 => return q8::decode(bytes, values, out),
        }
        match out[start..].iter().position(|v| !v.is_finite()) {
            Some(at) => Err(CodecError::Malformed(self.bytes(at))),
            None => Ok(()),
        }
    }

    fn bytes_checked(self, values: usize) -> Option<usize> {
        // Four bytes a value is the most.
        values.checked_mul(4).map(|_| self.bytes(values))
    }

    fn check(self, values: &[f32], sound: impl Fn(&f32) -> bool) -> Result<(), CodecError> {
        match values.iter().position(|v| !sound(v)) {
            Some(index) => Err(CodecError::Range { codec: self, index }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
