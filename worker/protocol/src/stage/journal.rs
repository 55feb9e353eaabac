//! The rows a segment produced, kept for the day the next hop is lost.

use std::collections::VecDeque;

use dunlin_swarm::Position;

use crate::frame::RowData;

/// Output rows of contiguous positions `start..end`.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    start: Position,
    end: Position,
    hidden: usize,
    /// (first position, rows), contiguous.
    chunks: VecDeque<(Position, RowData)>,
}

impl Journal {
    /// An empty journal whose next row is that of position `at`.
    #[must_use]
    pub fn starting_at(at: Position, hidden: usize) -> Self {
        Self { start: at, end: at, hidden, chunks: VecDeque::new() }
    }

    /// First position kept.
    #[must_use]
    pub fn start(&self) -> Position {
        self.start
    }

    /// One past the last position kept.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes_of(self.end - self.start)
    }

    fn bytes_of(&self, rows: Position) -> usize {
        rows as usize * self.hidden * size_of::<f32>()
    }

    /// Adds the rows of positions from `self.end` on; others are not a continuation and are left out.
    pub fn push(&mut self, start: Position, rows: RowData) {
        if start != self.end || self.hidden == 0 {
            return;
        }
        self.end += (rows.len() / self.hidden) as Position;
        self.chunks.push_back((start, rows));
    }

    /// Forgets positions from `to` on.
    pub fn truncate(&mut self, to: Position) {
        if to >= self.end {
            return;
        }
        if to <= self.start {
            *self = Self::starting_at(to, self.hidden);
            return;
        }
        while self.chunks.back().is_some_and(|(start, _)| *start >= to) {
            self.chunks.pop_back();
        }
        if let Some((start, rows)) = self.chunks.back_mut() {
            *rows = rows.slice(0, (to - *start) as usize * self.hidden);
        }
        self.end = to;
    }

    /// Forgets positions before `to`; returns how many bytes that frees.
    pub fn forget_before(&mut self, to: Position) -> usize {
        let to = to.clamp(self.start, self.end);
        let freed = self.bytes_of(to - self.start);
        while let Some((start, rows)) = self.chunks.front_mut() {
            let count = (rows.len() / self.hidden) as Position;
            if *start + count <= to {
                self.chunks.pop_front();
                continue;
            }
            if *start < to {
                // A copy: what shares memory with the rows that go would keep it.
                let rest = rows.slice((to - *start) as usize * self.hidden, rows.len());
                (*start, *rows) = (to, RowData::new(rest.as_slice().to_vec()));
            }
            break;
        }
        self.start = to;
        freed
    }

    /// The rows of `from..to` as (first position, count, rows) of at most about `bytes_max` bytes each, or `None` when some are no longer
    /// there. Rows of many small chunks become one: nobody downstream should pay for how they were made.
    #[must_use]
    pub fn rows(
        &self,
        from: Position,
        to: Position,
        bytes_max: usize,
    ) -> Option<Vec<(Position, u32, RowData)>> {
        if from < self.start || to > self.end {
            return None;
        }
        let rows_max = (bytes_max / self.bytes_of(1).max(1)).max(1) as Position;
        let mut out = Vec::new();
        let mut parts: Vec<RowData> = Vec::new();
        let (mut at, mut gathered) = (from, 0);
        let first = self.chunks.partition_point(|(start, _)| *start <= from).saturating_sub(1);
        for (start, rows) in self.chunks.range(first..) {
            let end = (start + (rows.len() / self.hidden) as Position).min(to);
            while at < end {
                let taken = (end - at).min(rows_max - gathered);
                let offset = (at - start) as usize * self.hidden;
                parts.push(rows.slice(offset, offset + taken as usize * self.hidden));
                (at, gathered) = (at + taken, gathered + taken);
                if gathered == rows_max || at == to {
                    out.push((at - gathered, gathered, RowData::concat(&parts)));
                    parts.clear();
                    gathered = 0;
                }
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::Journal;
    use crate::frame::RowData;

    const ROW_BYTES: usize = 2 * 4;

    fn rows(from: u32, count: u32) -> RowData {
        RowData::new((from..from + count).flat_map(|p| [p as f32, -(p as f32)]).collect())
    }

    fn positions(journal: &Journal, from: u32, to: u32) -> Option<Vec<f32>> {
        let frames = journal.rows(from, to, usize::MAX)?;
        assert!(frames.len() <= 1, "small chunks travel together");
        Some(frames.iter().flat_map(|(_, _, r)| r.as_slice().iter().step_by(2).copied()).collect())
    }

    #[test]
    fn gives_back_what_was_pushed_across_chunks() {
        let mut journal = Journal::starting_at(0, 2);
        journal.push(0, rows(0, 3));
        journal.push(3, rows(3, 1));
        journal.push(4, rows(4, 2));
        assert_eq!(positions(&journal, 1, 5), Some(vec![1.0, 2.0, 3.0, 4.0]));
        assert_eq!(positions(&journal, 3, 4), Some(vec![3.0]));
        assert_eq!(positions(&journal, 2, 2), Some(vec![]));
        assert_eq!(positions(&journal, 0, 7), None);
        assert_eq!(journal.bytes(), 6 * ROW_BYTES);
    }

    #[test]
    fn a_thousand_rows_that_came_one_by_one_leave_in_frames_of_bounded_size() {
        let mut journal = Journal::starting_at(0, 2);
        (0..1000).for_each(|p| journal.push(p, rows(p, 1)));
        let frames = journal.rows(10, 1000, 256 * ROW_BYTES).unwrap();
        assert_eq!(
            frames.iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(),
            [(10, 256), (266, 256), (522, 256), (778, 222)]
        );
        let all: Vec<f32> = frames.iter().flat_map(|(_, _, r)| r.as_slice().to_vec()).collect();
        assert_eq!(all, rows(10, 990).as_slice());
        assert_eq!(journal.rows(0, 3, 1).unwrap().len(), 3, "at least one row a frame");
    }

    #[test]
    fn truncates_inside_a_chunk_and_goes_on() {
        let mut journal = Journal::starting_at(0, 2);
        journal.push(0, rows(0, 5));
        journal.truncate(2);
        assert_eq!((journal.start(), journal.end()), (0, 2));
        journal.push(5, rows(5, 1));
        assert_eq!(journal.end(), 2, "a gap is not a continuation");
        journal.push(2, rows(2, 2));
        assert_eq!(positions(&journal, 0, 4), Some(vec![0.0, 1.0, 2.0, 3.0]));
    }

    #[test]
    fn forgotten_rows_are_gone_but_new_ones_follow() {
        let mut journal = Journal::starting_at(0, 2);
        journal.push(0, rows(0, 4));
        assert_eq!(journal.forget_before(3), 3 * ROW_BYTES);
        assert_eq!(journal.bytes(), ROW_BYTES);
        assert_eq!((positions(&journal, 3, 4), positions(&journal, 2, 4)), (Some(vec![3.0]), None));
        assert_eq!(journal.forget_before(9), ROW_BYTES);
        journal.push(4, rows(4, 1));
        assert_eq!(positions(&journal, 4, 5), Some(vec![4.0]));
        assert_eq!(positions(&journal, 3, 5), None);
    }
}
