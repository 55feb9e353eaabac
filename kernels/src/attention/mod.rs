//! Attention of query rows over KV pages of 16 positions, page by page with an online softmax (Milakov and Gimelshein 2018).
//!
//! One page of one layer is a slice `K [kv_heads][hd][16]` followed by `V [kv_heads][16][hd]`. Positions are aligned to pages from 0, so the
//! order of additions depends on the position alone. Positions at or beyond a row's length are skipped, never multiplied by zero:
//! what lies there does not matter.

pub mod reference;

use std::ops::Range;

use crate::isa::Isa;
use crate::math::exp;
use crate::pool::{Pool, Shards};

/// Positions in a page.
pub const PAGE: usize = 16;
/// Largest head dimension.
pub const HEAD_DIM_MAX: usize = 256;
/// Query heads of one KV head that are computed together.
const GROUP: usize = 4;

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

/// What one query row attends to.
#[derive(Clone, Copy)]
pub struct AttentionRow<'a> {
    /// Pages of its sequence in this layer, from position 0. What is in pages before the one with `from` is not looked at.
    pub pages: &'a [&'a [f32]],
    /// The first position it sees: 0 but for rows with a window.
    pub from: usize,
    /// The position behind the last that it sees, which is its own.
    pub len: usize,
}

impl<'a> AttentionRow<'a> {
    /// The pages with positions that it sees, and which of their slots those are.
    fn pages_seen(&self) -> impl Iterator<Item = (&'a [f32], Range<usize>)> + use<'a> {
        let Self { pages, from, len } = *self;
        let pages = pages.iter().enumerate().take(len.div_ceil(PAGE)).skip(from / PAGE);
        pages.map(move |(p, page)| (*page, from.saturating_sub(p * PAGE)..PAGE.min(len - p * PAGE)))
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
    let group = heads / kv_heads;
    let shards = Shards::new(out);
    pool.split(rows.len() * kv_heads, &|items| {
        for item in items {
            let (r, kv_head) = (item / kv_heads, item % kv_heads);
            for first in (0..group).step_by(GROUP) {
                let count = GROUP.min(group - first);
                let at = r * width + (kv_head * group + first) * head_dim;
                let q = &q[at..at + count * head_dim];
                // SAFETY: (row, head) ranges of different items do not overlap and lie inside of `out`.
                let out = unsafe { std::slice::from_raw_parts_mut(shards.at(at), count * head_dim) };
                one_group(pool.isa(), q, &rows[r], kv_head, kv_heads, head_dim, scale, out);
            }
        }
    });
}

fn one_group(
    isa: Isa,
    q: &[f32],
    row: &AttentionRow<'_>,
    kv_head: usize,
    kv_heads: usize,
    hd: usize,
    scale: f32,
    out: &mut [f32],
) {
    let keys = kv_head * hd * PAGE;
    let values = (kv_heads + kv_head) * hd * PAGE;
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the pool checked that this machine has AVX2 and FMA; `attention` checked the lengths.
        unsafe {
            match q.len() / hd {
                1 => avx2::group::<1>(q, row, keys, values, hd, scale, out),
                2 => avx2::group::<2>(q, row, keys, values, hd, scale, out),
                3 => avx2::group::<3>(q, row, keys, values, hd, scale, out),
                _ => avx2::group::<4>(q, row, keys, values, hd, scale, out),
            }
        }
        return;
    }
    let _ = isa;
    for (q, out) in q.chunks_exact(hd).zip(out.chunks_exact_mut(hd)) {
        one_head(q, row, keys, values, hd, scale, out);
    }
}

/// The specification: one query head, in plain loops.
fn one_head(
    q: &[f32],
    row: &AttentionRow<'_>,
    keys: usize,
    values: usize,
    hd: usize,
    scale: f32,
    out: &mut [f32],
) {
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0f32);
    out.fill(0.0);
    for (page, seen) in row.pages_seen() {
        let mut score = [0f32; PAGE];
        for (d, q) in q.iter().enumerate() {
            for (t, score) in score.iter_mut().enumerate() {
                *score = q.mul_add(page[keys + d * PAGE + t], *score);
            }
        }
        let mut new_max = max;
        for score in &mut score[seen.clone()] {
            *score *= scale;
            new_max = if *score > new_max { *score } else { new_max };
        }
        let mut weight = [0f32; PAGE];
        for t in seen.clone() {
            weight[t] = exp(score[t] - new_max);
        }
        let keep = if new_max == max { 1.0 } else { exp(max - new_max) };
        max = new_max;
        sum = sum.mul_add(keep, tree_sum(&weight));
        for (d, out) in out.iter_mut().enumerate() {
            let mut acc = *out * keep;
            for t in seen.clone() {
                acc = weight[t].mul_add(page[values + t * hd + d], acc);
            }
            *out = acc;
        }
    }
    let inverse = 1.0 / sum;
    for out in out {
        *out *= inverse;
    }
}

