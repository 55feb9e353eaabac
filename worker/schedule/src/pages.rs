//! How many pages of KV cache there are and who has them.
//!
//! The unit is a page of one layer: 16 positions of keys and values. A segment of `l` layers takes `l` pages at a time.

use std::collections::BTreeMap;

use dunlin_protocol::SessionId;
use dunlin_protocol::frame::PAGE_POSITIONS;
use dunlin_swarm::Layers;

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
    segments: BTreeMap<SegmentKey, usize>,
}

impl PageTable {
    /// `total` pages, all free.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self { total, ..Self::default() }
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

    /// Pages per layer that a segment has.
    #[must_use]
    pub fn of(&self, key: &SegmentKey) -> usize {
        self.segments.get(key).copied().unwrap_or(0)
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
            self.segments.insert(key, have + more);
        }
        Ok(more)
    }

    /// Leaves a segment room for `positions` positions; returns how many pages per layer it keeps.
    pub fn shrink(&mut self, key: SegmentKey, positions: usize) -> usize {
        let have = self.of(&key);
        let keep = positions.div_ceil(PAGE).min(have);
        self.used -= (have - keep) * key.1.len() as usize;
        if keep == 0 {
            self.segments.remove(&key);
        } else {
            self.segments.insert(key, keep);
        }
        keep
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dunlin_protocol::SessionId;
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
