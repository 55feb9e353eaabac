//! Causal attention of whole sequences, for training: the forward pass gives the bits of [`crate::attention()`] at every row, and keeps what the
//! backward pass needs (Dao et al. 2022: the softmax is computed again from its maximum and sum).
//!
//! Rows are taken 16 at a time, a page, against all pages up to their own (ARITHMETIC.md, 3 and 5).

use crate::attention::PAGE;
use crate::buffer::Buffer;
use crate::isa::{Isa, vectorised};
use crate::math::{exp, exp_lane};
use crate::pool::{Pool, Shards};
use crate::tile::{Into, Product};

/// What a microbatch looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CausalShape {
    /// Sequences.
    pub sequences: usize,
    /// Rows of each.
    pub length: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head, a multiple of 8.
    pub head_dim: usize,
}

impl CausalShape {
    fn pages(&self) -> usize {
        self.length.div_ceil(PAGE)
    }

    fn rows(&self) -> usize {
        self.sequences * self.length
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Values of a [`statistics`](causal_attention) buffer: maximum and inverse sum of every row and head.
    #[must_use]
    pub fn statistics_len(&self) -> usize {
        self.rows() * self.heads * 2
    }

    fn check(&self, q: &[f32], k: &[f32], v: &[f32]) {
        assert!(
            self.kv_heads > 0
                && self.heads.is_multiple_of(self.kv_heads)
                && self.head_dim > 0
                && self.head_dim.is_multiple_of(8),
            "causal attention: {self:?}"
        );
        let kv = self.rows() * self.kv_heads * self.head_dim;
        assert!(
            q.len() == self.rows() * self.heads * self.head_dim && k.len() == kv && v.len() == kv,
            "causal attention: {}, {} and {} values for {self:?}",
            q.len(),
            k.len(),
            v.len()
        );
    }
}

/// Buffers reused from call to call.
#[derive(Default)]
pub struct CausalScratch(Buffer<f32>);

/// Runs `item(sequence, kv_head, buffer)` for each of them, every thread with `len` values of its own.
fn for_each_head(
    pool: &Pool,
    shape: &CausalShape,
    scratch: &mut CausalScratch,
    len: usize,
    item: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
) {
    let threads = pool.threads();
    let len = len.next_multiple_of(16);
    scratch.0.ensure(threads * len);
    let buffers = Shards::new(&mut scratch.0[..threads * len]);
    let items = shape.sequences * shape.kv_heads;
    pool.run(&|thread| {
        // SAFETY: every part has its own buffer, also when one thread runs all parts, one after the other.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffers.at(thread * len), len) };
        for i in items * thread / threads..items * (thread + 1) / threads {
            item(i / shape.kv_heads, i % shape.kv_heads, buffer);
        }
    });
}

/// Takes `len` values off a buffer.
fn take<'a>(buffer: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (taken, rest) = std::mem::take(buffer).split_at_mut(len);
    *buffer = rest;
    taken
}

/// One head of some rows: row `r` at `r * stride`.
#[derive(Clone, Copy)]
struct HeadRows<'a> {
    values: &'a [f32],
    stride: usize,
    width: usize,
    count: usize,
}

impl<'a> HeadRows<'a> {
    fn new(
        values: &'a [f32],
        shape: &CausalShape,
        heads: usize,
        sequence: usize,
        head: usize,
        from: usize,
        count: usize,
    ) -> Self {
        let (width, stride) = (shape.head_dim, heads * shape.head_dim);
        let values = &values[(sequence * shape.length + from) * stride + head * width..];
        Self { values, stride, width, count }
    }

    fn row(&self, r: usize) -> &'a [f32] {
        &self.values[r * self.stride..][..self.width]
    }

    /// Rows one after the other, the rest of `out` zero.
    fn copy(&self, out: &mut [f32]) {
        let (rows, rest) = out.split_at_mut(self.count * self.width);
        for (r, out) in rows.chunks_exact_mut(self.width).enumerate() {
            out.copy_from_slice(self.row(r));
        }
        rest.fill(0.0);
    }

    /// Pages `[width][16]`, the rest of the last one zero.
    fn transpose(&self, isa: Isa, out: &mut [f32]) {
        for (p, page) in out.chunks_exact_mut(self.width * PAGE).enumerate() {
            let rows = PAGE.min(self.count - p * PAGE);
            if rows < PAGE {
                page.fill(0.0);
                for r in 0..rows {
                    let row = self.row(p * PAGE + r);
                    page.iter_mut().skip(r).step_by(PAGE).zip(row).for_each(|(out, v)| *out = *v);
                }
            } else {
                transpose_page(isa, &self.values[p * PAGE * self.stride..], self.stride, self.width, page);
            }
        }
    }
}

