//! Some queries that see the same pages and share a KV head against those pages, over lanes: each value of a page is loaded once for all of them.
//!
//! Queries are heads of a row, and of the rows behind it.

use std::ops::Range;

use super::merge::{Softmax, add_shares};
use super::row::{AttentionRow, HEAD_DIM_MAX, HEADS, PAGE};
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2, Avx512};
use crate::lanes::{Portable, SoftmaxLanes, compiled};
use crate::math::exp_lane;

/// Rows that see parts of the same pages, and some heads of each.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) rows: &'a [AttentionRow<'a>],
    /// Of every row, the same ones.
    pub(super) heads: usize,
    /// The first head of the first row; the others behind it.
    pub(super) q: *const f32,
    /// The segments to compute: all that the rows see, or one of them.
    pub(super) segments: (usize, usize),
    /// Where the output of the first head of the first row begins; or sums that are not divided yet, if there is a place for the `softmax` of each.
    pub(super) out: *mut f32,
    /// For every head of a row, as the output is; null if the output is to be whole.
    pub(super) softmax: *mut Softmax,
    /// Values from a row to the next one.
    pub(super) row: usize,
    /// Where the keys of the KV head begin in a page.
    pub(super) keys: usize,
    /// Where its values do.
    pub(super) values: usize,
    /// A multiple of 8, up to [`HEAD_DIM_MAX`].
    pub(super) head_dim: usize,
    pub(super) scale: f32,
}

/// The instructions for heads of this width: sixteen lanes, if they fill the width.
pub(super) fn isa(isa: Isa, head_dim: usize) -> Isa {
    if isa == Isa::Avx512 && !head_dim.is_multiple_of(16) { Isa::Avx2 } else { isa }
}

/// The most queries that are computed together: enough sums to keep the units busy that multiply, and no more than fit the registers.
fn queries_max(isa: Isa) -> usize {
    match isa {
        Isa::Scalar => 4,
        Isa::Avx2 => 6,
        Isa::Avx512 => 12,
    }
}

/// What a page counts: the weights of its positions, and what sums over the pages before it are multiplied by.
struct Weights<const G: usize> {
    weights: [[f32; PAGE]; G],
    keep: [f32; G],
}

/// Functions for these lanes, of which `registers` hold the positions of a page: for so many queries.
macro_rules! queries {
    ($isa:ident, $lanes:ident, $registers:literal, [$($queries:literal),*]) => {
        /// # Safety
        /// The machine has the instructions; otherwise as [`Group::attend`].
        unsafe fn $isa(group: &Group<'_>) {
            compiled! { $isa,
                unsafe fn run<const G: usize>(group: &Group<'_>) {
                    // SAFETY: promised.
                    unsafe { group.attend::<$lanes, G, $registers>($lanes::new()) }
                }
            }
            // SAFETY: promised.
            unsafe {
                match group.queries() {
                    $($queries => run::<$queries>(group),)*
                    queries => unreachable!("no groups of {queries} queries"),
                }
            }
        }
    };
}