/// Halves added onto halves: 8, 4, 2, 1.
fn tree_sum(x: &[f32; PAGE]) -> f32 {
    let mut x = *x;
    let mut width = PAGE / 2;
    while width > 0 {
        for i in 0..width {
            x[i] += x[i + width];
        }
        width /= 2;
    }
    x[0]
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{AttentionRow, HEAD_DIM_MAX, PAGE};
    use crate::math::exp;
    use crate::softmax::exp_avx2;

    /// `G` query heads that share a KV head: each value of a page is loaded once for all of them.
    ///
    /// # Safety
    /// Needs AVX2 and FMA. `q` and `out` have `G * hd` values, `hd` is a multiple of 8 up to 256; the row has pages for its
    /// length, each with at least `values + 16 * hd` values, and `keys + 16 * hd` as well.
    #[target_feature(enable = "avx2,fma")]
    #[expect(clippy::too_many_lines, reason = "one pass over the pages, with its sums in registers")]
    pub(super) unsafe fn group<const G: usize>(
        q: &[f32],
        row: &AttentionRow<'_>,
        keys: usize,
        values: usize,
        hd: usize,
        scale: f32,
        out: &mut [f32],
    ) {
        let mut max = [f32::NEG_INFINITY; G];
        let mut sum = [0f32; G];
        let mut acc = [[0f32; HEAD_DIM_MAX]; G];
        let lane =
            [_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)];
        let minus_infinity = _mm256_set1_ps(f32::NEG_INFINITY);
        let q = q.as_ptr();
        for (page, seen) in row.pages_seen() {
            // SAFETY (whole block): offsets stay below the lengths promised above.
            unsafe {
                let k = page.as_ptr().add(keys);
                let v = page.as_ptr().add(values);
                let mut score = [[_mm256_setzero_ps(); 2]; G];
                for d in 0..hd {
                    let k0 = _mm256_loadu_ps(k.add(d * PAGE));
                    let k1 = _mm256_loadu_ps(k.add(d * PAGE + 8));
                    for g in 0..G {
                        let q = _mm256_set1_ps(*q.add(g * hd + d));
                        score[g][0] = _mm256_fmadd_ps(q, k0, score[g][0]);
                        score[g][1] = _mm256_fmadd_ps(q, k1, score[g][1]);
                    }
                }
                let (before, limit) =
                    (_mm256_set1_epi32(seen.start as i32 - 1), _mm256_set1_epi32(seen.end as i32));
                let mut weight = [[0f32; PAGE]; G];
                let mut keep = [1f32; G];
                for g in 0..G {
                    for h in 0..2 {
                        let scaled = _mm256_mul_ps(score[g][h], _mm256_set1_ps(scale));
                        let (below, above) =
                            (_mm256_cmpgt_epi32(limit, lane[h]), _mm256_cmpgt_epi32(lane[h], before));
                        let inside = _mm256_castsi256_ps(_mm256_and_si256(below, above));
                        score[g][h] = _mm256_blendv_ps(minus_infinity, scaled, inside);
                    }
                    let page_max = horizontal_max(_mm256_max_ps(score[g][0], score[g][1]));
                    let new_max = if page_max > max[g] { page_max } else { max[g] };
                    keep[g] = if new_max == max[g] { 1.0 } else { exp(max[g] - new_max) };
                    max[g] = new_max;
                    let shift = _mm256_set1_ps(new_max);
                    let e0 = exp_avx2(_mm256_sub_ps(score[g][0], shift));
                    let e1 = exp_avx2(_mm256_sub_ps(score[g][1], shift));
                    sum[g] = sum[g].mul_add(keep[g], tree_sum(_mm256_add_ps(e0, e1)));
                    _mm256_storeu_ps(weight[g].as_mut_ptr(), e0);
                    _mm256_storeu_ps(weight[g].as_mut_ptr().add(8), e1);
                }
                for d in (0..hd).step_by(8) {
                    let mut o = [_mm256_setzero_ps(); G];
                    for g in 0..G {
                        o[g] =
                            _mm256_mul_ps(_mm256_loadu_ps(acc[g].as_ptr().add(d)), _mm256_set1_ps(keep[g]));
                    }
                    for t in seen.clone() {
                        let v = _mm256_loadu_ps(v.add(t * hd + d));
                        for g in 0..G {
                            o[g] = _mm256_fmadd_ps(_mm256_set1_ps(weight[g][t]), v, o[g]);
                        }
                    }
                    for g in 0..G {
                        _mm256_storeu_ps(acc[g].as_mut_ptr().add(d), o[g]);
                    }
                }
            }
        }
        for g in 0..G {
            let inverse = 1.0 / sum[g];
            for d in 0..hd {
                out[g * hd + d] = acc[g][d] * inverse;
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn horizontal_max(x: __m256) -> f32 {
        let m4 = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
        _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)))
    }

    /// The tree of the specification, from its second level on.
    #[target_feature(enable = "avx2")]
    fn tree_sum(x: __m256) -> f32 {
        let a = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let b = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)))
    }
}
