//! From rows of a file to panels.

use half::f16;

use super::bits;
use super::format::Format;
use super::ggml::{
    iq4_xs_scale, nibble, q2_k_value, q3_k_scale, q3_k_value, q4_k_scale, q4_k_value, q5_k_value, q5_value,
    q6_k_value,
};
use super::packing::{BLOCK, PANEL, Packing, plane_bytes};
use crate::buffer::Buffer;
use crate::isa::{Isa, vectorised};

/// Packs the bytes of rows of `k` values as they are in a file into whole panels, which are zero.
pub(super) fn rows(format: Format, k: usize, bytes: &[u8], out: &mut [u8]) {
    match format {
        Format::F32 => dense(k, bytes.as_chunks::<4>().0, out, |value| value),
        Format::F16 | Format::BF16 => dense(k, bytes.as_chunks::<2>().0, out, |value| value),
        Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::IQ4_NL => {
            blocks_of_32(format, k, bytes, out);
        }
        Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K | Format::IQ4_XS => {
            super_blocks(format, k, bytes, out);
        }
    }
}

/// Packs `n` rows of `k` values.
pub(super) fn f32(n: usize, k: usize, w: &[f32]) -> Buffer<u8> {
    let mut out = Buffer::zeroed(n.div_ceil(PANEL) * PANEL * k * 4);
    dense(k, w, &mut out, f32::to_le_bytes);
    out
}

/// Rows of `k` values, `B` bytes each, into panels.
fn dense<T: Copy, const B: usize>(k: usize, values: &[T], out: &mut [u8], bytes: impl Fn(T) -> [u8; B]) {
    if k == 0 {
        return;
    }
    for (rows, panel) in values.chunks(k * PANEL).zip(out.chunks_exact_mut(k * PANEL * B)) {
        for (c, row) in rows.chunks_exact(k).enumerate() {
            for (i, value) in row.iter().enumerate() {
                panel[(i * PANEL + c) * B..][..B].copy_from_slice(&bytes(*value));
            }
        }
    }
}

/// Up to 16 rows of `k` values into a panel; columns of missing rows are left.
pub(super) fn panel_f32(isa: Isa, rows: &[f32], k: usize, panel: &mut [f32]) {
    if rows.len() < PANEL * k {
        for (c, row) in rows.chunks_exact(k).enumerate() {
            for (value, out) in row.iter().zip(panel.chunks_exact_mut(PANEL)) {
                out[c] = *value;
            }
        }
        return;
    }
    whole_panel_f32(isa, rows, k, panel);
}

vectorised! {
    fn whole_panel_f32(rows: &[f32], k: usize, panel: &mut [f32]) {
        for (i, out) in panel.as_chunks_mut::<PANEL>().0.iter_mut().enumerate().take(k) {
            for c in 0..PANEL {
                out[c] = rows[c * k + i];
            }
        }
    }
}

/// Calls `put(block of the file, packed block, column)` for every block of every row.
fn blocks(format: Format, k: usize, bytes: &[u8], out: &mut [u8], put: impl Fn(&[u8], &mut [u8], usize)) {
    let ((values, file_bytes), (_, packed_bytes)) = (format.block(), Packing::of(format).block());
    let per_row = k / values;
    for (row, blocks) in bytes.chunks_exact((per_row * file_bytes).max(1)).enumerate() {
        let panel = &mut out[row / PANEL * per_row * packed_bytes..];
        for (from, to) in blocks.chunks_exact(file_bytes).zip(panel.chunks_exact_mut(packed_bytes)) {
            put(from, to, row % PANEL);
        }
    }
}

/// Blocks of 32 values.
fn blocks_of_32(format: Format, k: usize, bytes: &[u8], out: &mut [u8]) {
    let mut blocks = |put: fn(&[u8], &mut [u8], usize)| blocks(format, k, bytes, out, put);
    match format {
        Format::Q4_0 => blocks(|from, to, c| {
            around_the_middle(4, from, to, c);
            bits::put(4, &mut to[64..], c, |i| nibble(&from[2..], i));
        }),
        Format::Q4_1 => blocks(|from, to, c| {
            two_halves(from, to, c);
            bits::put(4, &mut to[64..], c, |i| nibble(&from[4..], i));
        }),
        Format::Q5_0 => blocks(|from, to, c| {
            around_the_middle(5, from, to, c);
            bits::put(5, &mut to[64..], c, |i| q5_value(&from[2..], i));
        }),
        Format::Q5_1 => blocks(|from, to, c| {
            two_halves(from, to, c);
            bits::put(5, &mut to[64..], c, |i| q5_value(&from[4..], i));
        }),
        Format::IQ4_NL => blocks(|from, to, c| {
            half(from, to, c);
            bits::put(4, &mut to[32..], c, |i| nibble(&from[2..], i));
        }),
        // Q8_0.
        _ => blocks(|from, to, c| {
            half(from, to, c);
            for i in 0..BLOCK {
                to[32 + (i / 4 * PANEL + c) * 4 + i % 4] = from[2 + i];
            }
        }),
    }
}

