//! Which rows run next.
//!
//! Jobs of one segment run in order. A batch has rows of one layer range: first those of sequences that wait for their next token, oldest
//! first, then a part of one prompt, so that a long prompt delays tokens of others by one part at most.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dunlin_planner::{Layers, Position};
use dunlin_protocol::stage::{Input, Job};

use crate::pages::SegmentKey;

/// Jobs of at most this many rows count as waiting for a token.
pub(crate) const SHORT_ROWS: u32 = 4;

/// Rows of one job that run in this batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Whose.
    pub key: SegmentKey,
    /// Which try they belong to.
    pub attempt: u32,
    /// With which adapter, if any.
    pub adapter: Option<Arc<str>>,
    /// Position of the first row.
    pub start: Position,
    /// Number of rows.
    pub count: u32,
    /// What they are made from.
    pub input: Input,
    /// The last layers of the model are among them.
    pub last: bool,
    /// Set on the last part of a job that samples.
    pub sample: Option<dunlin_protocol::stage::SampleRequest>,
}

/// Bounds of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Rows of sequences that wait for a token.
    pub decode_rows: u32,
    /// Rows of a prompt.
    pub prefill_rows: u32,
}

/// Jobs that wait.
#[derive(Debug, Default)]
pub struct Scheduler {
    queues: BTreeMap<SegmentKey, VecDeque<(u64, Job)>>,
    arrivals: u64,
    rows: u32,
}

impl Scheduler {
    /// Takes a job; it runs after those of its segment that are here.
    pub fn push(&mut self, job: Job) {
        self.arrivals += 1;
        self.rows += job.count;
        self.queues.entry((job.session, job.layers)).or_default().push_back((self.arrivals, job));
    }

    /// Forgets the jobs of a segment.
    pub fn forget(&mut self, key: &SegmentKey) {
        if let Some(queue) = self.queues.remove(key) {
            self.rows -= queue.iter().map(|(_, job)| job.count).sum::<u32>();
        }
    }

    /// Rows that wait.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// The next batch; empty when nothing waits. `hidden` is the width of a row.
    pub fn next(&mut self, budget: Budget, hidden: usize) -> Vec<Part> {
        let mut short: Vec<(u64, SegmentKey)> = Vec::new();
        let mut long: Vec<(u64, SegmentKey)> = Vec::new();
        for (key, queue) in &self.queues {
            if let Some((arrival, job)) = queue.front() {
                if job.count <= SHORT_ROWS { &mut short } else { &mut long }.push((*arrival, *key));
            }
        }
        short.sort_unstable();
        long.sort_unstable();
        let Some(layers) = short.first().or(long.first()).map(|(_, key)| key.1) else { return Vec::new() };
        let mut parts = Vec::new();
        let mut rows = 0;
        for (_, key) in short.into_iter().filter(|(_, key)| key.1 == layers) {
            if rows >= budget.decode_rows {
                break;
            }
            let part = self.take(key, SHORT_ROWS, hidden);
            rows += part.as_ref().map_or(0, |p| p.count);
            parts.extend(part);
        }
        if let Some((_, key)) = long.into_iter().find(|(_, key)| key.1 == layers) {
            parts.extend(self.take(key, budget.prefill_rows.max(1), hidden));
        }
        parts
    }

    /// Takes up to `limit` rows off the first job of a segment.
    fn take(&mut self, key: SegmentKey, limit: u32, hidden: usize) -> Option<Part> {
        let queue = self.queues.get_mut(&key)?;
        let (_, job) = queue.front_mut()?;
        let count = job.count.min(limit);
        let (attempt, start, last) = (job.attempt, job.start, job.last);
        let adapter = job.adapter.clone();
        let whole = count == job.count;
        let (input, sample) = if whole {
            let (_, job) = queue.pop_front()?;
            (job.input, job.sample)
        } else {
            let input = split(&mut job.input, count as usize, hidden);
            job.start += count;
            job.count -= count;
            (input, None)
        };
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        self.rows -= count;
        Some(Part { key, attempt, adapter, start, count, input, last, sample })
    }
}

