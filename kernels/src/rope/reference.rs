//! The operations of [`super`] in plain loops.

use super::{RopeLayout, RopeScaling, stretch};
use crate::math::{powf, sin_cos};

/// As [`super::rope`] with a table for heads of `head_dim` values, of all heads in `x`; `back` turns the other way.
#[must_use]
pub fn rope(
    (head_dim, base, scaling): (usize, f64, &RopeScaling),
    layout: RopeLayout,
    x: &[f32],
    position: u32,
    back: bool,
) -> Vec<f32> {
    let half = head_dim / 2;
    let mut out = x.to_vec();
    for head in out.chunks_mut(head_dim) {
        for pair in 0..half {
            let frequency = stretch(pair, powf(base, -2.0 * pair as f64 / head_dim as f64), scaling);
            let (sin, cos) = sin_cos(f64::from(position) * frequency);
            let (sin, cos) = (if back { -(sin as f32) } else { sin as f32 }, cos as f32);
            let (i, j) = match layout {
                RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                RopeLayout::Halves => (pair, pair + half),
            };
            let (a, b) = (head[i], head[j]);
            head[i] = a * cos - b * sin;
            head[j] = a * sin + b * cos;
        }
    }
    out
}
