//! From panels back to a row.

use half::{bf16, f16};

use super::bits;
use super::ggml::IQ4_VALUES;
use super::packing::{BLOCK, PANEL, Packing, plane_bytes};

/// Column `c` of a panel as f32.
pub(super) fn row(packing: Packing, panel: &[u8], c: usize, out: &mut [f32]) {
    let block: fn(&[u8], usize, &mut [f32]) = match packing {
        Packing::F32 => {
            return dense(panel, c, out, f32::from_le_bytes);
        }
        Packing::F16 => {
            return dense(panel, c, out, |value| f16::from_le_bytes(value).to_f32());
        }
        Packing::Bf16 => {
            return dense(panel, c, out, |value| bf16::from_le_bytes(value).to_f32());
        }
        Packing::Q8 => q8,
        Packing::Q4 => minimum::<4>,
        Packing::Q5 => minimum::<5>,
        Packing::Iq4 => iq4,
        Packing::Q2K => q2_k,
        Packing::Q3K => sixteens::<3>,
        Packing::Q4K => minima::<4>,
        Packing::Q5K => minima::<5>,
        Packing::Q6K => sixteens::<6>,
        Packing::Iq4Xs => iq4_xs,
    };
    let (values, bytes) = packing.block();
    for (out, b) in out.chunks_exact_mut(values).zip(panel.chunks_exact(bytes)) {
        block(b, c, out);
    }
}

/// Floats of `B` bytes each.
fn dense<const B: usize>(panel: &[u8], c: usize, out: &mut [f32], value: impl Fn([u8; B]) -> f32) {
    for (out, values) in out.iter_mut().zip(panel.as_chunks::<B>().0.chunks_exact(PANEL)) {
        *out = value(values[c]);
    }
}

/// The f16 of column `c` of 16.
fn half(bytes: &[u8], c: usize) -> f32 {
    f16::from_le_bytes([bytes[c * 2], bytes[c * 2 + 1]]).to_f32()
}

/// The 32 numbers of column `c`, input `i` being `value(i, number)`.
#[inline(always)]
fn numbers(bits: usize, from: &[u8], c: usize, out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = value(i, bits::get(bits, from, c, i));
    }
}

fn q8(b: &[u8], c: usize, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = half(b, c) * f32::from(b[32 + (i / 4 * PANEL + c) * 4 + i % 4].cast_signed());
    }
}

fn minimum<const BITS: usize>(b: &[u8], c: usize, out: &mut [f32]) {
    let (d, m) = (half(b, c), half(&b[32..], c));
    numbers(BITS, &b[64..], c, out, |_, q| d * f32::from(q) + m);
}

fn minima<const BITS: usize>(b: &[u8], c: usize, out: &mut [f32]) {
    let (d, dmin) = (half(b, c), half(&b[32..], c));
    let parts = b[320..].chunks_exact(plane_bytes(BITS));
    for (u, (out, part)) in out.chunks_exact_mut(BLOCK).zip(parts).enumerate() {
        let (d, m) = (d * f32::from(b[64 + u * PANEL + c]), dmin * f32::from(b[192 + u * PANEL + c]));
        numbers(BITS, part, c, out, |_, q| d * f32::from(q) - m);
    }
}

fn sixteens<const BITS: usize>(b: &[u8], c: usize, out: &mut [f32]) {
    let (d, middle) = (half(b, c), f32::from(1u8 << (BITS - 1)));
    let parts = b[288..].chunks_exact(plane_bytes(BITS));
    for (u, (out, part)) in out.chunks_exact_mut(BLOCK).zip(parts).enumerate() {
        let scale = |i: usize| f32::from(b[32 + (u * 2 + i / 16) * PANEL + c].cast_signed());
        numbers(BITS, part, c, out, |i, q| d * scale(i) * (f32::from(q) - middle));
    }
}

fn q2_k(b: &[u8], c: usize, out: &mut [f32]) {
    let (d, dmin) = (half(b, c), half(&b[32..], c));
    let parts = b[320..].chunks_exact(plane_bytes(2));
    for (u, (out, part)) in out.chunks_exact_mut(BLOCK).zip(parts).enumerate() {
        let scale = |i: usize| b[64 + (u * 2 + i / 16) * PANEL + c];
        numbers(2, part, c, out, |i, q| {
            d * f32::from(scale(i) & 15) * f32::from(q) - dmin * f32::from(scale(i) >> 4)
        });
    }
}

fn iq4(b: &[u8], c: usize, out: &mut [f32]) {
    let d = half(b, c);
    numbers(4, &b[32..], c, out, |_, q| d * f32::from(IQ4_VALUES[usize::from(q)]));
}

fn iq4_xs(b: &[u8], c: usize, out: &mut [f32]) {
    let parts = b[160..].chunks_exact(plane_bytes(4));
    for (u, (out, part)) in out.chunks_exact_mut(BLOCK).zip(parts).enumerate() {
        let d = half(b, c) * f32::from(b[32 + u * PANEL + c].cast_signed());
        numbers(4, part, c, out, |_, q| d * f32::from(IQ4_VALUES[usize::from(q)]));
    }
}
