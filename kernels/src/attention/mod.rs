//! Attention of query rows over KV pages of 16 positions, page by page with an online softmax (Milakov and Gimelshein 2018).
//!
//! One page of one layer is a slice `K [kv_heads][hd][16]` followed by `V [kv_heads][16][hd]`. Positions are aligned to pages from 0, so the
//! order of additions depends on the position alone. Positions at or beyond a row's length are skipped, never multiplied by zero:
//! what lies there does not matter.
//!
//! Every 256 positions are a segment with a softmax of its own, and segments are merged in order. So a few long rows are divided among the threads by
//! segments, and many rows by rows, with the same bits.

pub(crate) mod merge;
mod pages;
pub mod reference;
mod row;

pub use row::{AttentionRow, HEAD_DIM_MAX, PAGE, SEGMENT};

use crate::buffer::Buffer;
use crate::isa::vectorised;
use crate::pool::{Pool, Shards};
use merge::{Softmax, add_shares};

/// Values in one layer's page.
#[must_use]
pub fn page_len(kv_heads: usize, head_dim: usize) -> usize {
    2 * kv_heads * head_dim * PAGE
}

/// Puts key and value of one position into `slot` of a page.
///
/// # Panics
/// When the lengths do not fit.
pub fn write_kv(page: &mut [f32], slot: usize, k: &[f32], v: &[f32], kv_heads: usize, head_dim: usize) {
    assert!(
        slot < PAGE && page.len() == page_len(kv_heads, head_dim),
        "write_kv: slot {slot}, {} values",
        page.len()
    );
    assert!(
        k.len() == kv_heads * head_dim && v.len() == k.len(),
        "write_kv: {} and {} values",
        k.len(),
        v.len()
    );
    let (keys, values) = page.split_at_mut(kv_heads * head_dim * PAGE);
    for (i, k) in k.iter().enumerate() {
        keys[i * PAGE + slot] = *k;
    }
    for (head, v) in v.chunks_exact(head_dim).enumerate() {
        values[(head * PAGE + slot) * head_dim..][..head_dim].copy_from_slice(v);
    }
}

/// The heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Of queries.
    pub heads: usize,
    /// Of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of each, a multiple of 8 up to 256.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
}

impl Heads {
    /// With scores divided by the root of the width (Vaswani et al. 2017).
    #[must_use]
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() }
    }
}

/// `out[row] = softmax(q K^T * scale) V` for every row and head; `q` and `out` are `rows * heads * hd`.
///
/// # Panics
/// When lengths do not fit, `hd` is not a multiple of 8 or above 256, or a row sees nothing or has fewer pages than its length needs.
pub fn attention(pool: &Pool, q: &[f32], rows: &[AttentionRow<'_>], heads: Heads, out: &mut [f32]) {
    let Heads { heads, kv_heads, head_dim, scale } = heads;
    let width = heads * head_dim;
    assert!(head_dim.is_multiple_of(8) && head_dim <= HEAD_DIM_MAX, "attention: head dimension {head_dim}");
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "attention: {heads} heads, {kv_heads} KV heads");
    assert!(
        q.len() == rows.len() * width && out.len() == q.len(),
        "attention: {} rows of {width}",
        rows.len()
    );
    for row in rows {
        assert!(
            row.from < row.len && row.pages.len() * PAGE >= row.len,
            "attention: {} pages for {}..{}",
            row.pages.len(),
            row.from,
            row.len
        );
        assert!(
            row.pages[row.from / PAGE..].iter().all(|p| p.len() == page_len(kv_heads, head_dim)),
            "attention: a page has another size"
        );
    }
    let shape = Heads { heads, kv_heads, head_dim, scale };
    let all = Rows { q, rows, shape };
    let most = rows.iter().map(|row| row.segments().len()).max().unwrap_or(0);
    // Rows and heads alone may leave threads without work where they are few.
    let are_few = pool.threads() > 1 && rows.len() * kv_heads < 4 * pool.threads();
    if are_few && most > 1 { all.by_segments(pool, out) } else { all.by_rows(pool, out) }
}

/// What is computed.
#[derive(Clone, Copy)]
struct Rows<'a> {
    q: &'a [f32],
    rows: &'a [AttentionRow<'a>],
    shape: Heads,
}

/// Segments of rows, before they are merged.
#[derive(Default)]
struct Segments {
    /// `[row and segment][heads * hd]`: weighted sums of values.
    sums: Buffer<f32>,
    /// `[row and segment][heads]`: maximum and sum.
    softmaxes: Buffer<Softmax>,
}

