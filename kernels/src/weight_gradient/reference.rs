//! The operations of [`super`] in plain loops.

use crate::linear::CHUNK;

/// As [`super::weight_gradient`] of one map: `[n][k]` from `m` rows of `x` and `dy`.
#[must_use]
pub fn weight_gradient(x: &[f32], dy: &[f32], m: usize) -> Vec<f32> {
    let (k, n) = (x.len() / m, dy.len() / m);
    sum_over_tokens(m, n * k, |token, i, acc| dy[token * n + i / k].mul_add(x[token * k + i % k], acc))
}

/// As [`super::bias_gradient`], of `n` biases.
#[must_use]
pub fn bias_gradient(dy: &[f32], n: usize) -> Vec<f32> {
    sum_over_tokens(dy.len() / n, n, |token, i, acc| acc + dy[token * n + i])
}

/// `n` sums over tokens of what `add(token, i, acc)` makes of each: in chunks of 256, aligned at 0; the first chunk's sum is the total, the
/// others are added to it in order.
pub(crate) fn sum_over_tokens(tokens: usize, n: usize, add: impl Fn(usize, usize, f32) -> f32) -> Vec<f32> {
    let mut out = vec![0f32; n];
    for (i, out) in out.iter_mut().enumerate() {
        for start in (0..tokens).step_by(CHUNK) {
            let mut acc = 0f32;
            for token in start..tokens.min(start + CHUNK) {
                acc = add(token, i, acc);
            }
            *out = if start == 0 { acc } else { *out + acc };
        }
    }
    out
}
