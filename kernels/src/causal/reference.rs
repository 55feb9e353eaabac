//! The operations of [`super`] in plain loops.

use super::{CausalForward, CausalShape};
use crate::attention::PAGE;
use crate::attention::reference::one_head;
use crate::math::{exp, tree};

/// As [`super::causal_attention`]: its output and its statistics.
#[must_use]
pub fn causal_attention(shape: &CausalShape, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut statistics) = (Vec::new(), Vec::new());
    for sequence in 0..shape.sequences {
        for position in 0..shape.length {
            for head in 0..shape.heads {
                let kv_head = head / (shape.heads / shape.kv_heads);
                let kv = |x: &[f32], t: usize, d: usize| values(shape, x, (sequence, t), kv_head)[d];
                let query = values(shape, q, (sequence, position), head);
                let attended =
                    one_head(query, 0..position + 1, shape.scale(), |t, d| kv(k, t, d), |t, d| kv(v, t, d));
                out.extend(attended.out);
                statistics.extend([attended.max, attended.inverse]);
            }
        }
    }
    (out, statistics)
}

/// As [`super::causal_attention_backward`]: gradients of queries, keys and values.
#[must_use]
pub fn causal_attention_backward(
    shape: &CausalShape,
    forward: &CausalForward<'_>,
    dout: &[f32],
) -> [Vec<f32>; 3] {
    let CausalForward { q, k, v, .. } = *forward;
    let width = shape.head_dim;
    let mut dq = Vec::new();
    let (mut dk, mut dv) = (vec![0f32; k.len()], vec![0f32; v.len()]);
    // Of every sequence and head.
    let scores: Vec<Vec<Vec<Score>>> = (0..shape.sequences)
        .flat_map(|sequence| (0..shape.heads).map(move |head| (sequence, head)))
        .map(|(sequence, head)| {
            (0..shape.length).map(|t| scores(shape, forward, dout, sequence, head, t)).collect()
        })
        .collect();
    for sequence in 0..shape.sequences {
        for t in 0..shape.length {
            for head in 0..shape.heads {
                let kv_head = head / (shape.heads / shape.kv_heads);
                for d in 0..width {
                    let terms = scores[sequence * shape.heads + head][t].iter().enumerate();
                    dq.push(terms.fold(0f32, |sum, (s, score)| {
                        score.gradient.mul_add(padded(shape, k, (sequence, s), kv_head, d), sum)
                    }));
                }
            }
        }
        for head in 0..shape.heads {
            let kv_head = head / (shape.heads / shape.kv_heads);
            let rows = &scores[sequence * shape.heads + head];
            for s in 0..shape.length {
                // All rows from the position's page on, and the padding of the last page: rows that are zero.
                for t in s / PAGE * PAGE..shape.pages() * PAGE {
                    let score = rows.get(t).map_or(Score::default(), |row| row[s]);
                    for d in 0..width {
                        let at = ((sequence * shape.length + s) * shape.kv_heads + kv_head) * width + d;
                        dk[at] = score.gradient.mul_add(padded(shape, q, (sequence, t), head, d), dk[at]);
                        dv[at] = score.weight.mul_add(padded(shape, dout, (sequence, t), head, d), dv[at]);
                    }
                }
            }
        }
    }
    [dq, dk, dv]
}

/// What a row makes of a position.
#[derive(Clone, Copy, Default)]
struct Score {
    weight: f32,
    /// Of the score.
    gradient: f32,
}

/// Row `t` of a head: a score for every position to the end of its page, zero after itself.
fn scores(
    shape: &CausalShape,
    forward: &CausalForward<'_>,
    dout: &[f32],
    sequence: usize,
    head: usize,
    t: usize,
) -> Vec<Score> {
    let CausalForward { q, k, v, out, statistics } = *forward;
    let (query, dout) = (values(shape, q, (sequence, t), head), values(shape, dout, (sequence, t), head));
    let kv_head = head / (shape.heads / shape.kv_heads);
    let mut lanes = [0f32; 8];
    for (d, out) in values(shape, out, (sequence, t), head).iter().enumerate() {
        lanes[d % 8] = dout[d].mul_add(*out, lanes[d % 8]);
    }
    let delta = tree(&lanes, |a, b| a + b);
    let at = ((sequence * shape.length + t) * shape.heads + head) * 2;
    let (max, inverse) = (statistics[at], statistics[at + 1]);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |sum, (a, b)| a.mul_add(*b, sum));
    let mut scores = vec![Score::default(); t / PAGE * PAGE + PAGE];
    for (s, score) in scores.iter_mut().enumerate().take(t + 1) {
        let (key, value) =
            (values(shape, k, (sequence, s), kv_head), values(shape, v, (sequence, s), kv_head));
        score.weight = exp(dot(query, key) * shape.scale() - max) * inverse;
        score.gradient = score.weight * (dot(dout, value) - delta) * shape.scale();
    }
    scores
}

/// The values of a head at a position of a sequence.
fn values<'a>(shape: &CausalShape, x: &'a [f32], (sequence, t): (usize, usize), head: usize) -> &'a [f32] {
    let heads = x.len() / shape.rows() / shape.head_dim;
    &x[((sequence * shape.length + t) * heads + head) * shape.head_dim..][..shape.head_dim]
}

/// One of them; 0 behind the last position.
fn padded(shape: &CausalShape, x: &[f32], (sequence, t): (usize, usize), head: usize, d: usize) -> f32 {
    if t < shape.length { values(shape, x, (sequence, t), head)[d] } else { 0.0 }
}