queries!(portable, Portable, 2, [1, 2, 3, 4]);
#[cfg(target_arch = "x86_64")]
queries!(avx2, Avx2, 2, [1, 2, 3, 4, 5, 6]);
#[cfg(target_arch = "x86_64")]
queries!(avx512, Avx512, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

impl<'a> Group<'a> {
    fn queries(&self) -> usize {
        self.rows.len() * self.heads
    }

    /// The same in groups that can be computed together.
    pub(super) fn parts(&self, isa: Isa) -> impl Iterator<Item = Group<'a>> {
        let Self { rows, heads, .. } = *self;
        (0..heads).step_by(HEADS).flat_map(move |head| {
            let heads = HEADS.min(heads - head);
            let count = queries_max(isa) / heads;
            rows.chunks(count).enumerate().map(move |(i, rows)| {
                let skip = i * count * self.row + head * self.head_dim;
                Group {
                    rows,
                    heads,
                    q: self.q.wrapping_add(skip),
                    out: self.out.wrapping_add(skip),
                    softmax: if self.softmax.is_null() {
                        self.softmax
                    } else {
                        self.softmax.wrapping_add(skip / self.head_dim)
                    },
                    ..*self
                }
            })
        })
    }

    /// Sets the output.
    ///
    /// # Safety
    /// The rows have pages for their lengths, each with keys and values of this KV head, and queries and output have values for all of them; nobody else uses that
    /// output. It is one of the [`parts`](Self::parts) for these instructions, and the machine has the instructions.
    pub(super) unsafe fn run(&self, isa: Isa) {
        debug_assert!(self.heads <= HEADS && self.head_dim <= HEAD_DIM_MAX);
        // SAFETY: promised.
        unsafe {
            match isa {
                Isa::Scalar => portable(self),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2(self),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512(self),
                #[cfg(not(target_arch = "x86_64"))]
                _ => portable(self),
            }
        }
    }

    /// # Safety
    /// As [`Self::run`]; the group has `G` queries.
    #[inline(always)]
    unsafe fn attend<L: SoftmaxLanes, const G: usize, const H: usize>(&self, lanes: L) {
        const { assert!(H * L::WIDTH == PAGE) };
        let width = self.head_dim;
        // Value `d` of every query, then the next one.
        let mut q = [[0f32; G]; HEAD_DIM_MAX];
        for g in 0..G {
            for (d, q) in q.iter_mut().enumerate().take(width) {
                // SAFETY: promised.
                q[g] = unsafe { *self.q.add(self.at(g) + d) };
            }
        }
        // Weighted sums of values, not yet divided.
        let mut sums = [[0f32; HEAD_DIM_MAX]; G];
        // SAFETY: promised.
        let mut totals = unsafe { self.segment::<L, G, H>(lanes, self.segments.0, &q, &mut sums) };
        if self.segments.1 > self.segments.0 + 1 {
            // SAFETY: promised.
            unsafe { self.merge_others::<L, G, H>(lanes, &q, &mut totals, &mut sums) };
        }
        for g in 0..G {
            let inverse = if self.softmax.is_null() { 1.0 / totals[g].sum } else { 1.0 };
            for d in 0..width {
                // SAFETY: promised.
                unsafe { *self.out.add(self.at(g) + d) = sums[g][d] * inverse };
            }
            if !self.softmax.is_null() {
                // SAFETY: promised.
                unsafe { self.softmax.add(self.at(g) / width).write(totals[g]) };
            }
        }
    }

    /// Goes on with all segments but the first.
    ///
    /// # Safety
    /// As [`Self::attend`].
    #[inline(always)]
    unsafe fn merge_others<L: SoftmaxLanes, const G: usize, const H: usize>(
        &self,
        lanes: L,
        q: &[[f32; G]; HEAD_DIM_MAX],
        totals: &mut [Softmax; G],
        sums: &mut [[f32; HEAD_DIM_MAX]; G],
    ) {
        let width = self.head_dim;
        let mut next_sums = [[0f32; HEAD_DIM_MAX]; G];
        for segment in self.segments.0 + 1..self.segments.1 {
            next_sums.iter_mut().for_each(|sums| sums[..width].fill(0.0));
            // SAFETY: promised.
            let next = unsafe { self.segment::<L, G, H>(lanes, segment, q, &mut next_sums) };
            for g in 0..G {
                let share = totals[g].merge(next[g]);
                add_shares(&mut sums[g][..width], &next_sums[g][..width], share);
            }
        }
    }

    /// One segment: adds to the weighted sums of values, which are zero.
    ///
    /// # Safety
    /// As [`Self::attend`].
    #[inline(always)]
    unsafe fn segment<L: SoftmaxLanes, const G: usize, const H: usize>(
        &self,
        lanes: L,
        segment: usize,
        q: &[[f32; G]; HEAD_DIM_MAX],
        sums: &mut [[f32; HEAD_DIM_MAX]; G],
    ) -> [Softmax; G] {
        let width = self.head_dim;
        let mut running = [Softmax::NOTHING; G];
        let mut weights = Weights { weights: [[0.0; PAGE]; G], keep: [1.0; G] };
        for (p, page) in self.rows[0].pages_seen(segment) {
            let mut seen = [const { 0..0 }; G];
            for g in 0..G {
                seen[g] = self.rows[g / self.heads].seen(p);
            }
            // SAFETY: promised.
            unsafe {
                let scores = scores::<L, G, H>(lanes, &q[..width], page.as_ptr().add(self.keys));
                weigh(lanes, self.scale, scores, &seen, &mut running, &mut weights);
                add_values(lanes, width, page.as_ptr().add(self.values), &weights, &seen, sums);
            }
        }
        running
    }

    /// Where query `g` begins.
    #[inline(always)]
    fn at(&self, g: usize) -> usize {
        g / self.heads * self.row + g % self.heads * self.head_dim
    }
}

