//! Causal attention of whole sequences, for training: the forward pass gives the bits of [`crate::attention()`] at every row, and keeps what the
//! backward pass needs (Dao et al. 2022: the softmax is computed again from its maximum and sum).
//!
//! Rows are taken 16 at a time, a page, against all pages up to their own (ARITHMETIC.md, 3 and 5).

mod backward;
pub mod reference;

use std::ops::Range;

pub use backward::{CausalForward, causal_attention_backward};

use crate::attention::merge::{Softmax, add_shares};
use crate::attention::{PAGE, SEGMENT};
use crate::buffer::Buffer;
use crate::isa::{Isa, vectorised};
use crate::math::exp_lane;
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

/// Buffers of all threads.
#[derive(Default)]
struct OfThreads(Buffer<f32>);

/// Runs `item(sequence, kv_head, buffer)` for each of them, every thread with `len` values of its own.
fn for_each_head(
    pool: &Pool,
    shape: &CausalShape,
    len: usize,
    item: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
) {
    let threads = pool.threads();
    let len = len.next_multiple_of(16);
    let mut buffer = pool.lend::<OfThreads>();
    buffer.0.ensure(threads * len);
    let buffers = Shards::new(&mut buffer.0[..threads * len]);
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
        sequence: usize,
        (head, heads): (usize, usize),
        rows: Range<usize>,
    ) -> Self {
        let (width, stride) = (shape.head_dim, heads * shape.head_dim);
        let values = &values[(sequence * shape.length + rows.start) * stride + head * width..];
        Self { values, stride, width, count: rows.len() }
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
    [q, k, v]: [&[f32]; 3],
    out: &mut [f32],
    statistics: &mut [f32],
) {
    shape.check(q, k, v);
    assert!(out.len() == q.len() && statistics.len() == shape.statistics_len(), "causal attention: outputs");
    let (hd, pages, isa) = (shape.head_dim, shape.pages(), pool.isa());
    let (group, width) = (shape.heads / shape.kv_heads, shape.heads * hd);
    let (out, statistics) = (Shards::new(out), Shards::new(statistics));
    let page_len = hd * PAGE;
    let len = 2 * pages * page_len + 3 * page_len + pages * PAGE * PAGE;
    for_each_head(pool, shape, len, &|sequence, kv_head, mut buffer| {
        let keys = take(&mut buffer, pages * page_len);
        let values = take(&mut buffer, pages * page_len);
        let queries = take(&mut buffer, page_len);
        let sums = take(&mut buffer, page_len);
        let of_segment = take(&mut buffer, page_len);
        let scores = take(&mut buffer, pages * PAGE * PAGE);
        let all = 0..shape.length;
        HeadRows::new(k, shape, sequence, (kv_head, shape.kv_heads), all.clone()).copy(keys);
        HeadRows::new(v, shape, sequence, (kv_head, shape.kv_heads), all).copy(values);
        for head in kv_head * group..(kv_head + 1) * group {
            for last in 0..pages {
                let rows = last * PAGE..shape.length.min((last + 1) * PAGE);
                let page = PageRows { isa, last, count: rows.len(), scale: shape.scale() };
                HeadRows::new(q, shape, sequence, (head, shape.heads), rows).transpose(isa, queries);
                let softmax = page.forward(queries, keys, values, scores, [sums, of_segment]);
                for (r, sums) in sums.chunks_exact(hd).enumerate().take(page.count) {
                    let row_index = sequence * shape.length + last * PAGE + r;
                    let inverse = 1.0 / softmax[r].sum;
                    // SAFETY: this row and head are of this item only.
                    unsafe {
                        let at = out.at(row_index * width + head * hd);
                        let out = std::slice::from_raw_parts_mut(at, hd);
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse);
                        statistics.at((row_index * shape.heads + head) * 2).write(softmax[r].max);
                        statistics.at((row_index * shape.heads + head) * 2 + 1).write(inverse);
                    }
                }
            }
        }
    });
}

/// Running maximum and sum of every row of a page.
struct Running {
    max: [f32; PAGE],
    sum: [f32; PAGE],
}

/// `count` rows of page `last`.
struct PageRows {
    isa: Isa,
    last: usize,
    count: usize,
    scale: f32,
}

impl PageRows {
    /// The rows against the pages up to theirs; leaves the weighted sums of values, not yet divided. Scores are held with the rows side by side,
    /// so that rows, and not positions, are the lanes of the softmax.
    fn forward(
        &self,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        scores: &mut [f32],
        [sums, of_segment]: [&mut [f32]; 2],
    ) -> [Softmax; PAGE] {
        const SEGMENT_PAGES: usize = SEGMENT / PAGE;
        let Self { isa, last, count, .. } = *self;
        let hd = queries.len() / PAGE;
        let positions = (last + 1) * PAGE;
        let score =
            Product { a: keys, a_row: hd, a_step: 1, b: queries, b_step: PAGE, b_panel: 0, steps: hd };
        score.run(isa, (positions, PAGE), scores, PAGE, Into::Set);
        let pages = scores.as_chunks_mut::<PAGE>().0.as_chunks_mut::<PAGE>().0;
        let mut totals = [Softmax::NOTHING; PAGE];
        for (segment, weights) in pages[..=last].chunks_mut(SEGMENT_PAGES).enumerate() {
            let first = segment * SEGMENT_PAGES;
            let values = &values[first * PAGE * hd..];
            let sums_of = if segment == 0 { &mut *sums } else { &mut *of_segment };
            let softmaxes = self.segment(first, weights, values, sums_of);
            if segment == 0 {
                totals = softmaxes;
                continue;
            }
            let rows = sums.chunks_exact_mut(hd).zip(of_segment.chunks_exact(hd));
            for ((total, next), (sums, next_sums)) in totals.iter_mut().zip(softmaxes).zip(rows).take(count) {
                merge_row(isa, total, next, sums, next_sums);
            }
        }
        totals
    }

