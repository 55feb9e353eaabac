//! Blocks of GGUF files as values: against scalar code written from the definitions, and against the gguf package of ggml.
//!
//! The definitions are the structs and loops of ggml's ggml-common.h and ggml-quants.c (block_q8_0, block_q4_0, ...). The package's values
//! are in parity/blocks.safetensors, written by parity/generate.py.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use dunlin_kernels::{Format, Matrix};
use half::f16;
use safetensors::SafeTensors;

const FORMATS: [(Format, &str); 13] = [
    (Format::F16, "F16"),
    (Format::Q8_0, "Q8_0"),
    (Format::Q4_0, "Q4_0"),
    (Format::Q4_1, "Q4_1"),
    (Format::Q4_K, "Q4_K"),
    (Format::Q6_K, "Q6_K"),
    (Format::Q5_0, "Q5_0"),
    (Format::Q5_1, "Q5_1"),
    (Format::Q2_K, "Q2_K"),
    (Format::Q3_K, "Q3_K"),
    (Format::Q5_K, "Q5_K"),
    (Format::IQ4_NL, "IQ4_NL"),
    (Format::IQ4_XS, "IQ4_XS"),
];

/// Where the f16 scales of a block are.
fn scales(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        _ => &[0],
    }
}

/// Eight pairs of 6 bits in 12 bytes: get_scale_min_k4.
fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] % 64, packed[j + 4] % 64)
    } else {
        (packed[j + 4] % 16 + packed[j - 4] / 64 * 16, packed[j + 4] / 16 + packed[j] / 64 * 16)
    }
}

/// kvalues_iq4nl.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn half(bytes: &[u8]) -> f64 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f64()
}

