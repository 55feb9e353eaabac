//! The specification in plain loops: one row, one panel.

use half::{bf16, f16};

use super::tile::{CHUNK, CHUNK_BLOCKS, Tile};
use crate::matrix::{
    BLOCK, PANEL, Packing, Q4_BLOCK_BYTES, Q4K_BLOCK_BYTES, Q6K_BLOCK_BYTES, Q6K_PART_BYTES, Q8_BLOCK_BYTES,
    six_bits,
};

pub(super) fn tile(tile: &Tile<'_>) {
    let (row, k, bytes) = (tile.first_row, tile.w.k(), tile.w.panel_bytes());
    let panel = &tile.w.data[tile.panel * bytes..][..bytes];
    let x = &tile.rows.x[row * k..][..k];
    let out = match tile.w.packing {
        Packing::F32 => dense::<4>(x, panel, |b| f32::from_le_bytes(*b)),
        Packing::F16 => dense::<2>(x, panel, |b| f16::from_le_bytes(*b).to_f32()),
        Packing::Bf16 => dense::<2>(x, panel, |b| bf16::from_le_bytes(*b).to_f32()),
        Packing::Q8 => quantised(tile, panel, Q8_BLOCK_BYTES, 1, |block, _, c, q| Part {
            d: half_at(block, c * 2),
            m: None,
            sum: (0..BLOCK).map(|i| i32::from(block[32 + at(i, c)].cast_signed()) * i32::from(q[i])).sum(),
        }),
        Packing::Q4 => quantised(tile, panel, Q4_BLOCK_BYTES, 1, |block, _, c, q| Part {
            d: half_at(block, c * 2),
            m: Some(half_at(block, 32 + c * 2)),
            sum: nibble_sum(&block[64..], c, q),
        }),
        Packing::Q4K => quantised(tile, panel, Q4K_BLOCK_BYTES, 8, |block, u, c, q| Part {
            d: half_at(block, c * 2) * f32::from(block[64 + u * PANEL + c]),
            m: Some(-(half_at(block, 32 + c * 2) * f32::from(block[192 + u * PANEL + c]))),
            sum: nibble_sum(&block[320 + u * 256..], c, q),
        }),
        Packing::Q6K => quantised(tile, panel, Q6K_BLOCK_BYTES, 8, |block, u, c, q| {
            let part = &block[288 + u * Q6K_PART_BYTES..];
            let of_half = |half: usize| -> i32 {
                let scale = block[32 + (u * 2 + half) * PANEL + c].cast_signed();
                let product = |i: usize| (i32::from(six_bits(part, c, i)) - 32) * i32::from(q[i]);
                i32::from(scale) * (half * 16..half * 16 + 16).map(product).sum::<i32>()
            };
            Part { d: half_at(block, c * 2), m: None, sum: of_half(0) + of_half(1) }
        }),
    };
    tile.store(0, 0, &out);
}

fn dense<const B: usize>(x: &[f32], panel: &[u8], value: impl Fn(&[u8; B]) -> f32) -> [f32; PANEL] {
    let mut total = [0f32; PANEL];
    let values = panel.as_chunks::<B>().0;
    for (c, (x, w)) in x.chunks(CHUNK).zip(values.chunks(CHUNK * PANEL)).enumerate() {
        let mut acc = [0f32; PANEL];
        for (x, w) in x.iter().zip(w.chunks_exact(PANEL)) {
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = x.mul_add(value(w), *acc);
            }
        }
        add_chunk(&mut total, &acc, c == 0);
    }
    total
}

/// What one block of 32 inputs adds to one output.
struct Part {
    /// Scale of the weights.
    d: f32,
    /// Their minimum.
    m: Option<f32>,
    /// The exact integer sum.
    sum: i32,
}

fn quantised(
    tile: &Tile<'_>,
    panel: &[u8],
    bytes: usize,
    per_block: usize,
    part: impl Fn(&[u8], usize, usize, &[i8]) -> Part,
) -> [f32; PANEL] {
    let quantised = tile.rows.quantised;
    let first = tile.first_row * quantised.blocks;
    let mut total = [0f32; PANEL];
    let mut acc = [0f32; PANEL];
    for b in 0..quantised.blocks {
        if b % CHUNK_BLOCKS == 0 && b > 0 {
            add_chunk(&mut total, &acc, b == CHUNK_BLOCKS);
            acc = [0f32; PANEL];
        }
        let block = &panel[b / per_block * bytes..][..bytes];
        let q = &quantised.q[(first + b) * BLOCK..][..BLOCK];
        for (c, acc) in acc.iter_mut().enumerate() {
            let part = part(block, b % per_block, c, q);
            *acc = (part.sum as f32).mul_add(part.d * quantised.d[first + b], *acc);
            if let Some(m) = part.m {
                *acc = m.mul_add(quantised.s[first + b], *acc);
            }
        }
    }
    add_chunk(&mut total, &acc, quantised.blocks <= CHUNK_BLOCKS);
    total
}

/// The first chunk's sum is the total so far; later ones are added.
fn add_chunk(total: &mut [f32; PANEL], acc: &[f32; PANEL], first: bool) {
    for (total, acc) in total.iter_mut().zip(acc) {
        *total = if first { *acc } else { *total + *acc };
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn at(i: usize, c: usize) -> usize {
    (i / 4 * PANEL + c) * 4 + i % 4
}

fn nibble_sum(packed: &[u8], c: usize, q: &[i8]) -> i32 {
    (0..16)
        .map(|i| {
            let byte = packed[at(i, c)];
            i32::from(byte & 15) * i32::from(q[i]) + i32::from(byte >> 4) * i32::from(q[16 + i])
        })
        .sum()
}