    /// The rows against pages of one segment, of which `first` is the first one: from scores to weighted sums of values.
    fn segment(
        &self,
        first: usize,
        weights: &mut [[[f32; PAGE]; PAGE]],
        values: &[f32],
        sums: &mut [f32],
    ) -> [Softmax; PAGE] {
        let Self { isa, last, count, scale } = *self;
        let hd = sums.len() / PAGE;
        let mut running = Running { max: [f32::NEG_INFINITY; PAGE], sum: [0.0; PAGE] };
        sums.fill(0.0);
        for ((page, weights), b) in (first..).zip(weights).zip(values.chunks_exact(PAGE * hd)) {
            softmax_step(isa, weights, &mut running, page == last, scale, sums);
            let a = weights.as_flattened();
            let sum = Product { a, a_row: 1, a_step: PAGE, b, b_step: hd, b_panel: PAGE, steps: PAGE };
            if page < last {
                sum.run(isa, (count, hd), sums, hd, Into::Continue);
            } else {
                sum_own_page(isa, &sum, count, sums);
            }
        }
        std::array::from_fn(|r| Softmax { max: running.max[r], sum: running.sum[r] })
    }
}

vectorised! {
    /// Goes on with the next segment of a row.
    fn merge_row(total: &mut Softmax, next: Softmax, sums: &mut [f32], next_sums: &[f32]) {
        let share = total.merge(next);
        add_shares(sums, next_sums, share);
    }
}

/// The page of the rows themselves: positions after a row's own are skipped, not multiplied by 0, which could change the sign of a zero.
/// Four rows go together as far as the first of them goes.
fn sum_own_page(isa: Isa, sum: &Product<'_>, rows: usize, sums: &mut [f32]) {
    let hd = sum.b_step;
    for first in (0..rows).step_by(4) {
        let shared = Product { a: &sum.a[first..], steps: first + 1, ..*sum };
        shared.run(isa, (4.min(rows - first), hd), &mut sums[first * hd..], hd, Into::Continue);
        for r in first + 1..rows.min(first + 4) {
            let (a, b) = (&sum.a[(first + 1) * PAGE + r..], &sum.b[(first + 1) * hd..]);
            let own = Product { a, b, steps: r - first, ..*sum };
            own.run(isa, (1, hd), &mut sums[r * hd..], hd, Into::Continue);
        }
    }
}

vectorised! {
    /// Turns the scores of a page, `[position][row]`, into weights, 0 beyond a row's own position in its `own` page, and scales what was
    /// summed before.
    fn softmax_step(
        scores: &mut [[f32; PAGE]; PAGE],
        running: &mut Running,
        own: bool,
        scale: f32,
        sums: &mut [f32],
    ) {
        let hd = sums.len() / PAGE;
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        for (t, score) in scores.iter_mut().enumerate() {
            score.iter_mut().for_each(|score| *score *= scale);
            if own {
                score[..t].fill(f32::NEG_INFINITY);
            }
        }
        let top = tree_rows(scores, larger);
        let (mut max, mut keep) = ([0f32; PAGE], [0f32; PAGE]);
        for r in 0..PAGE {
            max[r] = larger(running.max[r], top[r]);
            let less = exp_lane(running.max[r] - max[r]);
            keep[r] = if max[r] == running.max[r] { 1.0 } else { less };
        }
        for score in scores.iter_mut() {
            for r in 0..PAGE {
                score[r] = exp_lane(score[r] - max[r]);
            }
        }
        let sum = tree_rows(scores, |a, b| a + b);
        for r in 0..PAGE {
            running.sum[r] = running.sum[r].mul_add(keep[r], sum[r]);
        }
        running.max = max;
        for (sums, keep) in sums.chunks_exact_mut(hd).zip(keep) {
            if keep != 1.0 {
                sums.iter_mut().for_each(|sum| *sum *= keep);
            }
        }
    }
}

/// [`crate::math::tree_16`] of every column.
#[inline(always)]
fn tree_rows(x: &[[f32; PAGE]; PAGE], join: impl Fn(f32, f32) -> f32) -> [f32; PAGE] {
    let mut tree = *x;
    for half in [8, 4, 2, 1] {
        for t in 0..half {
            for r in 0..PAGE {
                tree[t][r] = join(tree[t][r], tree[t + half][r]);
            }
        }
    }
    tree[0]
}
