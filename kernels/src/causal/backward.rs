//! Causal attention backwards: the weights of the softmax are computed again, a page of rows at a time.

use super::{CausalShape, HeadRows, for_each_head, take};
use crate::attention::PAGE;
use crate::isa::{Isa, vectorised};
use crate::math::{exp_lane, tree_8};
use crate::pool::{Pool, Shards};
use crate::tile::{Into, Product};

/// What [`super::causal_attention`] was called with, and what it gave.
#[derive(Clone, Copy)]
pub struct CausalForward<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Output of attention, in the shape of the queries.
    pub out: &'a [f32],
    /// Maximum and inverse sum of every row and head.
    pub statistics: &'a [f32],
}

/// Gradients `dq`, `dk` and `dv` of [`super::causal_attention`] where its output has the gradient `dout`.
///
/// # Panics
/// When lengths do not fit.
#[expect(clippy::too_many_lines, reason = "buffers are cut where they are used")]
pub fn causal_attention_backward(
    pool: &Pool,
    shape: &CausalShape,
    forward: &CausalForward<'_>,
    dout: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let CausalForward { q, k, v, out, statistics } = *forward;
    shape.check(q, k, v);
    assert!(
        out.len() == q.len() && dout.len() == q.len() && statistics.len() == shape.statistics_len(),
        "causal attention backward: inputs"
    );
    assert!(
        dq.len() == q.len() && dk.len() == k.len() && dv.len() == v.len(),
        "causal attention backward: outputs"
    );
    let (hd, pages, isa) = (shape.head_dim, shape.pages(), pool.isa());
    let group = shape.heads / shape.kv_heads;
    let (dq, dk, dv) = (Shards::new(dq), Shards::new(dk), Shards::new(dv));
    let (page_len, padded) = (hd * PAGE, pages * PAGE);
    let len = 5 * pages * page_len + 3 * page_len + 2 * PAGE * padded;
    for_each_head(pool, shape, len, &|sequence, kv_head, mut buffer| {
        let mut kv = KvHead {
            keys_t: take(&mut buffer, pages * page_len),
            values_t: take(&mut buffer, pages * page_len),
            keys: take(&mut buffer, pages * page_len),
            dkeys: take(&mut buffer, pages * page_len),
            dvalues: take(&mut buffer, pages * page_len),
        };
        let mut page = Page {
            isa,
            hd,
            padded,
            scale: shape.scale(),
            q: take(&mut buffer, page_len),
            dout: take(&mut buffer, page_len),
            dq: take(&mut buffer, page_len),
            weights: take(&mut buffer, PAGE * padded),
            dscores: take(&mut buffer, PAGE * padded),
        };
        let all = |x| HeadRows::new(x, shape, sequence, (kv_head, shape.kv_heads), 0..shape.length);
        all(k).transpose(isa, kv.keys_t);
        all(k).copy(kv.keys);
        all(v).transpose(isa, kv.values_t);
        kv.dkeys.fill(0.0);
        kv.dvalues.fill(0.0);
        // SAFETY (both calls): rows of this sequence and head are of this item only.
        let put = |to: &Shards<f32>, heads: usize, head: usize, from: usize, rows: &[f32]| {
            for (r, row) in rows.chunks_exact(hd).enumerate() {
                let at = ((sequence * shape.length + from + r) * heads + head) * hd;
                unsafe { std::slice::from_raw_parts_mut(to.at(at), hd) }.copy_from_slice(row);
            }
        };
        for head in kv_head * group..(kv_head + 1) * group {
            for last in 0..pages {
                let rows = last * PAGE..shape.length.min((last + 1) * PAGE);
                let of = |x| HeadRows::new(x, shape, sequence, (head, shape.heads), rows.clone());
                of(q).copy(page.q);
                of(dout).copy(page.dout);
                let statistics = |r: usize| {
                    let at = ((sequence * shape.length + last * PAGE + r) * shape.heads + head) * 2;
                    (statistics[at], statistics[at + 1])
                };
                page.backward(last, &of(out), &statistics, &mut kv);
                put(&dq, shape.heads, head, last * PAGE, &page.dq[..rows.len() * hd]);
            }
        }
        put(&dk, shape.kv_heads, kv_head, 0, &kv.dkeys[..shape.length * hd]);
        put(&dv, shape.kv_heads, kv_head, 0, &kv.dvalues[..shape.length * hd]);
    });
}