/// Takes the first `rows` rows off an input.
fn split(input: &mut Input, rows: usize, hidden: usize) -> Input {
    match input {
        Input::Tokens(tokens) => {
            let rest = tokens.split_off(rows);
            Input::Tokens(std::mem::replace(tokens, rest))
        }
        Input::Rows(data) => {
            let first = data.slice(0, rows * hidden);
            *data = data.slice(rows * hidden, data.len());
            Input::Rows(first)
        }
    }
}

/// The layers a batch runs through; all parts of a batch have the same.
#[must_use]
pub fn layers_of(parts: &[Part]) -> Layers {
    parts.first().map_or_else(Layers::default, |p| p.key.1)
}

#[cfg(test)]
mod tests {
    use dunlin_planner::Layers;
    use dunlin_protocol::SessionId;
    use dunlin_protocol::stage::{Input, Job};

    use super::{Budget, Scheduler};

    const BUDGET: Budget = Budget { decode_rows: 3, prefill_rows: 8 };

    fn job(session: u64, start: u32, count: u32) -> Job {
        Job {
            session: SessionId(session),
            attempt: 1,
            layers: Layers::new(0, 2),
            adapter: None,
            start,
            count,
            input: Input::Tokens((start..start + count).collect()),
            last: false,
            sample: None,
        }
    }

    fn batch(scheduler: &mut Scheduler) -> Vec<(u64, u32, u32)> {
        let parts = scheduler.next(BUDGET, 1);
        for part in &parts {
            let Input::Tokens(tokens) = &part.input else { panic!("tokens went in") };
            assert_eq!(*tokens, (part.start..part.start + part.count).collect::<Vec<_>>());
        }
        parts.iter().map(|p| (p.key.0.0, p.start, p.count)).collect()
    }

    #[test]
    fn a_long_prompt_delays_tokens_by_one_part_at_most() {
        let mut scheduler = Scheduler::default();
        scheduler.push(job(1, 0, 20));
        scheduler.push(job(2, 7, 1));
        assert_eq!(batch(&mut scheduler), [(2, 7, 1), (1, 0, 8)]);
        scheduler.push(job(2, 8, 1));
        assert_eq!(batch(&mut scheduler), [(2, 8, 1), (1, 8, 8)]);
        assert_eq!(batch(&mut scheduler), [(1, 16, 4)]);
        assert!(scheduler.is_empty() && scheduler.rows() == 0);
    }

    #[test]
    fn tokens_are_served_oldest_first_within_the_budget() {
        let mut scheduler = Scheduler::default();
        for session in [5, 3, 9, 1] {
            scheduler.push(job(session, 4, 1));
        }
        assert_eq!(batch(&mut scheduler), [(5, 4, 1), (3, 4, 1), (9, 4, 1)]);
        assert_eq!(batch(&mut scheduler), [(1, 4, 1)]);
    }

    #[test]
    fn jobs_of_a_segment_keep_their_order_and_can_be_forgotten() {
        let mut scheduler = Scheduler::default();
        scheduler.push(job(1, 0, 10));
        scheduler.push(job(1, 10, 1));
        assert_eq!(batch(&mut scheduler), [(1, 0, 8)]);
        assert_eq!(scheduler.rows(), 3);
        scheduler.forget(&(SessionId(1), Layers::new(0, 2)));
        assert!(scheduler.is_empty() && scheduler.rows() == 0);
        assert_eq!(batch(&mut scheduler), []);
    }

    #[test]
    fn a_batch_has_one_layer_range() {
        let mut scheduler = Scheduler::default();
        scheduler.push(job(1, 0, 1));
        let other = Job { layers: Layers::new(2, 4), ..job(2, 0, 1) };
        scheduler.push(other);
        assert_eq!(batch(&mut scheduler), [(1, 0, 1)]);
        assert_eq!(batch(&mut scheduler), [(2, 0, 1)]);
    }
}