/// Values of one block, exact in f64, written to be read next to the definition.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn defined(format: Format, block: &[u8]) -> Vec<f64> {
    let mut y = vec![0.0; format.block().0];
    match format {
        Format::F32 | Format::BF16 => panic!("not a block"),
        Format::F16 => y[0] = half(block),
        // d f16, qs [32] i8: d * q.
        Format::Q8_0 => {
            for j in 0..32 {
                y[j] = half(block) * f64::from(block[2 + j] as i8);
            }
        }
        // d f16, qs [16]: low nibbles are values 0 to 15, high ones 16 to 31; d * (q - 8).
        Format::Q4_0 => {
            for j in 0..16 {
                y[j] = half(block) * (f64::from(block[2 + j] % 16) - 8.0);
                y[j + 16] = half(block) * (f64::from(block[2 + j] / 16) - 8.0);
            }
        }
        // d f16, m f16, qs [16] as before: d * q + m.
        Format::Q4_1 => {
            for j in 0..16 {
                y[j] = half(block) * f64::from(block[4 + j] % 16) + half(&block[2..]);
                y[j + 16] = half(block) * f64::from(block[4 + j] / 16) + half(&block[2..]);
            }
        }
        // d f16, dmin f16, scales [12], qs [128]: d * scale * q - dmin * min. In each of four parts of 64 values, 32 bytes have the first
        // half in their low and the second in their high nibbles.
        Format::Q4_K => {
            let pair = |j: usize| scale_min(&block[4..16], j);
            for part in 0..4 {
                for l in 0..32 {
                    let byte = block[16 + 32 * part + l];
                    for (high, q) in [byte % 16, byte / 16].into_iter().enumerate() {
                        let (scale, min) = pair(2 * part + high);
                        y[64 * part + 32 * high + l] = half(block) * f64::from(scale) * f64::from(q)
                            - half(&block[2..]) * f64::from(min);
                    }
                }
            }
        }
        // ql [128], qh [64], scales [16] i8, d f16: d * scale * (q - 32). The loop of dequantize_row_q6_K, twice 128 values.
        Format::Q6_K => {
            let d = half(&block[208..]);
            for n in 0..2 {
                let (ql, qh, sc) = (&block[64 * n..], &block[128 + 32 * n..], &block[192 + 8 * n..]);
                for l in 0..32 {
                    let q = [
                        ql[l] % 16 + qh[l] % 4 * 16,
                        ql[l + 32] % 16 + qh[l] / 4 % 4 * 16,
                        ql[l] / 16 + qh[l] / 16 % 4 * 16,
                        ql[l + 32] / 16 + qh[l] / 64 * 16,
                    ];
                    for (i, q) in q.into_iter().enumerate() {
                        let scale = f64::from(sc[l / 16 + 2 * i] as i8);
                        y[128 * n + 32 * i + l] = d * scale * (f64::from(q) - 32.0);
                    }
                }
            }
        }
        // d f16, qh u32, qs [16]: the fifth bits of values 0 to 31 are bits 0 to 31 of qh; d * (q - 16).
        Format::Q5_0 => {
            let qh = u32::from_le_bytes(block[2..6].try_into().unwrap());
            for j in 0..16 {
                let (x0, x1) = (block[6 + j] % 16, block[6 + j] / 16);
                let fifth = |at: usize| if qh >> at & 1 == 1 { 16.0 } else { 0.0 };
                y[j] = half(block) * (f64::from(x0) + fifth(j) - 16.0);
                y[j + 16] = half(block) * (f64::from(x1) + fifth(j + 16) - 16.0);
            }
        }
        // The same with a minimum m f16 behind d: d * q + m.
        Format::Q5_1 => {
            let qh = u32::from_le_bytes(block[4..8].try_into().unwrap());
            for j in 0..16 {
                let (x0, x1) = (block[8 + j] % 16, block[8 + j] / 16);
                let fifth = |at: usize| if qh >> at & 1 == 1 { 16.0 } else { 0.0 };
                y[j] = half(block) * (f64::from(x0) + fifth(j)) + half(&block[2..]);
                y[j + 16] = half(block) * (f64::from(x1) + fifth(j + 16)) + half(&block[2..]);
            }
        }
        // d f16, dmin f16, scales [12], qh [32], qs [128]. The loop of dequantize_row_q5_K: masks u1 and u2 go left by 2 for each 64 values.
        Format::Q5_K => {
            let (mut u1, mut u2) = (1u8, 2u8);
            for part in 0..4 {
                let (ql, qh) = (&block[48 + 32 * part..], &block[16..48]);
                let ((sc1, m1), (sc2, m2)) =
                    (scale_min(&block[4..16], 2 * part), scale_min(&block[4..16], 2 * part + 1));
                for l in 0..32 {
                    let q1 = ql[l] % 16 + if qh[l] & u1 != 0 { 16 } else { 0 };
                    let q2 = ql[l] / 16 + if qh[l] & u2 != 0 { 16 } else { 0 };
                    let min = half(&block[2..]);
                    y[64 * part + l] = half(block) * f64::from(sc1) * f64::from(q1) - min * f64::from(m1);
                    y[64 * part + 32 + l] =
                        half(block) * f64::from(sc2) * f64::from(q2) - min * f64::from(m2);
                }
                (u1, u2) = (u1.wrapping_shl(2), u2.wrapping_shl(2));
            }
        }
        // scales [16], qs [64], d f16, dmin f16. The loop of dequantize_row_q2_K.
        Format::Q2_K => {
            let (d, min) = (half(&block[80..]), half(&block[82..]));
            let (mut is, mut at) = (0, 0);
            for n in 0..2 {
                let q = &block[16 + 32 * n..];
                for shift in [0, 2, 4, 6] {
                    for upper in [0, 16] {
                        let sc = block[is];
                        is += 1;
                        for l in 0..16 {
                            let q = q[l + upper] >> shift & 3;
                            y[at] = d * f64::from(sc & 15) * f64::from(q) - min * f64::from(sc >> 4);
                            at += 1;
                        }
                    }
                }
            }
        }
        // hmask [32], qs [64], scales [12], d f16. The loop of dequantize_row_q3_K with its unpacking of scales.
        Format::Q3_K => {
            let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
            let (a0, a1, tmp) = (word(96), word(100), word(104));
            let (m1, m2) = (0x0303_0303, 0x0f0f_0f0f);
            let aux = [
                a0 & m2 | (tmp & m1) << 4,
                a1 & m2 | (tmp >> 2 & m1) << 4,
                a0 >> 4 & m2 | (tmp >> 4 & m1) << 4,
                a1 >> 4 & m2 | (tmp >> 6 & m1) << 4,
            ];
            let scales: Vec<u8> = aux.iter().flat_map(|word| word.to_le_bytes()).collect();
            let (d, mut m, mut is, mut at) = (half(&block[108..]), 1u8, 0, 0);
            for n in 0..2 {
                let q = &block[32 + 32 * n..];
                for shift in [0, 2, 4, 6] {
                    for upper in [0, 16] {
                        let dl = d * (f64::from(scales[is]) - 32.0);
                        is += 1;
                        for l in 0..16 {
                            let less = if block[l + upper] & m != 0 { 0.0 } else { 4.0 };
                            y[at] = dl * (f64::from(q[l + upper] >> shift & 3) - less);
                            at += 1;
                        }
                    }
                    m = m.wrapping_shl(1);
                }
            }
        }
        // d f16, qs [16].
        Format::IQ4_NL => {
            for j in 0..16 {
                y[j] = half(block) * f64::from(IQ4[usize::from(block[2 + j] % 16)]);
                y[j + 16] = half(block) * f64::from(IQ4[usize::from(block[2 + j] / 16)]);
            }
        }
        // d f16, scales_h u16, scales_l [4], qs [128]. The loop of dequantize_row_iq4_xs.
        Format::IQ4_XS => {
            let upper = u16::from_le_bytes([block[2], block[3]]);
            for ib in 0..8 {
                let low = block[4 + ib / 2] >> (4 * (ib % 2)) & 15;
                let scale = f64::from(u16::from(low) + (upper >> (2 * ib) & 3) * 16) - 32.0;
                for j in 0..16 {
                    let byte = block[8 + 16 * ib + j];
                    y[32 * ib + j] = half(block) * scale * f64::from(IQ4[usize::from(byte % 16)]);
                    y[32 * ib + j + 16] = half(block) * scale * f64::from(IQ4[usize::from(byte / 16)]);
                }
            }
        }
    }
    y
}

