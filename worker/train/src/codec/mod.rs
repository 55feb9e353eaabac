//! Rows and averaged gradients as bytes for the wire.
//!
//! | codec | bytes per value | error (RMS, normal values) | refuses |
//! |---|---|---|---|
//! | F32 | 4 | none | what is not finite |
//! | F16 | 2 | 2.1e-4 | also beyond 65,504 |
//! | F16Scaled | 2.001 | 2.1e-4 | also from 2^127 on |
//! | Q8 | 1.0625 | 5.9e-3 | also beyond 1e38 |
//!
//! Rows of activations travel as F32, F16 or Q8, gradients of parameters as F32, F16Scaled (see [`f16`]) or Q8 (see [`q8`]). Bytes come from
//! peers, so decoding checks them all.

mod error;
mod f16;
mod kind;
mod magnitude;
mod q8;

pub use error::CodecError;
pub use kind::Codec;
use magnitude::{INFINITE, largest_bits};

impl Codec {
    /// Bytes that `values` values take.
    #[must_use]
    pub fn bytes(self, values: usize) -> usize {
        match self {
            Self::F32 => 4 * values,
            Self::F16 => 2 * values,
            Self::F16Scaled => 2 * values + values.div_ceil(f16::BLOCK),
            Self::Q8 => values + 4 * values.div_ceil(q8::BLOCK),
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
                if largest_bits(values) >= INFINITE {
                    let index = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
                    return Err(CodecError::Range { codec: self, index });
                }
                let mut words = [[0; 4]; 1024];
                for part in values.chunks(words.len()) {
                    let words = &mut words[..part.len()];
                    words.iter_mut().zip(part).for_each(|(word, value)| *word = value.to_le_bytes());
                    out.extend_from_slice(words.as_flattened());
                }
            }
            Self::F16 => f16::encode(values, out)?,
            Self::F16Scaled => f16::encode_scaled(values, out)?,
            Self::Q8 => q8::encode(values, out)?,
        }
        Ok(())
    }

    /// Appends the `values` values that `bytes` encode to `out`.
    ///
    /// # Errors
    /// When the length is not that of the values, or a value is not finite; `out` may be longer then.
    pub fn decode(self, bytes: &[u8], values: usize, out: &mut Vec<f32>) -> Result<(), CodecError> {
        self.check_length(bytes, values)?;
        let start = out.len();
        out.resize(start + values, 0.0);
        self.decode_to(bytes, &mut out[start..])
    }

    /// Fills `out` with the values that `bytes` encode.
    ///
    /// # Errors
    /// When the length is not that of the values, or a value is not finite; `out` may have some of the values then.
    pub fn decode_to(self, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
        self.check_length(bytes, out.len())?;
        match self {
            Self::F32 => {
                let words = bytes.as_chunks::<4>().0;
                out.iter_mut().zip(words).for_each(|(value, word)| *value = f32::from_le_bytes(*word));
            }
            Self::F16 => f16::decode(bytes, out),
            Self::F16Scaled => f16::decode_scaled(bytes, out)?,
            Self::Q8 => return q8::decode(bytes, out),
        }
        if largest_bits(out) < INFINITE {
            return Ok(());
        }
        let at = out.iter().position(|v| !v.is_finite()).unwrap_or_default();
        Err(CodecError::Malformed(self.bytes(at)))
    }

    fn check_length(self, bytes: &[u8], values: usize) -> Result<(), CodecError> {
        let (found, expected) = (bytes.len(), self.bytes_checked(values));
        if expected == Some(found) {
            return Ok(());
        }
        let expected = expected.unwrap_or(usize::MAX);
        Err(CodecError::Length { codec: self, found, expected, values })
    }

    fn bytes_checked(self, values: usize) -> Option<usize> {
        // Four bytes a value is the most.
        values.checked_mul(4).map(|_| self.bytes(values))
    }
}

#[cfg(test)]
mod tests;
