//! Pages, and what a row sees of them.

use std::ops::Range;

/// Positions in a page.
pub const PAGE: usize = 16;
/// Positions that have a softmax of their own: segments begin at multiples of this, and are merged in order.
pub const SEGMENT: usize = 256;
/// Largest head dimension.
pub const HEAD_DIM_MAX: usize = 256;
/// Query heads of one KV head, and of one row, that are computed together.
pub(super) const HEADS: usize = 4;

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
    /// The numbers of the pages with positions that it sees.
    fn numbers(&self) -> Range<usize> {
        self.from / PAGE..self.len.div_ceil(PAGE)
    }

    /// The numbers of the segments with positions that it sees.
    pub(super) fn segments(&self) -> Range<usize> {
        self.from / SEGMENT..self.len.div_ceil(SEGMENT)
    }

    /// The pages of a segment with positions that it sees, with their numbers.
    #[inline(always)]
    pub(super) fn pages_seen(&self, segment: usize) -> impl Iterator<Item = (usize, &'a [f32])> + use<'a> {
        const PAGES: usize = SEGMENT / PAGE;
        let (pages, numbers) = (self.pages, self.numbers());
        let own = numbers.start.max(segment * PAGES)..numbers.end.min((segment + 1) * PAGES);
        own.map(move |p| (p, pages[p]))
    }

    /// The slots of page `p` that it sees.
    #[inline(always)]
    pub(super) fn seen(&self, p: usize) -> Range<usize> {
        self.from.saturating_sub(p * PAGE)..PAGE.min(self.len - p * PAGE)
    }

    /// Sees it parts of the same pages as `other`?
    pub(super) fn sees_pages_of(&self, other: &Self) -> bool {
        std::ptr::eq(self.pages, other.pages) && self.numbers() == other.numbers()
    }
}
