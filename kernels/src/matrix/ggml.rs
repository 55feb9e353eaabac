//! Blocks of GGUF files, as far as they are not packed as they are.

use half::f16;

use super::format::Format;

/// Scale and minimum of sub-block `u` of a Q4_K block: 6 bits each in 12 bytes.
pub(crate) fn q4_k_scale(packed: &[u8], u: usize) -> (u8, u8) {
    if u < 4 {
        (packed[u] & 63, packed[u + 4] & 63)
    } else {
        let scale = (packed[u + 4] & 15) | (packed[u - 4] >> 6 << 4);
        let min = (packed[u + 4] >> 4) | (packed[u] >> 6 << 4);
        (scale, min)
    }
}

/// The 6 bits of value `i` of a Q6_K block: of 128 values, four quarters of 32 share bytes.
pub(crate) fn q6_k_value(block: &[u8], i: usize) -> u8 {
    let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
    let low = block[part * 64 + (quarter % 2) * 32 + l] >> (quarter / 2 * 4) & 15;
    let high = block[128 + part * 32 + l] >> (quarter * 2) & 3;
    low | high << 4
}

/// The values of a block of a format that has no packing of its own, rounded to f16. Layouts are those of ggml's `ggml-common.h`, formulas
/// those of its `ggml-quants.c`. Products of the small numbers of a block are exact in f32.
///
/// # Panics
/// For a format that has a packing of its own.
#[expect(clippy::too_many_lines, reason = "an arm for each format")]
fn block_as_f16(format: Format, block: &[u8], mut put: impl FnMut(u16)) {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let mut put = |value: f32| put(f16::from_f32(value).to_bits());
    match format {
        // d, qh [4], qs [16]: d * (q - 16); Q5_1 has m behind d: d * q + m.
        Format::Q5_0 | Format::Q5_1 => {
            let (d, m, at) =
                if format == Format::Q5_0 { (half(0), None, 2) } else { (half(0), Some(half(2)), 4) };
            for i in 0..32 {
                let low = block[at + 4 + i % 16] >> (i / 16 * 4) & 15;
                let high = block[at + i / 8] >> (i % 8) & 1;
                let q = f32::from(low | high << 4);
                put(m.map_or(d * (q - 16.0), |m| d * q + m));
            }
        }
        // d, dmin, scales [12] as Q4_K's, qh [32], qs [128]: d * scale * q - dmin * min.
        Format::Q5_K => {
            let (d, dmin) = (half(0), half(2));
            for i in 0..256 {
                let (u, l) = (i / 32, i % 32);
                let (scale, min) = q4_k_scale(&block[4..16], u);
                let low = block[48 + u / 2 * 32 + l] >> (u % 2 * 4) & 15;
                let high = block[16 + l] >> u & 1;
                put(d * f32::from(scale) * f32::from(low | high << 4) - dmin * f32::from(min));
            }
        }
        // scales [16] with a scale and a minimum of 4 bits each, qs [64], d, dmin: d * scale * q - dmin * min.
        Format::Q2_K => {
            let (d, dmin) = (half(80), half(82));
            for i in 0..256 {
                let (part, pair, l) = (i / 128, i % 128 / 32, i % 32);
                let (scale, q) = (block[i / 16], block[16 + part * 32 + l] >> (pair * 2) & 3);
                put(d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4));
            }
        }
        // hmask [32], qs [64], scales [12] of 6 bits around 32, d: d * scale * q, q being 2 bits, less 4 where hmask has no bit.
        Format::Q3_K => {
            let d = half(108);
            for i in 0..256 {
                let (part, pair, l, s) = (i / 128, i % 128 / 32, i % 32, i / 16);
                let low = block[96 + s % 8] >> (s / 8 * 4) & 15;
                let scale = low | (block[104 + s % 4] >> (s / 4 * 2) & 3) << 4;
                let q = block[32 + part * 32 + l] >> (pair * 2) & 3;
                let less = if block[l] >> (i / 32) & 1 == 0 { 4.0 } else { 0.0 };
                put(d * (f32::from(scale) - 32.0) * (f32::from(q) - less));
            }
        }
        // d, qs [16]: d * (one of sixteen values).
        Format::IQ4_NL => {
            let d = half(0);
            for i in 0..32 {
                put(d * IQ4_VALUES[usize::from(block[2 + i % 16] >> (i / 16 * 4) & 15)]);
            }
        }
        // d, upper bits of scales u16, lower ones [4], qs [128]: as IQ4_NL with scales of 6 bits around 32.
        Format::IQ4_XS => {
            let (d, upper) = (half(0), u16::from_le_bytes([block[2], block[3]]));
            for i in 0..256 {
                let (u, l) = (i / 32, i % 32);
                let low = block[4 + u / 2] >> (u % 2 * 4) & 15;
                let scale = f32::from(u16::from(low) | (upper >> (2 * u) & 3) << 4) - 32.0;
                put(d * scale * IQ4_VALUES[usize::from(block[8 + u * 16 + l % 16] >> (l / 16 * 4) & 15)]);
            }
        }
        Format::F32
        | Format::F16
        | Format::BF16
        | Format::Q8_0
        | Format::Q4_0
        | Format::Q4_1
        | Format::Q4_K
        | Format::Q6_K => {
            unreachable!("{format:?} is packed as it is")
        }
    }
}

/// What the 4 bits of IQ4_NL and IQ4_XS stand for: ggml's `kvalues_iq4nl`.
const IQ4_VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// The values of some blocks, rounded to f16: see [`block_as_f16`].
pub(crate) fn as_f16(format: Format, bytes: &[u8]) -> Vec<u16> {
    let (values, block) = format.block();
    let mut out = Vec::with_capacity(bytes.len() / block * values);
    bytes.chunks_exact(block).for_each(|block| block_as_f16(format, block, |value| out.push(value)));
    out
}
