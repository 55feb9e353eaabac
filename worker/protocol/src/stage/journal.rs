//! The rows a segment produced, kept for the day the next hop is lost.

use dunlin_planner::Position;

use crate::frame::RowData;

/// Output rows of contiguous positions `start..end`.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    start: Position,
    end: Position,
    hidden: usize,
    /// (first position, rows), contiguous.
    chunks: Vec<(Position, RowData)>,
}

impl Journal {
    /// An empty journal whose next row is that of position `at`.
    #[must_use]
    pub fn starting_at(at: Position, hidden: usize) -> Self {
        Self { start: at, end: at, hidden, chunks: Vec::new() }
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
        (self.end - self.start) as usize * self.hidden * size_of::<f32>()
    }

    /// Adds the rows of positions from `self.end` on; others are not a continuation and are left out.
    pub fn push(&mut self, start: Position, rows: RowData) {
        if start != self.end || self.hidden == 0 {
            return;
        }
        self.end += (rows.len() / self.hidden) as Position;
        self.chunks.push((start, rows));
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
        self.chunks.retain(|(start, _)| *start < to);
        if let Some((start, rows)) = self.chunks.last_mut() {
            *rows = rows.slice(0, (to - *start) as usize * self.hidden);
        }
        self.end = to;
    }

    /// Forgets everything; the next row is still that of `end`.
    pub fn drop_rows(&mut self) {
        *self = Self::starting_at(self.end, self.hidden);
    }

    /// The rows of `from..to` as chunks, or `None` when some are no longer there.
    #[must_use]
    pub fn rows(&self, from: Position, to: Position) -> Option<Vec<(Position, u32, RowData)>> {
        if from < self.start || to > self.end {
            return None;
        }
        let mut out = Vec::new();
        for (start, rows) in &self.chunks {
            let end = start + (rows.len() / self.hidden) as Position;
            let (first, last) = (from.max(*start), to.min(end));
            if first < last {
                let part =
                    rows.slice((first - start) as usize * self.hidden, (last - start) as usize * self.hidden);
                out.push((first, last - first, part));
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::Journal;
    use crate::frame::RowData;

    fn rows(from: u32, count: u32) -> RowData {
        RowData::new((from..from + count).flat_map(|p| [p as f32, -(p as f32)]).collect())
    }

    fn positions(journal: &Journal, from: u32, to: u32) -> Option<Vec<f32>> {
        let chunks = journal.rows(from, to)?;
        Some(
            chunks
                .iter()
                .flat_map(|(_, _, r)| r.as_slice().iter().step_by(2).copied().collect::<Vec<_>>())
                .collect(),
        )
    }

    #[test]
    fn gives_back_what_was_pushed_across_chunks() {
        let mut journal = Journal::starting_at(0, 2);
        journal.push(0, rows(0, 3));
        journal.push(3, rows(3, 1));
        journal.push(4, rows(4, 2));
        assert_eq!(positions(&journal, 1, 5), Some(vec![1.0, 2.0, 3.0, 4.0]));
        assert_eq!(positions(&journal, 0, 7), None);
        assert_eq!(journal.bytes(), 6 * 2 * 4);
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
    fn dropped_rows_are_gone_but_new_ones_follow() {
        let mut journal = Journal::starting_at(0, 2);
        journal.push(0, rows(0, 4));
        journal.drop_rows();
        assert_eq!(journal.bytes(), 0);
        journal.push(4, rows(4, 1));
        assert_eq!(positions(&journal, 4, 5), Some(vec![4.0]));
        assert_eq!(positions(&journal, 3, 5), None);
    }
}
