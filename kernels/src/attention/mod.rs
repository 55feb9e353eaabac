//! Attention of query rows over KV pages of 16 positions, page by page with an online softmax (Milakov and Gimelshein 2018).
//!
//! One page of one layer is a slice `K [kv_heads][hd][16]` followed by `V [kv_heads][16][hd]`. Positions are aligned to pages from 0, so the
//! order of additions depends on the position alone. Positions at or beyond a row's length are skipped, never multiplied by zero:
//! what lies there does not matter.

mod pages;
pub mod reference;
mod row;

pub use row::{AttentionRow, HEAD_DIM_MAX, PAGE};

use crate::pool::{Pool, Shards};

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
    let isa = pages::isa(pool.isa(), head_dim);
    let group = heads / kv_heads;
    let out = Shards::new(out);
    // The rows of one head, then those of the next one.
    pool.split(rows.len() * kv_heads, &|items| {
        let mut item = items.start;
        while item < items.end {
            let (kv_head, r) = (item / rows.len(), item % rows.len());
            let rest = &rows[r..rows.len().min(r + items.end - item)];
            let together = rest.iter().take_while(|row| row.sees_pages_of(&rest[0])).count();
            let all = pages::Group {
                rows: &rest[..together],
                heads: group,
                q: q[r * width + kv_head * group * head_dim..].as_ptr(),
                out: out.at(r * width + kv_head * group * head_dim),
                row: width,
                keys: kv_head * head_dim * PAGE,
                values: (kv_heads + kv_head) * head_dim * PAGE,
                head_dim,
                scale,
            };
            for part in all.parts(isa) {
                // SAFETY: the pool has these instructions. The lengths are those of the assertions above, and (row, head) of different items do not overlap.
                unsafe { part.run(isa) };
            }
            item += together;
        }
    });
}