/// Blocks of 256 values.
fn super_blocks(format: Format, k: usize, bytes: &[u8], out: &mut [u8]) {
    let mut blocks = |put: fn(&[u8], &mut [u8], usize)| blocks(format, k, bytes, out, put);
    match format {
        Format::Q2_K => blocks(|from, to, c| {
            two_halves(&from[80..], to, c);
            scales(16, &mut to[64..], c, |s| from[s]);
            eight(2, &mut to[320..], c, |i| q2_k_value(from, i));
        }),
        Format::Q3_K => blocks(|from, to, c| {
            half(&from[108..], to, c);
            scales(16, &mut to[32..], c, |s| q3_k_scale(from, s).cast_unsigned());
            eight(3, &mut to[288..], c, |i| q3_k_value(from, i));
        }),
        Format::Q4_K => blocks(|from, to, c| {
            scales_and_minima(from, to, c);
            eight(4, &mut to[320..], c, |i| q4_k_value(from, i));
        }),
        Format::Q5_K => blocks(|from, to, c| {
            scales_and_minima(from, to, c);
            eight(5, &mut to[320..], c, |i| q5_k_value(from, i));
        }),
        Format::Q6_K => blocks(|from, to, c| {
            half(&from[208..], to, c);
            scales(16, &mut to[32..], c, |s| from[192 + s]);
            eight(6, &mut to[288..], c, |i| q6_k_value(from, i));
        }),
        // IQ4_XS.
        _ => blocks(|from, to, c| {
            half(from, to, c);
            scales(8, &mut to[32..], c, |u| iq4_xs_scale(from, u).cast_unsigned());
            eight(4, &mut to[160..], c, |i| nibble(&from[8 + i / BLOCK * 16..], i % BLOCK));
        }),
    }
}

/// An f16 of a block.
fn half(from: &[u8], to: &mut [u8], c: usize) {
    to[c * 2..][..2].copy_from_slice(&from[..2]);
}

/// Two of them.
fn two_halves(from: &[u8], to: &mut [u8], c: usize) {
    half(from, to, c);
    half(&from[2..], &mut to[2 * PANEL..], c);
}

/// The scale of a block of unsigned values around the middle of so many bits, and as a minimum what they are too large by.
fn around_the_middle(bits: u8, from: &[u8], to: &mut [u8], c: usize) {
    let d = f16::from_le_bytes([from[0], from[1]]);
    // A power of two times an f16 is an f16, short of overflow, which no sane scale comes near.
    let m = f16::from_f32(-f32::from(1u8 << (bits - 1)) * d.to_f32());
    half(from, to, c);
    half(&m.to_le_bytes(), &mut to[2 * PANEL..], c);
}

/// So many bytes of a column.
fn scales(count: usize, to: &mut [u8], c: usize, scale: impl Fn(usize) -> u8) {
    for i in 0..count {
        to[i * PANEL + c] = scale(i);
    }
}

/// What stands before the values of Q4_K and Q5_K.
fn scales_and_minima(from: &[u8], to: &mut [u8], c: usize) {
    two_halves(from, to, c);
    scales(8, &mut to[64..], c, |u| q4_k_scale(&from[4..16], u).0);
    scales(8, &mut to[192..], c, |u| q4_k_scale(&from[4..16], u).1);
}

/// 256 values, 32 at a time.
#[inline(always)]
fn eight(bits: usize, to: &mut [u8], c: usize, value: impl Fn(usize) -> u8) {
    for (u, to) in to.chunks_exact_mut(plane_bytes(bits)).enumerate() {
        bits::put(bits, to, c, |i| value(u * BLOCK + i));
    }
}
