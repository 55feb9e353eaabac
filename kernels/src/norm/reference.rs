//! The operations of [`super`] in plain loops.

use super::LANES;
use crate::math::tree;
use crate::weight_gradient::reference::sum_over_tokens;

/// As [`super::rms_norm`]: rows of as many values as `w` has.
#[must_use]
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::new();
    for row in x.chunks(w.len()) {
        let scale = scale(row, eps);
        for (x, w) in row.iter().zip(w) {
            out.push(x * scale * w);
        }
    }
    out
}

/// As [`super::rms_norm_backward`]: what `dx` becomes, and the gradient of `w`.
#[must_use]
pub fn rms_norm_backward(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    let mut out = dx.to_vec();
    for (row, x) in x.chunks(n).enumerate() {
        let (dy, out) = (&dy[row * n..][..n], &mut out[row * n..][..n]);
        let scale = scale(x, eps);
        let mut lanes = [0f32; LANES];
        for i in 0..n {
            lanes[i % LANES] += (dy[i] * w[i]) * x[i];
        }
        let back = tree(&lanes, |a, b| a + b) * scale * scale * scale / n as f32;
        for i in 0..n {
            out[i] += (-back).mul_add(x[i], dy[i] * w[i] * scale);
        }
    }
    let dw = sum_over_tokens(x.len() / n, n, |token, i, acc| {
        let x = &x[token * n..][..n];
        dy[token * n + i].mul_add(x[i] * scale(x, eps), acc)
    });
    (out, dw)
}

/// `1 / sqrt(mean(x^2) + eps)`.
fn scale(x: &[f32], eps: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    for (i, v) in x.iter().enumerate() {
        lanes[i % LANES] += v * v;
    }
    1.0 / (tree(&lanes, |a, b| a + b) / x.len() as f32 + eps).sqrt()
}
