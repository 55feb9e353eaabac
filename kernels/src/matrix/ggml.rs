//! Blocks of GGUF files, as far as they are not packed as they are.

use half::f16;

/// Scale and minimum of sub-block `u` of a Q4_K block: 6 bits each in 12 bytes.
pub(super) fn q4_k_scale(packed: &[u8], u: usize) -> (u8, u8) {
    if u < 4 {
        (packed[u] & 63, packed[u + 4] & 63)
    } else {
        let scale = (packed[u + 4] & 15) | (packed[u - 4] >> 6 << 4);
        let min = (packed[u + 4] >> 4) | (packed[u] >> 6 << 4);
        (scale, min)
    }
}

/// Q6_K: `ql [128]` low nibbles, `qh [64]` high pairs, `scales [16] i8`, `d f16`; values are `d * scale * (q - 32)`.
pub(super) fn q6_k_as_f16(bytes: &[u8]) -> Vec<u16> {
    let mut out = Vec::with_capacity(bytes.len() / 210 * 256);
    for block in bytes.as_chunks::<210>().0 {
        let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
        for i in 0..256 {
            // Halves of 128 values; in each, four quarters of 32 share bytes.
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = block[half * 64 + (quarter % 2) * 32 + l] >> (quarter / 2 * 4) & 15;
            let high = block[128 + half * 32 + l] >> (quarter * 2) & 3;
            let scale = block[192 + i / 16].cast_signed();
            let q = i32::from(low | high << 4) - 32;
            out.push(f16::from_f32(d * f32::from(scale) * q as f32).to_bits());
        }
    }
    out
}
