//! Pages, and what a row sees of them.

use std::ops::Range;

/// Positions in a page.
pub const PAGE: usize = 16;
/// Largest head dimension.
pub const HEAD_DIM_MAX: usize = 256;
/// Query heads of one KV head that are computed together.
pub(super) const GROUP: usize = 4;

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
    pub(super) fn pages_seen(&self) -> impl Iterator<Item = (&'a [f32], Range<usize>)> + use<'a> {
        let Self { pages, from, len } = *self;
        let pages = pages.iter().enumerate().take(len.div_ceil(PAGE)).skip(from / PAGE);
        pages.map(move |(p, page)| (*page, from.saturating_sub(p * PAGE)..PAGE.min(len - p * PAGE)))
    }
}
