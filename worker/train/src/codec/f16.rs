//! Half precision, as it is (rows) or scaled by blocks (gradients).
//!
//! A gradient of a mean over a batch is small: most of its values are below the smallest normal half, 6e-5. So each [`BLOCK`] values are
//! multiplied by the power of two that takes the largest of them to between 2^14 and 2^15; the block begins with one byte, the largest
//! value's exponent as f32 has it (0: all are zero), and its halves follow, little-endian.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::CodecError;
use super::kind::Codec;
use super::magnitude::largest_bits;

/// Values of a block.
pub const BLOCK: usize = 1024;

/// Blocks whose largest value has a smaller exponent (2^-111) are zero: the inverse of their scale would not be a normal number.
const EXPONENT_MIN: u32 = 16;

/// Blocks with a larger value (2^127) are refused: rounded, it may be infinite.
const EXPONENT_MAX: u32 = 253;

pub(super) fn encode(values: &[f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
    let mut halves = [f16::ZERO; BLOCK];
    for (chunk, part) in values.chunks(BLOCK).enumerate() {
        let halves = &mut halves[..part.len()];
        halves.convert_from_f32_slice(part);
        if let Some(at) = halves.iter().position(|h| !h.is_finite()) {
            return Err(CodecError::Range { codec: Codec::F16, index: chunk * BLOCK + at });
        }
        push(halves, out);
    }
    Ok(())
}

/// `bytes` has the length of `out`. What is not finite stays so.
pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    for (part, out) in bytes.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
        pull(part, out);
    }
}

pub(super) fn encode_scaled(values: &[f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
    let (mut halves, mut scaled) = ([f16::ZERO; BLOCK], [0.0; BLOCK]);
    for (index, block) in values.chunks(BLOCK).enumerate() {
        let exponent = largest_bits(block) >> 23;
        if exponent > EXPONENT_MAX {
            return Err(CodecError::Range { codec: Codec::F16Scaled, index: index * BLOCK });
        }
        let exponent = if exponent < EXPONENT_MIN { 0 } else { exponent };
        // 2^14 is the largest value's new exponent.
        let by = if exponent == 0 { 0.0 } else { f32::from_bits((127 + 14 + 127 - exponent) << 23) };
        let (halves, scaled) = (&mut halves[..block.len()], &mut scaled[..block.len()]);
        scaled.iter_mut().zip(block).for_each(|(scaled, value)| *scaled = value * by);
        halves.convert_from_f32_slice(scaled);
        out.push(exponent as u8);
        push(halves, out);
    }
    Ok(())
}

/// `bytes` has the length of `out`. What is not finite stays so.
pub(super) fn decode_scaled(bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    let blocks = bytes.chunks(1 + 2 * BLOCK).zip(out.chunks_mut(BLOCK));
    for (index, (block, out)) in blocks.enumerate() {
        let Some((&exponent, halves)) = block.split_first() else { continue };
        let exponent = u32::from(exponent);
        if (1..EXPONENT_MIN).contains(&exponent) || exponent > EXPONENT_MAX {
            return Err(CodecError::Malformed(index * (1 + 2 * BLOCK)));
        }
        let by = if exponent == 0 { 0.0 } else { f32::from_bits((exponent - 14) << 23) };
        pull(halves, out);
        out.iter_mut().for_each(|value| *value *= by);
    }
    Ok(())
}

fn push(halves: &[f16], out: &mut Vec<u8>) {
    let mut bytes = [[0; 2]; BLOCK];
    let bytes = &mut bytes[..halves.len()];
    bytes.iter_mut().zip(halves).for_each(|(bytes, half)| *bytes = half.to_le_bytes());
    out.extend_from_slice(bytes.as_flattened());
}

/// At most a block.
fn pull(bytes: &[u8], out: &mut [f32]) {
    let mut halves = [f16::ZERO; BLOCK];
    let halves = &mut halves[..out.len()];
    halves.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(half, b)| *half = f16::from_le_bytes(*b));
    halves.convert_to_f32_slice(out);
}
