//! The operations of [`super`] in plain loops.

use super::{RopeLayout, Stretch};
use crate::math::sin_cos;

/// As [`super::rope`] with a table of these frequencies, of all heads in `x`; `back` turns the other way.
#[must_use]
pub fn rope(stretch: &Stretch<'_>, layout: RopeLayout, x: &[f32], position: u32, back: bool) -> Vec<f32> {
    let (head_dim, half) = (stretch.head_dim, stretch.head_dim / 2);
    let magnitude = stretch.magnitude();
    let mut out = x.to_vec();
    for head in out.chunks_mut(head_dim) {
        for pair in 0..half {
            let (sin, cos) = sin_cos(f64::from(position) * stretch.frequency(pair));
            let (sin, cos) = (sin as f32 * magnitude, cos as f32 * magnitude);
            let sin = if back { -sin } else { sin };
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