vectorised! {
    fn transpose_page(from: &[f32], stride: usize, width: usize, page: &mut [f32]) {
        for (d, out) in page.as_chunks_mut::<PAGE>().0.iter_mut().enumerate().take(width) {
            for r in 0..PAGE {
                out[r] = from[r * stride + d];
            }
        }
    }
}

/// `out[row] = softmax(q K^T / sqrt(hd)) V` over the positions of the row's sequence up to its own; `q` and `out` are
/// `[sequences][length][heads][hd]`, `k` and `v` have the KV heads. `statistics` gets `[row][head]` of maximum and inverse sum.
///
/// # Panics
/// When lengths do not fit.
pub fn causal_attention(
    pool: &Pool,
    shape: &CausalShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    statistics: &mut [f32],
    scratch: &mut CausalScratch,
) {
    shape.check(q, k, v);
    assert!(out.len() == q.len() && statistics.len() == shape.statistics_len(), "causal attention: outputs");
    let (hd, pages, isa) = (shape.head_dim, shape.pages(), pool.isa());
    let (group, width) = (shape.heads / shape.kv_heads, shape.heads * hd);
    let (out, statistics) = (Shards::new(out), Shards::new(statistics));
    let page_len = hd * PAGE;
    for_each_head(pool, shape, scratch, 2 * pages * page_len + page_len, &|sequence, kv_head, mut buffer| {
        let keys = take(&mut buffer, pages * page_len);
        let values = take(&mut buffer, pages * page_len);
        let sums = take(&mut buffer, page_len);
        let of = |x, heads, head, from, count| HeadRows::new(x, shape, heads, sequence, head, from, count);
        of(k, shape.kv_heads, kv_head, 0, shape.length).transpose(isa, keys);
        of(v, shape.kv_heads, kv_head, 0, shape.length).copy(values);
        for head in kv_head * group..(kv_head + 1) * group {
            for last in 0..pages {
                let rows = PAGE.min(shape.length - last * PAGE);
                let q = of(q, shape.heads, head, last * PAGE, rows);
                let softmax = forward_page(isa, &q, keys, values, last, shape.scale(), sums);
                for (r, (sums, row)) in sums.chunks_exact(hd).zip(&softmax).enumerate().take(rows) {
                    let row_index = sequence * shape.length + last * PAGE + r;
                    let inverse = 1.0 / row.sum;
                    // SAFETY: this row and head are of this item only.
                    unsafe {
                        let at = out.at(row_index * width + head * hd);
                        let out = std::slice::from_raw_parts_mut(at, hd);
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse);
                        statistics.at((row_index * shape.heads + head) * 2).write(row.max);
                        statistics.at((row_index * shape.heads + head) * 2 + 1).write(inverse);
                    }
                }
            }
        }
    });
}

/// Running maximum and sum of one row.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