/// Rows as the kernels see them.
fn rows(format: Format, n: usize, k: usize, bytes: &[u8]) -> Vec<f32> {
    let matrix = Matrix::from_ggml(format, n, k, bytes).unwrap();
    let mut out = vec![0.0; n * k];
    out.chunks_exact_mut(k).enumerate().for_each(|(i, row)| matrix.row(i, row));
    out
}

/// Products of the small numbers in a block fit in f32, and the one sum is rounded once, so there is no tolerance: values are the exact
/// ones as f32.
fn assert_same(format: Format, found: &[f32], exact: impl Iterator<Item = f32>, what: &str) {
    let exact: Vec<f32> = exact.collect();
    assert_eq!(found.len(), exact.len());
    for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
        assert!(*found == exact, "{what}, {format:?}, value {i}: {found} is not {exact}");
    }
}

/// Bytes without a pattern; scales are small numbers of both signs, from tiny to 1.
fn blocks(format: Format, count: usize) -> Vec<u8> {
    let mut state = 5u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut out: Vec<u8> = (0..count * format.block().1).map(|_| next() as u8).collect();
    for block in out.chunks_exact_mut(format.block().1) {
        for at in scales(format) {
            let scale = (next() % 2001) as f32 / 1000.0 - 1.0;
            let size = (-((next() % 12) as f32)).exp2();
            block[*at..at + 2].copy_from_slice(&f16::from_f32(scale * size).to_le_bytes());
        }
    }
    out
}

#[test]
fn values_are_those_of_the_definition() {
    for (format, name) in FORMATS {
        // Rows that fill a panel of 16 and a part of another.
        let (n, k) = (21, 768);
        let bytes = blocks(format, n * k / format.block().0);
        let exact = bytes.chunks_exact(format.block().1).flat_map(|block| defined(format, block));
        assert_same(format, &rows(format, n, k, &bytes), exact.map(|v| v as f32), name);
    }
}

#[test]
fn values_are_those_of_the_gguf_package() {
    let bytes = include_bytes!("parity/blocks.safetensors");
    let file = SafeTensors::deserialize(bytes).unwrap();
    for (format, name) in FORMATS {
        let values = file.tensor(&format!("{name}.values")).unwrap();
        let bytes = file.tensor(&format!("{name}.bytes")).unwrap();
        let &[n, k] = values.shape() else { panic!("{:?}", values.shape()) };
        let expected = values.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        assert_same(format, &rows(format, n, k, bytes.data()), expected, name);
    }
}

/// The largest and the smallest numbers that a block can hold.
#[test]
fn blocks_of_equal_bytes() {
    for (format, name) in FORMATS {
        for byte in [0x00, 0x0f, 0x7f, 0x80, 0xf0, 0xff] {
            let mut block = vec![byte; format.block().1];
            for at in scales(format) {
                block[*at..at + 2].copy_from_slice(&f16::from_f32(-0.125).to_le_bytes());
            }
            let k = format.block().0;
            let exact = defined(format, &block).into_iter().map(|v| v as f32);
            assert_same(format, &rows(format, 1, k, &block), exact, name);
        }
    }
}
