//! The operations of [`super`] in plain loops.

use std::ops::Range;

use super::{AttentionRow, Heads, PAGE};
use crate::math::{exp, tree};

/// As [`super::attention`].
#[must_use]
pub fn attention(q: &[f32], rows: &[AttentionRow<'_>], shape: Heads) -> Vec<f32> {
    let Heads { heads, kv_heads, head_dim, scale } = shape;
    let mut out = Vec::new();
    for (row, q) in rows.iter().zip(q.chunks(heads * head_dim)) {
        for (head, q) in q.chunks(head_dim).enumerate() {
            let kv_head = head / (heads / kv_heads);
            let key = |t: usize, d: usize| row.pages[t / PAGE][(kv_head * head_dim + d) * PAGE + t % PAGE];
            let value = |t: usize, d: usize| {
                row.pages[t / PAGE][((kv_heads + kv_head) * PAGE + t % PAGE) * head_dim + d]
            };
            out.extend(one_head(q, row.from..row.len, scale, key, value).out);
        }
    }
    out
}

/// One head of one row.
pub(crate) struct Attended {
    /// What was attended to.
    pub(crate) out: Vec<f32>,
    /// The largest score.
    pub(crate) max: f32,
    /// One divided by the sum of the weights.
    pub(crate) inverse: f32,
}

/// `key(t, d)` and `value(t, d)` of the positions that are `seen`, page by page.
pub(crate) fn one_head(
    q: &[f32],
    seen: Range<usize>,
    scale: f32,
    key: impl Fn(usize, usize) -> f32,
    value: impl Fn(usize, usize) -> f32,
) -> Attended {
    let (mut max, mut sum, mut out) = (f32::NEG_INFINITY, 0f32, vec![0f32; q.len()]);
    for page in (seen.start / PAGE * PAGE..seen.end).step_by(PAGE) {
        let (start, end) = (seen.start.max(page), seen.end.min(page + PAGE));
        let score = |t: usize| scale * (0..q.len()).fold(0f32, |score, d| q[d].mul_add(key(t, d), score));
        let scores: Vec<f32> = (start..end).map(score).collect();
        let new = scores.iter().fold(max, |a, b| if *b > a { *b } else { a });
        let keep = if new == max { 1.0 } else { exp(max - new) };
        max = new;
        let mut weights = [0f32; PAGE];
        for (weight, score) in weights[start - page..].iter_mut().zip(&scores) {
            *weight = exp(score - max);
        }
        sum = sum.mul_add(keep, tree(&weights, |a, b| a + b));
        for (d, out) in out.iter_mut().enumerate() {
            *out *= keep;
            for t in start..end {
                *out = weights[t - page].mul_add(value(t, d), *out);
            }
        }
    }
    let inverse = 1.0 / sum;
    out.iter_mut().for_each(|out| *out *= inverse);
    Attended { out, max, inverse }
}