impl<'a> Rows<'a> {
    /// Some rows that see the same pages, and the query heads of one KV head. Their output goes to where the pointers say.
    fn group(
        &self,
        kv_head: usize,
        range: std::ops::Range<usize>,
        segments: std::ops::Range<usize>,
        out: *mut f32,
        softmax: *mut Softmax,
    ) -> pages::Group<'a> {
        let Heads { heads, kv_heads, head_dim, scale } = self.shape;
        let (width, group) = (heads * head_dim, heads / kv_heads);
        pages::Group {
            q: self.q[range.start * width + kv_head * group * head_dim..].as_ptr(),
            rows: &self.rows[range],
            heads: group,
            segments: (segments.start, segments.end),
            out,
            softmax,
            row: width,
            keys: kv_head * head_dim * PAGE,
            values: (kv_heads + kv_head) * head_dim * PAGE,
            head_dim,
            scale,
        }
    }

    /// The threads divide rows and heads.
    fn by_rows(&self, pool: &Pool, out: &mut [f32]) {
        let Self { rows, shape: Heads { heads, kv_heads, head_dim, .. }, .. } = *self;
        let isa = pages::isa(pool.isa(), head_dim);
        let (width, group) = (heads * head_dim, heads / kv_heads);
        let out = Shards::new(out);
        // The rows of one head, then those of the next one.
        pool.split(rows.len() * kv_heads, &|items| {
            let mut item = items.start;
            while item < items.end {
                let (kv_head, r) = (item / rows.len(), item % rows.len());
                let rest = &rows[r..rows.len().min(r + items.end - item)];
                let together = rest.iter().take_while(|row| row.sees_pages_of(&rest[0])).count();
                let to = out.at(r * width + kv_head * group * head_dim);
                let all = self.group(kv_head, r..r + together, rest[0].segments(), to, std::ptr::null_mut());
                for part in all.parts(isa) {
                    // SAFETY: the pool has these instructions. The lengths are those of the assertions of `attention`, and (row, head) of different items
                    // do not overlap.
                    unsafe { part.run(isa) };
                }
                item += together;
            }
        });
    }

    /// The threads divide segments of rows, too.
    fn by_segments(&self, pool: &Pool, out: &mut [f32]) {
        let Self { rows, shape: Heads { heads, kv_heads, head_dim, .. }, .. } = *self;
        let isa = pages::isa(pool.isa(), head_dim);
        let (width, group) = (heads * head_dim, heads / kv_heads);
        let count: usize = rows.iter().map(|row| row.segments().len()).sum();
        let mut buffers = pool.lend::<Segments>();
        let Segments { sums, softmaxes } = &mut *buffers;
        sums.ensure(count * width);
        softmaxes.ensure(count * heads);
        let (all_sums, all_softmaxes) = (Shards::new(&mut sums[..]), Shards::new(&mut softmaxes[..]));
        pool.split(count * kv_heads, &|items| {
            for item in items {
                let (kv_head, index) = (item / count, item % count);
                let (r, segment) = self.segment(index);
                let to = all_sums.at(index * width + kv_head * group * head_dim);
                let softmax = all_softmaxes.at(index * heads + kv_head * group);
                let all = self.group(kv_head, r..r + 1, segment..segment + 1, to, softmax);
                for part in all.parts(isa) {
                    // SAFETY: as in `by_rows`; (segment, head) of different items do not overlap.
                    unsafe { part.run(isa) };
                }
            }
        });
        let mut first = 0;
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            let last = first + row.segments().len();
            let (sums, softmaxes) =
                (&sums[first * width..last * width], &softmaxes[first * heads..last * heads]);
            merge_row(pool.isa(), sums, softmaxes, heads, out);
            first = last;
        }
    }

    /// The row and the number of the segment that come at `index`, if all segments of a row stand one after the other, row by row.
    fn segment(&self, mut index: usize) -> (usize, usize) {
        for (r, row) in self.rows.iter().enumerate() {
            let segments = row.segments();
            if index < segments.len() {
                return (r, segments.start + index);
            }
            index -= segments.len();
        }
        unreachable!("as many segments are computed as the rows have")
    }
}

vectorised! {
    /// The output of a row from its segments: `sums` is `[segment][heads * hd]`, and `softmaxes` `[segment][heads]`.
    fn merge_row(sums: &[f32], softmaxes: &[Softmax], heads: usize, out: &mut [f32]) {
        let (width, head_dim) = (out.len(), out.len() / heads);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let sums_of = |segment: usize| &sums[segment * width + head * head_dim..][..head_dim];
            let mut total = softmaxes[head];
            out.copy_from_slice(sums_of(0));
            for (segment, softmaxes) in softmaxes.chunks_exact(heads).enumerate().skip(1) {
                let share = total.merge(softmaxes[head]);
                add_shares(out, sums_of(segment), share);
            }
            let inverse = 1.0 / total.sum;
            out.iter_mut().for_each(|out| *out *= inverse);
        }
    }
}
