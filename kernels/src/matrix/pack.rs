//! From rows of a file to panels, and back to a row.

use half::{bf16, f16};

use super::format::Format;
use super::ggml::{as_f16, q4_k_scale, q6_k_value};
use super::packing::{
    BLOCK, PANEL, Packing, Q4_BLOCK_BYTES, Q4K_BLOCK_BYTES, Q6K_BLOCK_BYTES, Q6K_PART_BYTES, Q8_BLOCK_BYTES,
};
use crate::buffer::Buffer;
use crate::isa::{Isa, vectorised};

/// Packs the bytes of rows of `k` values as they are in a file into whole panels, which are zero.
pub(super) fn rows(format: Format, k: usize, bytes: &[u8], out: &mut [u8]) {
    let n = bytes.len().checked_div(format.bytes(k).unwrap_or(0)).unwrap_or(0);
    match format {
        Format::F32 => dense(k, bytes.as_chunks::<4>().0, out, |value| value),
        Format::F16 | Format::BF16 => dense(k, bytes.as_chunks::<2>().0, out, |value| value),
        Format::Q8_0 => q8_0(n, k, bytes, out),
        Format::Q4_0 => q4_0(n, k, bytes, out),
        Format::Q4_1 => q4_1(n, k, bytes, out),
        Format::Q4_K => q4_k(n, k, bytes, out),
        Format::Q6_K => q6_k(n, k, bytes, out),
        // The others have no packing of their own.
        widened => {
            // A panel at a time: as f16 it is two to six times as large.
            let panels = bytes.chunks(PANEL * bytes.len().checked_div(n).unwrap_or(1).max(1));
            for (bytes, out) in panels.zip(out.chunks_exact_mut((k * PANEL * 2).max(1))) {
                dense(k, &as_f16(widened, bytes), out, u16::to_le_bytes);
            }
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
fn blocks(
    n: usize,
    k: usize,
    bytes: &[u8],
    (values, file_bytes, packed_bytes): (usize, usize, usize),
    out: &mut [u8],
    put: impl Fn(&[u8], &mut [u8], usize),
) {
    let per_row = k / values;
    for row in 0..n {
        let panel = row / PANEL * per_row * packed_bytes;
        for b in 0..per_row {
            let from = &bytes[(row * per_row + b) * file_bytes..][..file_bytes];
            put(from, &mut out[panel + b * packed_bytes..][..packed_bytes], row % PANEL);
        }
    }
}

fn q8_0(n: usize, k: usize, bytes: &[u8], out: &mut [u8]) {
    blocks(n, k, bytes, (BLOCK, 34, Q8_BLOCK_BYTES), out, |from, to, c| {
        to[c * 2..][..2].copy_from_slice(&from[..2]);
        for i in 0..BLOCK {
            to[32 + (i / 4 * PANEL + c) * 4 + i % 4] = from[2 + i];
        }
    });
}

/// 16 bytes of nibbles (value `i` low, value `16 + i` high) into column `c` of `[4][16][4]`.
fn nibbles(from: &[u8], to: &mut [u8], c: usize) {
    for i in 0..16 {
        to[(i / 4 * PANEL + c) * 4 + i % 4] = from[i];
    }
}

fn q4_1(n: usize, k: usize, bytes: &[u8], out: &mut [u8]) {
    blocks(n, k, bytes, (BLOCK, 20, Q4_BLOCK_BYTES), out, |from, to, c| {
        to[c * 2..][..2].copy_from_slice(&from[..2]);
        to[32 + c * 2..][..2].copy_from_slice(&from[2..4]);
        nibbles(&from[4..], &mut to[64..], c);
    });
}

fn q4_0(n: usize, k: usize, bytes: &[u8], out: &mut [u8]) {
    blocks(n, k, bytes, (BLOCK, 18, Q4_BLOCK_BYTES), out, |from, to, c| {
        let d = f16::from_le_bytes([from[0], from[1]]);
        // A power of two times an f16 is an f16, short of overflow, which no sane scale comes near.
        let m = f16::from_f32(-8.0 * d.to_f32());
        to[c * 2..][..2].copy_from_slice(&d.to_le_bytes());
        to[32 + c * 2..][..2].copy_from_slice(&m.to_le_bytes());
        nibbles(&from[2..], &mut to[64..], c);
    });
}

fn q4_k(n: usize, k: usize, bytes: &[u8], out: &mut [u8]) {
    blocks(n, k, bytes, (256, 144, Q4K_BLOCK_BYTES), out, |from, to, c| {
        to[c * 2..][..2].copy_from_slice(&from[..2]);
        to[32 + c * 2..][..2].copy_from_slice(&from[2..4]);
        for u in 0..8 {
            let (scale, min) = q4_k_scale(&from[4..16], u);
            to[64 + u * PANEL + c] = scale;
            to[192 + u * PANEL + c] = min;
            // In the file sub-blocks 2v and 2v + 1 share 32 bytes, low and high nibbles.
            let shared = &from[16 + u / 2 * 32..][..32];
            let value = |i: usize| if u % 2 == 0 { shared[i] & 15 } else { shared[i] >> 4 };
            let mut own = [0u8; 16];
            for (i, byte) in own.iter_mut().enumerate() {
                *byte = value(i) | value(16 + i) << 4;
            }
            nibbles(&own, &mut to[320 + u * 256..], c);
        }
    });
}

fn q6_k(n: usize, k: usize, bytes: &[u8], out: &mut [u8]) {
    blocks(n, k, bytes, (256, 210, Q6K_BLOCK_BYTES), out, |from, to, c| {
        to[c * 2..][..2].copy_from_slice(&from[208..210]);
        for (i, scale) in from[192..208].iter().enumerate() {
            to[32 + i * PANEL + c] = *scale;
        }
        for (u, to) in to[288..].chunks_exact_mut(Q6K_PART_BYTES).enumerate() {
            let value = |i: usize| q6_k_value(from, u * BLOCK + i);
            let mut low = [0u8; 16];
            for (i, byte) in low.iter_mut().enumerate() {
                *byte = value(i) & 15 | value(16 + i) << 4;
            }
            nibbles(&low, to, c);
            for v in 0..2 {
                for j in 0..4 {
                    let upper = |at: usize| value(at + v * 8 + j) >> 4;
                    to[256 + (v * PANEL + c) * 4 + j] =
                        upper(0) | upper(16) << 2 | upper(4) << 4 | upper(20) << 6;
                }
            }
        }
    });
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 4-bit value `i` of column `c`.
fn nibble(packed: &[u8], c: usize, i: usize) -> f32 {
    let byte = packed[(i % 16 / 4 * PANEL + c) * 4 + i % 4];
    f32::from(if i < 16 { byte & 15 } else { byte >> 4 })
}

/// 6-bit value `i` of column `c` of 32 inputs of Q6_K.
fn six_bits(part: &[u8], c: usize, i: usize) -> u8 {
    let low = part[(i % 16 / 4 * PANEL + c) * 4 + i % 4] >> (i / 16 * 4) & 15;
    let upper = part[256 + (i % 16 / 8 * PANEL + c) * 4 + i % 4] >> (i / 16 * 2 + i / 4 % 2 * 4) & 3;
    low | upper << 4
}

/// Column `c` of a panel as f32.
pub(super) fn row(packing: Packing, panel: &[u8], c: usize, out: &mut [f32]) {
    match packing {
        Packing::F32 => {
            for (i, out) in out.iter_mut().enumerate() {
                let at = (i * PANEL + c) * 4;
                *out = f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]]);
            }
        }
        Packing::F16 => {
            for (i, out) in out.iter_mut().enumerate() {
                *out = half_at(panel, (i * PANEL + c) * 2);
            }
        }
        Packing::Bf16 => {
            for (i, out) in out.iter_mut().enumerate() {
                let at = (i * PANEL + c) * 2;
                *out = bf16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
            }
        }
        Packing::Q8 => {
            for (out, b) in out.chunks_exact_mut(BLOCK).zip(panel.chunks_exact(Q8_BLOCK_BYTES)) {
                let d = half_at(b, c * 2);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = d * f32::from(b[32 + (i / 4 * PANEL + c) * 4 + i % 4].cast_signed());
                }
            }
        }
        Packing::Q4 => {
            for (out, b) in out.chunks_exact_mut(BLOCK).zip(panel.chunks_exact(Q4_BLOCK_BYTES)) {
                let (d, m) = (half_at(b, c * 2), half_at(b, 32 + c * 2));
                for (i, out) in out.iter_mut().enumerate() {
                    *out = d * nibble(&b[64..], c, i) + m;
                }
            }
        }
        Packing::Q4K => {
            for (out, b) in out.chunks_exact_mut(256).zip(panel.chunks_exact(Q4K_BLOCK_BYTES)) {
                let (d, dmin) = (half_at(b, c * 2), half_at(b, 32 + c * 2));
                for (u, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                    let d = d * f32::from(b[64 + u * PANEL + c]);
                    let m = dmin * f32::from(b[192 + u * PANEL + c]);
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = d * nibble(&b[320 + u * 256..], c, i) - m;
                    }
                }
            }
        }
        Packing::Q6K => {
            for (out, b) in out.chunks_exact_mut(256).zip(panel.chunks_exact(Q6K_BLOCK_BYTES)) {
                let d = half_at(b, c * 2);
                let parts = b[288..].chunks_exact(Q6K_PART_BYTES);
                for (u, (out, part)) in out.chunks_exact_mut(BLOCK).zip(parts).enumerate() {
                    for (i, out) in out.iter_mut().enumerate() {
                        let scale = f32::from(b[32 + (u * 2 + i / 16) * PANEL + c].cast_signed());
                        *out = d * scale * (f32::from(six_bits(part, c, i)) - 32.0);
                    }
                }
            }
        }
    }
}
