//! The operations of [`super`] in plain loops.

use std::ops::Range;

use super::{AttentionRow, Heads, PAGE, SEGMENT};
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

/// `key(t, d)` and `value(t, d)` of the positions that are `seen`, segment by segment.
pub(crate) fn one_head(
    q: &[f32],
    seen: Range<usize>,
    scale: f32,
    key: impl Fn(usize, usize) -> f32,
    value: impl Fn(usize, usize) -> f32,
) -> Attended {
    let mut total: Option<(f32, f32, Vec<f32>)> = None;
    for start in (seen.start / SEGMENT * SEGMENT..seen.end).step_by(SEGMENT) {
        let own = seen.start.max(start)..seen.end.min(start + SEGMENT);
        let next = one_segment(q, own, scale, &key, &value);
        total = Some(match total {
            None => next,
            Some(before) => merged(before, next),
        });
    }
    let (max, sum, mut out) = total.unwrap_or((f32::NEG_INFINITY, 0.0, vec![0.0; q.len()]));
    let inverse = 1.0 / sum;
    out.iter_mut().for_each(|out| *out *= inverse);
    Attended { out, max, inverse }
}

/// Maximum, sum of weights and weighted sums of values of two segments that follow one another.
fn merged(before: (f32, f32, Vec<f32>), next: (f32, f32, Vec<f32>)) -> (f32, f32, Vec<f32>) {
    let max = if next.0 > before.0 { next.0 } else { before.0 };
    let share = |of: f32| if of == max { 1.0 } else { exp(of - max) };
    let (a, b) = (share(before.0), share(next.0));
    let join = |before: f32, next: f32| before.mul_add(a, next * b);
    let out = before.2.iter().zip(&next.2).map(|(before, next)| join(*before, *next)).collect();
    (max, join(before.1, next.1), out)
}

/// The same of positions of one segment, page by page.
fn one_segment(
    q: &[f32],
    seen: Range<usize>,
    scale: f32,
    key: impl Fn(usize, usize) -> f32,
    value: impl Fn(usize, usize) -> f32,
) -> (f32, f32, Vec<f32>) {
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
    (max, sum, out)
}
