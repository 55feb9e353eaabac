//! The operations of [`super`] in plain loops, from the bytes of a file.

use half::{bf16, f16};

use super::tile::{CHUNK, CHUNK_BLOCKS};
use crate::matrix::{BLOCK, Format, as_f16, q4_k_scale, q6_k_value};

/// As [`super::linear`] of `m` rows with the weights `[n][k]` that `bytes` are in a file. BF16 is one that does not fit f16.
#[must_use]
pub fn linear(format: Format, n: usize, k: usize, bytes: &[u8], x: &[f32], m: usize) -> Vec<f32> {
    let row_bytes = bytes.len() / n;
    let mut y = Vec::new();
    for x in x.chunks(k).take(m) {
        for w in bytes.chunks(row_bytes) {
            y.push(match format {
                Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q4_K | Format::Q6_K => {
                    quantised(format, w, x)
                }
                _ => dense(&widened(format, w), x),
            });
        }
    }
    y
}

/// As [`super::linear_transposed`] with the weights `w`, `[n][k]`, in f32: `[m][k]` from `dy`, `[m][n]`.
#[must_use]
pub fn linear_transposed(w: &[f32], n: usize, dy: &[f32]) -> Vec<f32> {
    let k = w.len() / n;
    let column = |j: usize| (0..n).map(|i| w[i * k + j]).collect::<Vec<f32>>();
    dy.chunks(n).flat_map(|dy| (0..k).map(|j| dense(&column(j), dy)).collect::<Vec<f32>>()).collect()
}

/// ARITHMETIC.md, section 1.
fn dense(w: &[f32], x: &[f32]) -> f32 {
    let mut total = 0f32;
    for (chunk, (w, x)) in w.chunks(CHUNK).zip(x.chunks(CHUNK)).enumerate() {
        let mut acc = 0f32;
        for (w, x) in w.iter().zip(x) {
            acc = x.mul_add(*w, acc);
        }
        total = if chunk == 0 { acc } else { total + acc };
    }
    total
}

/// A row of a dense format, and of one that is turned into f16 when packed.
fn widened(format: Format, row: &[u8]) -> Vec<f32> {
    let pairs = row.as_chunks::<2>().0;
    match format {
        Format::F32 => row.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect(),
        Format::F16 => pairs.iter().map(|v| f16::from_le_bytes(*v).to_f32()).collect(),
        Format::BF16 => pairs.iter().map(|v| bf16::from_le_bytes(*v).to_f32()).collect(),
        _ => as_f16(format, row).into_iter().map(|v| f16::from_bits(v).to_f32()).collect(),
    }
}

/// A block of 32 weights: `dw * q + m`.
struct Block {
    dw: f32,
    m: Option<f32>,
    q: [i32; BLOCK],
}

/// ARITHMETIC.md, section 2.
fn quantised(format: Format, row: &[u8], x: &[f32]) -> f32 {
    let (mut total, mut acc) = (0f32, 0f32);
    for (b, (block, x)) in blocks(format, row).iter().zip(x.chunks(BLOCK)).enumerate() {
        if b % CHUNK_BLOCKS == 0 && b > 0 {
            total = if b == CHUNK_BLOCKS { acc } else { total + acc };
            acc = 0.0;
        }
        let (q, d) = activations(x);
        let s = d * q.iter().sum::<i32>() as f32;
        let sum: i32 = block.q.iter().zip(&q).map(|(w, q)| w * q).sum();
        acc = (sum as f32).mul_add(block.dw * d, acc);
        if let Some(m) = block.m {
            acc = m.mul_add(s, acc);
        }
    }
    if row.len() / format.block().1 * format.block().0 <= CHUNK { acc } else { total + acc }
}

/// 32 activations as integers, and their scale.
fn activations(x: &[f32]) -> (Vec<i32>, f32) {
    if x.iter().any(|v| !v.is_finite()) {
        return (vec![0; x.len()], f32::NAN);
    }
    let max = x.iter().fold(0f32, |a, b| if b.abs() > a { b.abs() } else { a });
    if max < 1e-30 {
        return (vec![0; x.len()], 0.0);
    }
    let inverse = 127.0 / max;
    (x.iter().map(|v| (v * inverse).round_ties_even() as i32).collect(), max / 127.0)
}

/// The blocks of a row of a file.
fn blocks(format: Format, row: &[u8]) -> Vec<Block> {
    let half = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    // Value `i` and value `16 + i` share a byte.
    let nibbles = |bytes: &[u8]| std::array::from_fn(|i| i32::from(bytes[i % 16] >> (i / 16 * 4) & 15));
    let mut out = Vec::new();
    for bytes in row.chunks(format.block().1) {
        let d = half(bytes, 0);
        match format {
            Format::Q8_0 => {
                let q = std::array::from_fn(|i| i32::from(bytes[2 + i].cast_signed()));
                out.push(Block { dw: d, m: None, q });
            }
            Format::Q4_0 => {
                // What `m` is rounded to: weights are packed with it in f16.
                let m = f16::from_f32(-8.0 * d).to_f32();
                out.push(Block { dw: d, m: Some(m), q: nibbles(&bytes[2..]) });
            }
            Format::Q4_1 => out.push(Block { dw: d, m: Some(half(bytes, 2)), q: nibbles(&bytes[4..]) }),
            // Sixteen values have one scale, and two such halves one sum.
            Format::Q6_K => {
                let scaled = |i: usize| {
                    i32::from(bytes[192 + i / 16].cast_signed()) * (i32::from(q6_k_value(bytes, i)) - 32)
                };
                for u in 0..8 {
                    let q = std::array::from_fn(|i| scaled(u * BLOCK + i));
                    out.push(Block { dw: half(bytes, 208), m: None, q });
                }
            }
            _ => {
                for u in 0..8 {
                    let (scale, min) = q4_k_scale(&bytes[4..16], u);
                    // Two blocks share 32 bytes: the lower halves are the first one's.
                    let shared = &bytes[16 + u / 2 * 32..][..32];
                    out.push(Block {
                        dw: d * f32::from(scale),
                        m: Some(-(half(bytes, 2) * f32::from(min))),
                        q: std::array::from_fn(|i| i32::from(shared[i] >> (u % 2 * 4) & 15)),
                    });
                }
            }
        }
    }
    out
}