/// Scores of the positions of a page, not yet scaled.
///
/// # Safety
/// A page of keys begins at `keys`, with a value for each of `q`.
#[inline(always)]
unsafe fn scores<L: SoftmaxLanes, const G: usize, const H: usize>(
    lanes: L,
    q: &[[f32; G]],
    keys: *const f32,
) -> [[L::Floats; H]; G] {
    let mut scores = [[lanes.zero(); H]; G];
    for (d, q) in q.iter().enumerate() {
        // SAFETY: promised.
        unsafe {
            let mut k = [lanes.zero(); H];
            for h in 0..H {
                k[h] = lanes.load(keys.add(d * PAGE + h * L::WIDTH));
            }
            for g in 0..G {
                let q = lanes.all(q[g]);
                for h in 0..H {
                    scores[g][h] = lanes.fma(q, k[h], scores[g][h]);
                }
            }
        }
    }
    scores
}

/// A step of the online softmax: sets `out`, and goes on with maxima and sums.
#[inline(always)]
fn weigh<L: SoftmaxLanes, const G: usize, const H: usize>(
    lanes: L,
    scale: f32,
    mut scores: [[L::Floats; H]; G],
    seen: &[Range<usize>; G],
    running: &mut [Softmax; G],
    out: &mut Weights<G>,
) {
    for g in 0..G {
        for h in 0..H {
            let scaled = lanes.mul(scores[g][h], lanes.all(scale));
            scores[g][h] = lanes.seen(scaled, h * L::WIDTH, &seen[g]);
        }
        let mut page_max = scores[g][0];
        for h in 1..H {
            page_max = lanes.max(page_max, scores[g][h]);
        }
        let page_max = lanes.largest(page_max);
        let Softmax { max, sum } = &mut running[g];
        let new_max = if page_max > *max { page_max } else { *max };
        out.keep[g] = if new_max == *max { 1.0 } else { exp_lane(*max - new_max) };
        *max = new_max;
        let less = lanes.all(-new_max);
        let mut e_sum = lanes.zero();
        for h in 0..H {
            let e = lanes.exp(lanes.add(scores[g][h], less));
            e_sum = if h == 0 { e } else { lanes.add(e_sum, e) };
            // SAFETY: the registers have as many values as a page has positions.
            unsafe { lanes.store(out.weights[g].as_mut_ptr().add(h * L::WIDTH), e) };
        }
        *sum = sum.mul_add(out.keep[g], lanes.sum(e_sum));
    }
}

/// Goes on with the weighted sums of values, which have `width` values.
///
/// # Safety
/// A page of values begins at `values`.
#[inline(always)]
unsafe fn add_values<L: SoftmaxLanes, const G: usize>(
    lanes: L,
    width: usize,
    values: *const f32,
    Weights { weights, keep }: &Weights<G>,
    seen: &[Range<usize>; G],
    sums: &mut [[f32; HEAD_DIM_MAX]; G],
) {
    let start = seen.iter().fold(0, |all, seen| all.max(seen.start));
    let end = seen.iter().fold(PAGE, |all, seen| all.min(seen.end));
    let is_same = seen.iter().all(|seen| *seen == (start..end));
    // A value of a position that a query does not see is not multiplied by zero: it may be anything.
    for d in (0..width).step_by(L::WIDTH) {
        // SAFETY: d + WIDTH <= width <= HEAD_DIM_MAX, and t < PAGE.
        unsafe {
            let mut o = [lanes.zero(); G];
            for g in 0..G {
                o[g] = lanes.mul(lanes.load(sums[g].as_ptr().add(d)), lanes.all(keep[g]));
            }
            let values = values.add(d);
            if is_same {
                for t in start..end {
                    let v = lanes.load(values.add(t * width));
                    for g in 0..G {
                        o[g] = lanes.fma(lanes.all(weights[g][t]), v, o[g]);
                    }
                }
            } else {
                for g in 0..G {
                    for t in seen[g].clone() {
                        let v = lanes.load(values.add(t * width));
                        o[g] = lanes.fma(lanes.all(weights[g][t]), v, o[g]);
                    }
                }
            }
            for g in 0..G {
                lanes.store(sums[g].as_mut_ptr().add(d), o[g]);
            }
        }
    }
}
