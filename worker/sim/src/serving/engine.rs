//! The engine of one peer: batches and pages as in dunlin-engine, rows of the fake model.

use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::stage::{Computed, Input, Job, Output};
use dunlin_protocol::{Refusal, RowData, SessionId};
use dunlin_schedule::line::layers_of;
use dunlin_schedule::{Budget, PageTable, Part, Scheduler, SegmentKey};
use dunlin_swarm::{Layers, Position};

use super::model::{Cache, HIDDEN, With, embed, from_row, through, to_row, token};

const BUDGET: Budget = Budget { step_rows: 64, prefill_rows: 128, prefill_ends: 16 };

/// What an engine is told, in order.
pub(super) enum Command {
    Job(Job),
    Truncate(SessionId, Layers, Position),
}

/// Whose rows, the position of the first, and how many.
pub type Rows = (SegmentKey, Position, u32);

#[derive(Default)]
struct Segment {
    caches: Vec<Cache>,
    poisoned: bool,
}

pub(super) struct Engine {
    /// Commands wait while a batch is on its way.
    inbox: VecDeque<Command>,
    scheduler: Scheduler,
    pages: PageTable,
    segments: BTreeMap<SegmentKey, Segment>,
    /// Results of the batch on its way.
    running: Option<Vec<Computed>>,
    pub layer_rows: u64,
    arithmetic: u32,
}

impl Engine {
    /// With room for `pages` pages of one layer, and this version of the arithmetic.
    pub fn new(pages: usize, arithmetic: u32) -> Self {
        Self {
            inbox: VecDeque::new(),
            scheduler: Scheduler::default(),
            pages: PageTable::new(pages),
            segments: BTreeMap::new(),
            running: None,
            layer_rows: 0,
            arithmetic,
        }
    }

    pub fn pages(&self) -> &PageTable {
        &self.pages
    }

    pub fn waiting_rows(&self) -> u32 {
        self.scheduler.rows()
    }

    pub fn is_starved(&self) -> bool {
        self.scheduler.is_starved()
    }

    /// Nothing of any session is left.
    pub fn is_clean(&self) -> bool {
        self.pages.free() == self.pages.total() && self.scheduler.is_empty() && self.running.is_none()
    }

    pub fn command(&mut self, command: Command) {
        self.inbox.push_back(command);
    }

    /// Begins the next batch, if none is on its way: rows times layers, and who has which positions computed.
    pub fn begin(&mut self) -> Option<(u64, Vec<Rows>)> {
        if self.running.is_some() {
            return None;
        }
        while let Some(command) = self.inbox.pop_front() {
            self.obey(command);
        }
        let mut parts = self.scheduler.next(BUDGET, HIDDEN, &self.pages);
        if parts.is_empty() {
            return None;
        }
        let layers = layers_of(&parts);
        let mut results = Vec::new();
        parts.retain(|part| match self.prepare(part) {
            Ok(()) => true,
            Err(reason) => {
                self.scheduler.forget(&part.key);
                self.segments.entry(part.key).or_default().poisoned = true;
                results.push(computed(part, Output::Failed(reason)));
                false
            }
        });
        let rows: u64 = parts.iter().map(|part| u64::from(part.count)).sum();
        let done = parts.iter().map(|part| (part.key, part.start, part.count)).collect();
        results.extend(parts.into_iter().map(|part| self.run(part)));
        self.running = Some(results);
        self.layer_rows += rows * u64::from(layers.len());
        Some((rows * u64::from(layers.len()), done))
    }

    /// The batch on its way is done.
    pub fn end(&mut self) -> Vec<Computed> {
        self.running.take().unwrap_or_default()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Job(job) => {
                if self.segments.get(&(job.session, job.layers)).is_none_or(|s| !s.poisoned) {
                    self.scheduler.push(job);
                }
            }
            Command::Truncate(session, layers, to) => {
                let key = (session, layers);
                self.scheduler.forget(&key);
                self.pages.shrink(key, to as usize);
                if to == 0 {
                    self.segments.remove(&key);
                } else if let Some(segment) = self.segments.get_mut(&key) {
                    segment.poisoned = false;
                    segment.caches.iter_mut().for_each(|c| c.truncate(to as usize));
                }
            }
        }
    }

    fn prepare(&mut self, part: &Part) -> Result<(), Refusal> {
        let segment = self.segments.entry(part.key).or_default();
        segment.caches.resize(part.key.1.len() as usize, Cache::new());
        let have = segment.caches[0].len();
        if have != part.start as usize {
            return Err(Refusal::NeedReplay { have: have as Position });
        }
        self.pages.grow(part.key, have + part.count as usize).map(drop).map_err(|_| Refusal::NoPages)
    }

    fn run(&mut self, part: Part) -> Computed {
        let inputs = part.inputs.iter().flat_map(|input| match input {
            Input::Tokens(tokens) => tokens.iter().map(|t| embed(*t)).collect::<Vec<_>>(),
            Input::Rows(rows) => rows.as_slice().chunks(HIDDEN).map(from_row).collect(),
        });
        let caches = self.segments.get_mut(&part.key).map(|s| s.caches.as_mut_slice()).unwrap_or_default();
        let with = With { adapter: part.adapter.as_deref(), arithmetic: self.arithmetic };
        let mut rows = Vec::new();
        let mut last = 0;
        for input in inputs {
            last = through(caches, part.key.1, with, input);
            rows.extend(to_row(last));
        }
        let output = match &part.sample {
            Some(request) => {
                Output::Token { token: token(last, request.params.seed), logprob: 0.0, top: Vec::new() }
            }
            None if part.last => Output::Nothing,
            None => Output::Rows(RowData::new(rows)),
        };
        computed(&part, output)
    }
}

fn computed(part: &Part, output: Output) -> Computed {
    let (session, layers) = part.key;
    Computed { session, attempt: part.attempt, layers, start: part.start, count: part.count, output }
}
