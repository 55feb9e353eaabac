//! Jobs that wait, and batches made of them.
//!
//! Jobs of one segment run in order, and what is contiguous runs together, however it arrived. A batch has rows of one layer range: first
//! steps of sequences that wait for their next token, in the order in which they came; then parts of replays, then of prompts, older
//! sessions first, until the budget is used. So a long prompt delays tokens of others by one part at most, and nobody who is first in
//! line is passed over by more than one batch of another layer range.
//!
//! Pages go to older sessions first. What does not fit waits here; a session that could go on only with pages of an older one never gets them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dunlin_protocol::stage::{Input, Line, SampleRequest, StageJob, Urgency};
use dunlin_protocol::windows::BATCH_ROWS;
use dunlin_swarm::{Layers, Position};

use crate::pages::{PageTable, SegmentKey};

/// Rows of one segment that run in this batch; none of a job without rows, which is refused when its turn comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The segment: a session and layers.
    pub key: SegmentKey,
    /// Which try they belong to.
    pub attempt: u32,
    /// With which adapter, if any.
    pub adapter: Option<Arc<str>>,
    /// Position of the first row.
    pub start: Position,
    /// Number of rows.
    pub count: u32,
    /// What they are made from, one behind the other.
    pub inputs: Vec<Input>,
    /// The last layers of the model are among them.
    pub last: bool,
    /// Sample from the last row.
    pub sample: Option<SampleRequest>,
}

/// Bounds of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Rows of sequences that wait for a token.
    pub step_rows: u32,
    /// Rows of replays and prompts.
    pub prefill_rows: u32,
    /// Replays and prompts that end with it, so that a token is sampled from their last row.
    pub prefill_ends: u32,
}

impl Budget {
    /// That of an engine. A step waits for no more rows of others than these.
    pub const ENGINE: Self = Self { step_rows: 64, prefill_rows: BATCH_ROWS, prefill_ends: 16 };

    /// Rows of a batch, at most.
    #[must_use]
    pub const fn rows(self) -> u32 {
        self.step_rows + self.prefill_rows
    }

    /// Rows of a batch that tokens are sampled from, at most.
    #[must_use]
    pub const fn sampled(self) -> u32 {
        self.step_rows + self.prefill_ends
    }
}

/// A segment whose jobs wait, for those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The segment.
    pub key: SegmentKey,
    /// Its place in the line.
    pub line: Line,
    /// Its place among those with the same.
    pub arrival: u64,
    /// Position of its first row.
    pub start: Position,
    /// Rows of its first job.
    pub first_rows: u32,
    /// Rows of all its jobs.
    pub rows: u32,
}

impl Waiting {
    /// Rows that it runs in a batch that has nobody else.
    #[must_use]
    pub fn wanted(&self, budget: Budget) -> u32 {
        match self.line.urgency {
            Urgency::Step => self.first_rows,
            Urgency::Replay | Urgency::Prompt => self.rows.min(budget.prefill_rows.max(1)),
        }
    }
}

/// Jobs that wait.
#[derive(Debug, Default)]
pub struct Scheduler {
    queues: BTreeMap<SegmentKey, Queue>,
    arrivals: u64,
    rows: u32,
    /// The layer range of whoever was first in line and not in the last batch.
    owed: Option<Layers>,
    starved: bool,
}

/// Jobs of one segment; never empty.
#[derive(Debug, Default)]
struct Queue {
    /// With the order of their arrival.
    jobs: VecDeque<(u64, StageJob)>,
    rows: u32,
}

/// A segment whose turn may have come.
struct Candidate {
    key: SegmentKey,
    line: Line,
    arrival: u64,
    /// Rows that may run: as many as wait, as there are pages for, and as a batch can have.
    rows: u32,
}

impl Scheduler {
    /// Takes a job; it runs after those of its segment that are here.
    pub fn push(&mut self, job: StageJob) {
        self.arrivals += 1;
        self.rows += job.count;
        let queue = self.queues.entry((job.session, job.layers)).or_default();
        queue.rows += job.count;
        queue.jobs.push_back((self.arrivals, job));
    }