/// The rows of page `last` against the pages up to it; leaves the weighted sums of values, not yet divided.
fn forward_page(
    isa: Isa,
    q: &HeadRows<'_>,
    keys: &[f32],
    values: &[f32],
    last: usize,
    scale: f32,
    sums: &mut [f32],
) -> [Running; PAGE] {
    let (hd, rows) = (q.width, q.count);
    let page_len = hd * PAGE;
    let mut running = [Running { max: f32::NEG_INFINITY, sum: 0.0 }; PAGE];
    sums.fill(0.0);
    for page in 0..=last {
        let mut weights = [[0f32; PAGE]; PAGE];
        let key = &keys[page * page_len..][..page_len];
        let value = &values[page * page_len..][..page_len];
        let score = Product { a: q.values, a_row: q.stride, a_step: 1, b: key, b_step: PAGE, steps: hd };
        score.run(isa, rows, PAGE, weights.as_flattened_mut(), PAGE, Into::Set);
        for r in 0..rows {
            let valid = if page < last { PAGE } else { r + 1 };
            let keep = softmax_step(isa, &mut weights[r], valid, scale, &mut running[r]);
            if keep != 1.0 {
                sums[r * hd..][..hd].iter_mut().for_each(|sum| *sum *= keep);
            }
        }
        let weights = weights.as_flattened();
        let sum = Product { a: weights, a_row: PAGE, a_step: 1, b: value, b_step: hd, steps: PAGE };
        if page < last {
            sum.run(isa, rows, hd, sums, hd, Into::Continue);
            continue;
        }
        // Positions after a row's own are skipped, not multiplied by 0: that could change the sign of a zero.
        for r in 0..rows {
            let own = Product { a: &weights[r * PAGE..], steps: r + 1, ..sum };
            own.run(isa, 1, hd, &mut sums[r * hd..], hd, Into::Continue);
        }
    }
    running
}

/// Turns the scores of a page into weights, 0 beyond the `valid` ones; gives the factor for what was summed before.
fn softmax_step(isa: Isa, score: &mut [f32; PAGE], valid: usize, scale: f32, row: &mut Running) -> f32 {
    let (max, sum) = page_weights(isa, score, valid, scale, row.max);
    let keep = if max == row.max { 1.0 } else { exp(row.max - max) };
    *row = Running { max, sum: row.sum.mul_add(keep, sum) };
    keep
}

vectorised! {
    /// The maximum so far, and the sum of the weights.
    fn page_weights(score: &mut [f32; PAGE], valid: usize, scale: f32, before: f32) -> (f32, f32) {
        for (t, score) in score.iter_mut().enumerate() {
            *score = if t < valid { *score * scale } else { f32::NEG_INFINITY };
        }
        let mut most = *score;
        let mut width = PAGE / 2;
        while width > 0 {
            for i in 0..width {
                most[i] = if most[i + width] > most[i] { most[i + width] } else { most[i] };
            }
            width /= 2;
        }
        let max = if most[0] > before { most[0] } else { before };
        for score in score.iter_mut() {
            *score = exp_lane(*score - max);
        }
        let mut sum = *score;
        let mut width = PAGE / 2;
        while width > 0 {
            for i in 0..width {
                sum[i] += sum[i + width];
            }
            width /= 2;
        }
        (max, sum[0])
    }
}

/// What [`causal_attention`] was called with, and what it gave.
#[derive(Clone, Copy)]
pub struct CausalForward<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// The output.
    pub out: &'a [f32],
    /// Maximum and inverse sum of every row and head.
    pub statistics: &'a [f32],
}