/// A KV head of a sequence, in pages.
struct KvHead<'a> {
    /// `[page][hd][16]`, as the next.
    keys_t: &'a mut [f32],
    values_t: &'a mut [f32],
    /// `[page][16][hd]`, as its gradients and those of the values.
    keys: &'a mut [f32],
    dkeys: &'a mut [f32],
    dvalues: &'a mut [f32],
}

/// A page of query rows in the backward pass; missing rows are zero.
struct Page<'a> {
    isa: Isa,
    hd: usize,
    /// Positions in all pages.
    padded: usize,
    scale: f32,
    /// `[16][hd]`, as the next two.
    q: &'a mut [f32],
    dout: &'a mut [f32],
    dq: &'a mut [f32],
    /// `[16][padded]`: the softmax.
    weights: &'a mut [f32],
    /// `[16][padded]`: gradients of the scores.
    dscores: &'a mut [f32],
}

impl Page<'_> {
    /// Page `last`: sets `dq`, and goes on with the sums of the keys' and values' gradients.
    fn backward(
        &mut self,
        last: usize,
        out: &HeadRows<'_>,
        statistics: &dyn Fn(usize) -> (f32, f32),
        KvHead { keys_t, values_t, keys, dkeys, dvalues }: &mut KvHead<'_>,
    ) {
        let (isa, hd, padded) = (self.isa, self.hd, self.padded);
        let (page_len, positions) = (hd * PAGE, (last + 1) * PAGE);
        for (a, b, to) in
            [(&*self.q, &**keys_t, &mut *self.weights), (&*self.dout, &**values_t, &mut *self.dscores)]
        {
            let product = Product { a, a_row: hd, a_step: 1, b, b_step: PAGE, b_panel: page_len, steps: hd };
            product.run(isa, (PAGE, positions), to, padded, Into::Set);
        }
        for r in 0..PAGE {
            let weights = &mut self.weights[r * padded..][..positions];
            let dscores = &mut self.dscores[r * padded..][..positions];
            let valid = if r < out.count { last * PAGE + r + 1 } else { 0 };
            if valid > 0 {
                let delta = dot(isa, &self.dout[r * hd..][..hd], out.row(r));
                let (weights, dscores) = (&mut weights[..valid], &mut dscores[..valid]);
                score_gradients(isa, weights, dscores, statistics(r), delta, self.scale);
            }
            weights[valid..].fill(0.0);
            dscores[valid..].fill(0.0);
        }
        let (weights, dscores) = (&*self.weights, &*self.dscores);
        let dq = Product {
            a: dscores,
            a_row: padded,
            a_step: 1,
            b: keys,
            b_step: hd,
            b_panel: PAGE,
            steps: positions,
        };
        dq.run(isa, (PAGE, hd), self.dq, hd, Into::Set);
        let dk = Product {
            a: dscores,
            a_row: 1,
            a_step: padded,
            b: self.q,
            b_step: hd,
            b_panel: PAGE,
            steps: PAGE,
        };
        dk.run(isa, (positions, hd), dkeys, hd, Into::Continue);
        let dv = Product { a: weights, b: self.dout, ..dk };
        dv.run(isa, (positions, hd), dvalues, hd, Into::Continue);
    }
}

vectorised! {
    /// From scores to weights, and from gradients of weights to those of scores.
    fn score_gradients(
        scores: &mut [f32],
        gradients: &mut [f32],
        statistics: (f32, f32),
        delta: f32,
        scale: f32,
    ) {
        let (max, inverse) = statistics;
        for (score, gradient) in scores.iter_mut().zip(gradients) {
            let weight = exp_lane(*score * scale - max) * inverse;
            *score = weight;
            *gradient = weight * (*gradient - delta) * scale;
        }
    }
}

vectorised! {
    /// Lane `i` sums the products of values `i`, `i + 8`, ... by fma; the lanes are added as a tree of halves. Lengths are multiples of 8.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0f32; 8];
        for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane = a.mul_add(*b, *lane);
            }
        }
        tree_8(&lanes, |a, b| a + b)
    }
}