    /// Forgets the jobs of a segment.
    pub fn forget(&mut self, key: &SegmentKey) {
        if let Some(queue) = self.queues.remove(key) {
            self.rows -= queue.rows;
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

    /// All segments whose jobs wait.
    pub fn waiting(&self) -> impl Iterator<Item = Waiting> + '_ {
        self.queues.iter().filter_map(|(key, queue)| {
            let (arrival, job) = queue.jobs.front()?;
            let (line, start, first_rows) = (job.line, job.start, job.count);
            Some(Waiting { key: *key, line, arrival: *arrival, start, first_rows, rows: queue.rows })
        })
    }

    /// The last batch was empty for lack of pages.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// The next batch; empty when nothing waits, or when there are no pages for anything that does. `hidden` is the width of a row.
    pub fn next(&mut self, budget: Budget, hidden: usize, pages: &PageTable) -> Vec<Part> {
        let candidates = self.candidates(budget, pages);
        self.starved = candidates.is_empty() && !self.is_empty();
        let (mut steps, mut long): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|c| c.line.urgency == Urgency::Step);
        steps.sort_unstable_by_key(|c| c.arrival);
        long.sort_unstable_by_key(|c| (c.line, c.arrival));
        let owed = self.owed.take().filter(|owed| steps.iter().chain(&long).any(|c| c.key.1 == *owed));
        let Some(layers) = owed.or_else(|| steps.first().or(long.first()).map(|c| c.key.1)) else {
            return Vec::new();
        };
        self.owed = long.first().map(|c| c.key.1).filter(|first| *first != layers);
        let mut parts = Vec::new();
        let all =
            [(steps, budget.step_rows, budget.step_rows), (long, budget.prefill_rows, budget.prefill_ends)];
        for (candidates, rows, ends) in all {
            let (mut left, mut ends) = (rows.max(1), ends.max(1));
            for candidate in candidates.into_iter().filter(|c| c.key.1 == layers) {
                if left == 0 || ends == 0 {
                    break;
                }
                let Some(part) = self.take(candidate.key, candidate.rows.min(left), hidden) else { continue };
                left -= part.count;
                ends -= u32::from(part.sample.is_some());
                parts.push(part);
            }
        }
        parts
    }

    /// Segments that can run, with how many rows. Older sessions take pages first, and whatever an older one lacks is not given to a younger.
    fn candidates(&self, budget: Budget, pages: &PageTable) -> Vec<Candidate> {
        let mut all: Vec<(Candidate, Position)> = self
            .waiting()
            .map(|w| {
                let rows = if w.first_rows == 0 { 0 } else { w.wanted(budget) };
                (Candidate { key: w.key, line: w.line, arrival: w.arrival, rows }, w.start)
            })
            .collect();
        all.sort_unstable_by_key(|(c, _)| (c.line.born_ms, c.key));
        let mut free = pages.free();
        all.retain_mut(|(candidate, start)| {
            // A job without rows needs no pages to be refused.
            if candidate.rows == 0 {
                return true;
            }
            let start = *start as usize;
            let reach = pages.reach(&candidate.key, free);
            let fits = reach.saturating_sub(start).min(candidate.rows as usize);
            if fits < candidate.rows as usize {
                // It takes what there is; nobody behind it takes more.
                free = 0;
            } else {
                free -= pages.lacking(&candidate.key, start + fits);
            }
            candidate.rows = fits as u32;
            fits > 0
        });
        all.into_iter().map(|(candidate, _)| candidate).collect()
    }

    /// Takes up to `limit` rows off the jobs of a segment, up to the end of the first that samples. A job without rows is a part of its own.
    fn take(&mut self, key: SegmentKey, limit: u32, hidden: usize) -> Option<Part> {
        let queue = self.queues.get_mut(&key)?;
        let (_, first) = queue.jobs.front()?;
        let mut part = Part {
            key,
            attempt: first.attempt,
            adapter: first.adapter.clone(),
            start: first.start,
            count: 0,
            inputs: Vec::new(),
            last: first.last,
            sample: None,
        };
        if first.count == 0 {
            queue.jobs.pop_front();
        }
        while part.count < limit && part.sample.is_none() {
            let goes_on = |job: &StageJob| job.start == part.start + part.count && job.count > 0;
            let Some((_, job)) = queue.jobs.front_mut().filter(|(_, job)| goes_on(job)) else { break };
            let count = job.count.min(limit - part.count);
            part.count += count;
            if count == job.count {
                let Some((_, job)) = queue.jobs.pop_front() else { break };
                part.inputs.push(job.input);
                part.sample = job.sample;
            } else {
                part.inputs.push(split(&mut job.input, count as usize, hidden));
                job.start += count;
                job.count -= count;
            }
        }
        queue.rows -= part.count;
        self.rows -= part.count;
        if queue.jobs.is_empty() {
            self.queues.remove(&key);
        }
        Some(part)
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
mod tests;
