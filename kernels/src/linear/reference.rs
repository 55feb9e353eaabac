//! The operations of [`super`] in plain loops, from the bytes of a file.

use std::array::from_fn;

use half::{bf16, f16};

use super::tile::{CHUNK, CHUNK_BLOCKS};
use crate::matrix::{
    BLOCK, Format, IQ4_VALUES, iq4_xs_scale, nibble, q2_k_value, q3_k_scale, q3_k_value, q4_k_scale,
    q4_k_value, q5_k_value, q5_value, q6_k_value,
};

/// As [`super::linear`] of `m` rows with the weights `[n][k]` that `bytes` are in a file. BF16 is one that does not fit f16.
#[must_use]
pub fn linear(format: Format, n: usize, k: usize, bytes: &[u8], x: &[f32], m: usize) -> Vec<f32> {
    let row_bytes = bytes.len() / n;
    let mut y = Vec::new();
    for x in x.chunks(k).take(m) {
        for w in bytes.chunks(row_bytes) {
            y.push(match format {
                Format::F32 | Format::F16 | Format::BF16 => dense(&widened(format, w), x),
                _ => quantised(format, w, x),
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

/// A row of a dense format.
fn widened(format: Format, row: &[u8]) -> Vec<f32> {
    let pairs = row.as_chunks::<2>().0;
    match format {
        Format::F32 => row.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect(),
        Format::F16 => pairs.iter().map(|v| f16::from_le_bytes(*v).to_f32()).collect(),
        _ => pairs.iter().map(|v| bf16::from_le_bytes(*v).to_f32()).collect(),
    }
}

/// A block of 32 weights: `dw * q`, and what is added to that.
struct Block {
    dw: f32,
    q: [i32; BLOCK],
    minimum: Minimum,
}

enum Minimum {
    None,
    Added(f32),
    /// For each weight one, and the scale of all.
    Integers(f32, [i32; BLOCK]),
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
        let sum = |w: &[i32; BLOCK]| w.iter().zip(&q).map(|(w, q)| w * q).sum::<i32>() as f32;
        acc = sum(&block.q).mul_add(block.dw * d, acc);
        acc = match &block.minimum {
            Minimum::None => acc,
            Minimum::Added(m) => m.mul_add(d * q.iter().sum::<i32>() as f32, acc),
            Minimum::Integers(dmin, m) => (-sum(m)).mul_add(dmin * d, acc),
        };
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
    let (values, bytes) = format.block();
    let block = if values == BLOCK { block } else { block_of_super_block };
    let places = (0..values / BLOCK).cycle();
    row.chunks(bytes)
        .flat_map(|bytes| std::iter::repeat_n(bytes, values / BLOCK))
        .zip(places)
        .map(|(bytes, u)| block(format, bytes, u))
        .collect()
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// A format whose blocks have 32 weights.
fn block(format: Format, bytes: &[u8], _: usize) -> Block {
    let dw = half(bytes, 0);
    // What the minimum is rounded to: weights are packed with it in f16.
    let middle = |middle: f32| Minimum::Added(f16::from_f32(-middle * dw).to_f32());
    let (minimum, value): (_, &dyn Fn(usize) -> i32) = match format {
        Format::Q8_0 => (Minimum::None, &|i| i32::from(bytes[2 + i].cast_signed())),
        Format::Q4_0 => (middle(8.0), &|i| i32::from(nibble(&bytes[2..], i))),
        Format::Q4_1 => (Minimum::Added(half(bytes, 2)), &|i| i32::from(nibble(&bytes[4..], i))),
        Format::Q5_0 => (middle(16.0), &|i| i32::from(q5_value(&bytes[2..], i))),
        Format::Q5_1 => (Minimum::Added(half(bytes, 2)), &|i| i32::from(q5_value(&bytes[4..], i))),
        // IQ4_NL.
        _ => (Minimum::None, &|i| i32::from(IQ4_VALUES[usize::from(nibble(&bytes[2..], i))])),
    };
    Block { dw, q: from_fn(value), minimum }
}

/// Block `u` of a format that has 256 weights together.
fn block_of_super_block(format: Format, bytes: &[u8], u: usize) -> Block {
    let at = |i: usize| u * BLOCK + i;
    match format {
        Format::Q4_K | Format::Q5_K => {
            let (scale, min) = q4_k_scale(&bytes[4..16], u);
            let value = if format == Format::Q4_K { q4_k_value } else { q5_k_value };
            Block {
                dw: half(bytes, 0) * f32::from(scale),
                q: from_fn(|i| i32::from(value(bytes, at(i)))),
                minimum: Minimum::Added(-(half(bytes, 2) * f32::from(min))),
            }
        }
        // Sixteen values have one scale, and two such halves one sum.
        Format::Q6_K => {
            let scale = |i: usize| i32::from(bytes[192 + i / 16].cast_signed());
            let q = from_fn(|i| scale(at(i)) * (i32::from(q6_k_value(bytes, at(i))) - 32));
            Block { dw: half(bytes, 208), q, minimum: Minimum::None }
        }
        Format::Q3_K => {
            let scale = |i: usize| i32::from(q3_k_scale(bytes, i / 16));
            let q = from_fn(|i| scale(at(i)) * (i32::from(q3_k_value(bytes, at(i))) - 4));
            Block { dw: half(bytes, 108), q, minimum: Minimum::None }
        }
        Format::Q2_K => {
            let scale = |i: usize| bytes[i / 16];
            let q = from_fn(|i| i32::from(scale(at(i)) & 15) * i32::from(q2_k_value(bytes, at(i))));
            let minima = from_fn(|i| i32::from(scale(at(i)) >> 4));
            Block { dw: half(bytes, 80), q, minimum: Minimum::Integers(half(bytes, 82), minima) }
        }
        // IQ4_XS.
        _ => {
            let own = &bytes[8 + u * 16..];
            Block {
                dw: half(bytes, 0) * f32::from(iq4_xs_scale(bytes, u)),
                q: from_fn(|i| i32::from(IQ4_VALUES[usize::from(nibble(own, i))])),
                minimum: Minimum::None,
            }
        }
    }
}