/// Gradients `dq`, `dk` and `dv` of [`causal_attention`] where its output has the gradient `dout`.
///
/// # Panics
/// When lengths do not fit.
pub fn causal_attention_backward(
    pool: &Pool,
    shape: &CausalShape,
    forward: &CausalForward<'_>,
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    scratch: &mut CausalScratch,
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
    for_each_head(pool, shape, scratch, len, &|sequence, kv_head, mut buffer| {
        let keys_t = take(&mut buffer, pages * page_len);
        let values_t = take(&mut buffer, pages * page_len);
        let keys = take(&mut buffer, pages * page_len);
        let dkeys = take(&mut buffer, pages * page_len);
        let dvalues = take(&mut buffer, pages * page_len);
        let mut page = Page {
            isa,
            hd,
            padded,
            q: take(&mut buffer, page_len),
            dout: take(&mut buffer, page_len),
            dq: take(&mut buffer, page_len),
            weights: take(&mut buffer, PAGE * padded),
            dscores: take(&mut buffer, PAGE * padded),
        };
        let of = |x, heads, head, from, count| HeadRows::new(x, shape, heads, sequence, head, from, count);
        let all_keys = of(k, shape.kv_heads, kv_head, 0, shape.length);
        all_keys.transpose(isa, keys_t);
        all_keys.copy(keys);
        of(v, shape.kv_heads, kv_head, 0, shape.length).transpose(isa, values_t);
        dkeys.fill(0.0);
        dvalues.fill(0.0);
        // SAFETY (both calls): rows of this sequence and head are of this item only.
        let put = |to: &Shards<f32>, heads: usize, head: usize, from: usize, rows: &[f32]| {
            for (r, row) in rows.chunks_exact(hd).enumerate() {
                let at = ((sequence * shape.length + from + r) * heads + head) * hd;
                unsafe { std::slice::from_raw_parts_mut(to.at(at), hd) }.copy_from_slice(row);
            }
        };
        for head in kv_head * group..(kv_head + 1) * group {
            for last in 0..pages {
                let rows = PAGE.min(shape.length - last * PAGE);
                of(q, shape.heads, head, last * PAGE, rows).copy(page.q);
                of(dout, shape.heads, head, last * PAGE, rows).copy(page.dout);
                let out = of(out, shape.heads, head, last * PAGE, rows);
                let statistics = |r: usize| {
                    let at = ((sequence * shape.length + last * PAGE + r) * shape.heads + head) * 2;
                    (statistics[at], statistics[at + 1])
                };
                page.backward(last, shape.scale(), keys_t, values_t, keys, &out, &statistics, dkeys, dvalues);
                put(&dq, shape.heads, head, last * PAGE, &page.dq[..rows * hd]);
            }
        }
        put(&dk, shape.kv_heads, kv_head, 0, &dkeys[..shape.length * hd]);
        put(&dv, shape.kv_heads, kv_head, 0, &dvalues[..shape.length * hd]);
    });
}

/// A page of query rows in the backward pass; missing rows are zero.
struct Page<'a> {
    isa: Isa,
    hd: usize,
    /// Positions in all pages.
    padded: usize,
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
        scale: f32,
        keys_t: &[f32],
        values_t: &[f32],
        keys: &[f32],
        out: &HeadRows<'_>,
        statistics: &dyn Fn(usize) -> (f32, f32),
        dkeys: &mut [f32],
        dvalues: &mut [f32],
    ) {
        let (isa, hd, padded) = (self.isa, self.hd, self.padded);
        let (page_len, positions) = (hd * PAGE, (last + 1) * PAGE);
        for page in 0..=last {
            for (a, b, to) in
                [(&*self.q, keys_t, &mut *self.weights), (&*self.dout, values_t, &mut *self.dscores)]
            {
                let b = &b[page * page_len..][..page_len];
                let product = Product { a, a_row: hd, a_step: 1, b, b_step: PAGE, steps: hd };
                product.run(isa, PAGE, PAGE, &mut to[page * PAGE..], padded, Into::Set);
            }
        }
        for r in 0..PAGE {
            let weights = &mut self.weights[r * padded..][..positions];
            let dscores = &mut self.dscores[r * padded..][..positions];
            let valid = if r < out.count { last * PAGE + r + 1 } else { 0 };
            if valid > 0 {
                let delta = dot(isa, &self.dout[r * hd..][..hd], out.row(r));
                let (max, inverse) = statistics(r);
                let (weights, dscores) = (&mut weights[..valid], &mut dscores[..valid]);
                score_gradients(isa, weights, dscores, max, inverse, delta, scale);
            }
            weights[valid..].fill(0.0);
            dscores[valid..].fill(0.0);
        }
        let (weights, dscores) = (&*self.weights, &*self.dscores);
        let dq = Product { a: dscores, a_row: padded, a_step: 1, b: keys, b_step: hd, steps: positions };
        dq.run(isa, PAGE, hd, self.dq, hd, Into::Set);
        let dk = Product { a: dscores, a_row: 1, a_step: padded, b: self.q, b_step: hd, steps: PAGE };
        dk.run(isa, positions, hd, dkeys, hd, Into::Continue);
        let dv = Product { a: weights, b: self.dout, ..dk };
        dv.run(isa, positions, hd, dvalues, hd, Into::Continue);
    }
}

vectorised! {
    /// From scores to weights, and from gradients of weights to those of scores.
    fn score_gradients(
        scores: &mut [f32],
        gradients: &mut [f32],
        max: f32,
        inverse: f32,
        delta: f32,
        scale: f32,
    ) {
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
        let mut width = 4;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}
