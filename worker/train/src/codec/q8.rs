//! Eight bits a value: per block of [`BLOCK`] values one f32, their largest magnitude `a`, and per value the code `rint(127 x / a)`.
//!
//! Bytes: all blocks one behind the other, each its `a` (little-endian f32) and then its codes (i8).
//!
//! Smaller blocks have smaller errors, as the largest of fewer values is smaller. Measured RMS on normal values: 0.0047 (16 values a block),
//! 0.0053 (32), 0.0059 (64), 0.0065 (128), 0.0070 (256), 0.0087 (4,096). With 64 the scales take 6% of the bytes.

use super::error::CodecError;
use super::kind::Codec;
use super::magnitude::largest_bits;

/// Values of a block.
pub const BLOCK: usize = 64;

/// 1.5 * 2^23: adding it to a number below 2^22 rounds that to an integer, half to even, in the lowest bits. No other way of rounding is as
/// quick without instructions that not every processor has.
const MAGIC: f32 = 12_582_912.0;

/// Blocks of less than this are zero: 127 divided by it still is finite.
const TINY: f32 = 1e-36;

/// Blocks of more are refused: 127 times the 127th part of the largest number may be infinite.
const HUGE: f32 = 1e38;

pub(super) fn encode(values: &[f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
    for (index, block) in values.chunks(BLOCK).enumerate() {
        let mut most = f32::from_bits(largest_bits(block));
        if most.is_nan() || most > HUGE {
            return Err(CodecError::Range { codec: Codec::Q8, index: index * BLOCK });
        }
        if most < TINY {
            most = 0.0;
        }
        let by = if most > 0.0 { 127.0 / most } else { 0.0 };
        let mut codes = [0u8; BLOCK];
        for (code, value) in codes.iter_mut().zip(block) {
            *code = (value * by + MAGIC).to_bits() as u8;
        }
        out.extend_from_slice(&most.to_le_bytes());
        out.extend_from_slice(&codes[..block.len()]);
    }
    Ok(())
}

/// `bytes` has the length of `out`.
pub(super) fn decode(bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    for (index, (block, out)) in bytes.chunks(4 + BLOCK).zip(out.chunks_mut(BLOCK)).enumerate() {
        let malformed = CodecError::Malformed(index * (4 + BLOCK));
        let Some((most, codes)) = block.split_first_chunk::<4>() else { return Err(malformed) };
        let most = f32::from_le_bytes(*most);
        let sound = most == 0.0 || (TINY..=HUGE).contains(&most);
        // Without a branch per code, so that it is quick.
        let unknown = codes.iter().fold(false, |any, code| any | (*code == 0x80));
        if !sound || most.is_sign_negative() || unknown {
            return Err(malformed);
        }
        let by = most / 127.0;
        out.iter_mut().zip(codes).for_each(|(value, code)| *value = f32::from(*code as i8) * by);
    }
    Ok(())
}
