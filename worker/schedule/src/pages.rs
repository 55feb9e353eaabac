//! How many pages of KV cache there are and who has them.
//!
//! The unit is a page of one layer: 16 positions of keys and values. A segment of `l` layers takes `l` pages at a time; layers that slide over a window give
//! those back that no row sees any more.

use std::collections::BTreeMap;

use dunlin_protocol::frame::PAGE_POSITIONS;
use dunlin_protocol::{SessionId, Windows};
use dunlin_swarm::{Layers, Position};

const PAGE: usize = PAGE_POSITIONS as usize;

/// Whose KV cache.
pub type SegmentKey = (SessionId, Layers);

/// There are not enough pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPages;

/// Counts pages; the memory itself is the executor's.
#[derive(Clone, Debug, Default)]
pub struct PageTable {
    total: usize,
    used: usize,
    windows: Windows,
    segments: BTreeMap<SegmentKey, Held>,
}

/// What a segment has.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Pages per layer, those that were given back among them.
    pages: usize,
    /// The most positions that it has had: what is behind the windows of layers goes by it, and was given back.
    reached: Position,
}

impl PageTable {
    /// `total` pages, all free.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self { total, ..Self::default() }
    }

    /// The same for a model whose layers keep this of a sequence.
    #[must_use]
    pub fn with_windows(self, windows: Windows) -> Self {
        Self { windows, ..self }
    }

    /// There are `total` pages from now on. Those in use beyond that stay until they are given back.
    pub fn resize(&mut self, total: usize) {
        self.total = total;
    }

    /// Pages in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total.max(self.used)
    }

    /// Pages nobody has.
    #[must_use]
    pub fn free(&self) -> usize {
        self.total.saturating_sub(self.used)
    }

    fn held(&self, key: &SegmentKey) -> Held {
        self.segments.get(key).copied().unwrap_or_default()
    }

    /// Pages per layer that a segment has, with those that were given back.
    #[must_use]
    pub fn of(&self, key: &SegmentKey) -> usize {
        self.held(key).pages
    }

    /// Pages of a segment, from the first, that `layer` has given back.
    #[must_use]
    pub fn behind(&self, key: &SegmentKey, layer: u32) -> usize {
        let Held { pages, reached } = self.held(key);
        (self.windows.behind(layer, reached) as usize).min(pages)
    }

    /// Pages of all layers that a segment has in truth.
    fn taken(&self, key: &SegmentKey) -> usize {
        let pages = self.of(key);
        key.1.iter().map(|layer| pages - self.behind(key, layer)).sum()
    }

    /// Positions that a segment can have with `free` more pages.
    #[must_use]
    pub fn reach(&self, key: &SegmentKey, free: usize) -> usize {
        (self.of(key) + free / (key.1.len() as usize).max(1)) * PAGE
    }

    /// Pages that a segment lacks for `positions` positions.
    #[must_use]
    pub fn lacking(&self, key: &SegmentKey, positions: usize) -> usize {
        positions.div_ceil(PAGE).saturating_sub(self.of(key)) * key.1.len() as usize
    }

    /// Gives a segment room for `positions` positions; returns how many pages per layer were added.
    ///
    /// # Errors
    /// When there are too few; nothing has changed then.
    pub fn grow(&mut self, key: SegmentKey, positions: usize) -> Result<usize, NoPages> {
        let have = self.of(&key);
        let more = positions.div_ceil(PAGE).saturating_sub(have);
        let pages = self.lacking(&key, positions);
        if pages > self.free() {
            return Err(NoPages);
        }
        self.used += pages;
        if have + more > 0 {
            self.segments.entry(key).or_default().pages = have + more;
        }
        Ok(more)
    }

    /// A segment has `positions` positions: gives back what no later row of it sees, of each layer up to [`PageTable::behind`].
    pub fn advance(&mut self, key: SegmentKey, positions: Position) {
        let before = self.taken(&key);
        if let Some(held) = self.segments.get_mut(&key) {
            held.reached = held.reached.max(positions);
        }
        self.used -= before - self.taken(&key);
    }

    /// Leaves a segment room for `positions` positions; returns how many pages per layer it keeps: none if rows from there on would see what was
    /// given back.
    pub fn shrink(&mut self, key: SegmentKey, positions: usize) -> usize {
        let Held { pages, reached } = self.held(&key);
        let to = Position::try_from(positions).unwrap_or(Position::MAX);
        let is_there = self.windows.can_cut(key.1, reached, to);
        let keep = if is_there { positions.div_ceil(PAGE).min(pages) } else { 0 };
        let before = self.taken(&key);
        if keep == 0 {
            self.segments.remove(&key);
        } else if let Some(held) = self.segments.get_mut(&key) {
            held.pages = keep;
        }
        self.used -= before - self.taken(&key);
        keep
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dunlin_protocol::{SessionId, Windows};
    use dunlin_swarm::Layers;
    use proptest::prelude::*;

    use super::{NoPages, PageTable};

    fn key(session: u64, layers: u32) -> super::SegmentKey {
        (SessionId(session), Layers::new(0, layers))
    }

    #[test]
    fn pages_are_taken_as_rows_arrive_and_given_back() {
        let mut table = PageTable::new(10);
        assert_eq!(table.grow(key(1, 3), 16), Ok(1));
        assert_eq!(table.grow(key(1, 3), 16), Ok(0));
        assert_eq!(table.grow(key(1, 3), 33), Ok(2));
        assert_eq!(table.free(), 1);
        assert_eq!(table.grow(key(2, 2), 1), Err(NoPages));
        assert_eq!(table.shrink(key(1, 3), 17), 2);
        assert_eq!(table.grow(key(2, 2), 1), Ok(1));
        assert_eq!(table.shrink(key(1, 3), 0), 0);
        table.shrink(key(2, 2), 0);
        assert_eq!(table.free(), 10);
    }

    #[test]
    fn fewer_pages_than_are_in_use_become_so_few_as_they_are_given_back() {
        let mut table = PageTable::new(10);
        assert_eq!(table.grow(key(1, 2), 64), Ok(4));
        table.resize(5);
        assert_eq!((table.total(), table.free()), (8, 0));
        assert_eq!(table.grow(key(2, 1), 1), Err(NoPages));
        table.shrink(key(1, 2), 32);
        assert_eq!((table.total(), table.free()), (5, 1));
        table.resize(20);
        assert_eq!((table.total(), table.free()), (20, 16));
    }

    #[test]
    fn layers_that_slide_give_back_what_no_row_sees_any_more() {
        let windows = Windows::new([Some(64), None, Some(64)]);
        let mut table = PageTable::new(1000).with_windows(windows.clone());
        let (whole, sliding) = (key(1, 3), (SessionId(2), Layers::new(2, 3)));
        for reached in 1..=2000 {
            for key in [whole, sliding] {
                table.grow(key, reached as usize).unwrap();
                table.advance(key, reached);
            }
        }
        // 2000 - 64 - 256 positions are behind the window and what is kept before it: 105 pages of 125.
        assert_eq!([0, 1, 2].map(|layer| table.behind(&whole, layer)), [105, 0, 105]);
        assert_eq!(table.free(), 1000 - (125 + 2 * 20) - 20);
        assert_eq!(table.shrink(whole, 1800), 113);
        assert_eq!(table.free(), 1000 - (113 + 2 * 8) - 20);
        table.advance(whole, 1800);
        assert_eq!(table.behind(&whole, 0), 105, "what is gone is not there again");
        assert_eq!(table.shrink(whole, 1700), 0, "rows from there on would see what is gone");
        assert_eq!(table.shrink(sliding, 0), 0);
        assert_eq!(table.free(), 1000);
    }

    proptest! {
        #[test]
        fn the_count_is_always_that_of_the_segments(
            steps in prop::collection::vec((0..4u64, 1..5u32, 0..100usize, any::<bool>()), 1..200),
        ) {
            let mut table = PageTable::new(40);
            let mut model: BTreeMap<_, usize> = BTreeMap::new();
            for (session, layers, positions, grow) in steps {
                let key = key(session, layers);
                let have = model.get(&key).copied().unwrap_or(0);
                if grow {
                    if table.grow(key, positions).is_ok() {
                        model.insert(key, have.max(positions.div_ceil(16)));
                    }
                } else {
                    table.shrink(key, positions);
                    model.insert(key, have.min(positions.div_ceil(16)));
                }
                let used: usize = model.iter().map(|(key, pages)| key.1.len() as usize * pages).sum();
                prop_assert_eq!(table.free() + used, 40);
                prop_assert!(used <= 40);
            }
        }
    }
}
