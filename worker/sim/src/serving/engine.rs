//! The engine of one peer: lines, batches and pages are dunlin-schedule's, and rows those of the fake model.

use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::stage::{Computed, Input, Output, StageJob};
use dunlin_protocol::{Refusal, RowData, SessionId};
use dunlin_schedule::{Batcher, PageTable, Part, Runner, Scheduler, SegmentKey};
use dunlin_swarm::{Layers, NumericsClass, Position};

use super::fairness::{Fairness, Stood, Tried};
use super::flaw::Flaw;
use super::model::{Cache, HIDDEN, With, embed, from_row, through, to_row, token, windows};
use super::scenario::Scenario;

/// Positions of a page.
const PAGE: usize = dunlin_protocol::frame::PAGE_POSITIONS as usize;

/// In memory that is another's by now: who reads it says something else.
const GONE: u64 = 0xdead;

/// What an engine is told, in order.
pub(super) enum Command {
    Job(StageJob),
    Truncate(SessionId, Layers, Position),
}

/// Whose rows, the position of the first, and how many.
pub type Rows = (SegmentKey, Position, u32);

pub(super) struct Engine {
    /// Commands wait while a batch is on its way.
    inbox: VecDeque<Command>,
    batcher: Batcher,
    runner: Hashes,
    fairness: Fairness,
    /// Results of the batch on its way.
    running: Option<Vec<Computed>>,
    flaw: Option<Flaw>,
}

impl Engine {
    /// With the pages and the budget of a scenario, computing these bits with the model that is read from `source`.
    pub fn new(scenario: &Scenario, arithmetic: NumericsClass, source: &str) -> Self {
        let mut budget = scenario.budget;
        if scenario.flaw == Some(Flaw::IgnoresBudget) {
            budget.step_rows *= 2;
            budget.prefill_rows *= 2;
        }
        Self {
            inbox: VecDeque::new(),
            batcher: Batcher::new(budget, HIDDEN, scenario.pages).with_windows(windows(scenario.slides)),
            runner: Hashes::new(scenario, arithmetic, source),
            fairness: Fairness::new(scenario.budget),
            running: None,
            flaw: scenario.flaw,
        }
    }

    pub fn pages(&self) -> &PageTable {
        self.batcher.pages()
    }

    pub fn line(&self) -> &Scheduler {
        self.batcher.line()
    }

    /// Rows times layers that were computed.
    pub fn layer_rows(&self) -> u64 {
        self.runner.layer_rows
    }

    /// Nothing of any session is left.
    pub fn is_clean(&self) -> bool {
        self.batcher.is_idle() && self.runner.caches.is_empty() && self.running.is_none()
    }

    pub fn command(&mut self, command: Command) {
        self.inbox.push_back(command);
    }

    /// What did not hold since this was asked last.
    pub fn wrong(&mut self) -> Vec<String> {
        std::mem::take(&mut self.runner.wrong)
    }

    /// Begins the next batch, if none is on its way: rows times layers, and who has which positions computed.
    pub fn begin(&mut self) -> Option<(u64, Vec<Rows>)> {
        if self.running.is_some() {
            return None;
        }
        if !self.inbox.is_empty() {
            while let Some(command) = self.inbox.pop_front() {
                self.obey(command);
            }
            self.runner.check_pages(self.batcher.pages());
        }
        if self.batcher.line().is_empty() {
            return None;
        }
        let stood = Stood::all(&self.batcher, self.fairness.budget());
        self.runner.tried.clear();
        self.runner.ran.clear();
        let mut results = Vec::new();
        self.batcher.step(&mut self.runner, &mut |done| results.push(done));
        self.fairness.batch(&stood, &self.runner.tried, &mut self.runner.wrong);
        self.runner.check_pages(self.batcher.pages());
        for done in &results {
            // A node knows what its engine has, and the line what there are pages for.
            if let Output::Failed(reason @ (Refusal::NeedReplay { .. } | Refusal::NoPages)) = &done.output {
                let (session, start) = (done.session, done.start);
                self.runner
                    .wrong
                    .push(format!("session {session} fails at {start} in the engine: {reason:?}"));
            }
        }
        if results.is_empty() {
            return None;
        }
        let ran = std::mem::take(&mut self.runner.ran);
        let rows =
            ran.iter().map(|((_, layers), _, count)| u64::from(*count) * u64::from(layers.len())).sum();
        self.running = Some(results);
        Some((rows, ran))
    }

    /// The batch on its way is done.
    pub fn end(&mut self) -> Vec<Computed> {
        self.running.take().unwrap_or_default()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Job(job) => self.batcher.push(job),
            Command::Truncate(_, _, 0) if self.flaw == Some(Flaw::KeepsPages) => {}
            Command::Truncate(session, layers, to) => {
                let free = self.batcher.pages().free();
                self.batcher.truncate((session, layers), to, &mut self.runner);
                if self.flaw == Some(Flaw::FreesTwice) {
                    let (total, now) = (self.batcher.pages().total(), self.batcher.pages().free());
                    self.batcher.resize(total + (now - free));
                }
            }
        }
    }
}

/// The fake model's layers, and memory of pages that is as small as it is said to be.
struct Hashes {
    model: String,
    arithmetic: NumericsClass,
    overflows: bool,
    slides: bool,
    /// Pages that there is memory for.
    memory: usize,
    caches: BTreeMap<SegmentKey, Kept>,
    /// Parts that the last batch began with, and rows that came through it.
    tried: Vec<Tried>,
    ran: Vec<Rows>,
    layer_rows: u64,
    wrong: Vec<String>,
}

/// The KV cache of a segment.
struct Kept {
    /// Pages of each layer, those that were given back among them.
    pages: usize,
    /// What is written there, and from the first on how many pages were given back.
    layers: Vec<(Cache, usize)>,
}

impl Kept {
    /// Pages that it has memory of.
    fn taken(&self) -> usize {
        self.layers.iter().map(|(_, gone)| self.pages - gone).sum()
    }
}

impl Hashes {
    fn new(scenario: &Scenario, arithmetic: NumericsClass, source: &str) -> Self {
        Self {
            model: source.to_owned(),
            arithmetic,
            overflows: scenario.overflows,
            slides: scenario.slides,
            memory: scenario.pages,
            caches: BTreeMap::new(),
            tried: Vec::new(),
            ran: Vec::new(),
            layer_rows: 0,
            wrong: Vec::new(),
        }
    }

    /// What a page table counts is what is there.
    fn check_pages(&mut self, table: &PageTable) {
        let taken: usize = self.caches.values().map(Kept::taken).sum();
        let (total, counted) = (table.total(), table.total() - table.free());
        if (total, counted) != (self.memory, taken) {
            let memory = self.memory;
            self.wrong.push(format!(
                "{counted} of {total} pages are counted as taken, and {taken} of {memory} are"
            ));
        }
    }

    /// One part through its layers: the row of each position behind the last one.
    fn part(&mut self, part: &Part) -> Result<Vec<u64>, Refusal> {
        let (session, layers) = part.key;
        let (start, end) = (part.start as usize, (part.start + part.count) as usize);
        let Some(Kept { pages, layers: kept }) = self.caches.get_mut(&part.key) else {
            self.wrong.push(format!("session {session} has no page for positions {start}..{end}"));
            return Err(Refusal::NoPages);
        };
        let have = kept.iter().map(|(cache, _)| cache.len()).min().unwrap_or(0);
        if end > *pages * PAGE || have < start {
            let pages = *pages;
            self.wrong.push(format!(
                "session {session} writes positions {start}..{end} with {have} before them, in {pages} pages a layer"
            ));
            return Err(Refusal::NoPages);
        }
        // What was written there before, by a batch that failed or a try that ended, is written over.
        kept.iter_mut().for_each(|(cache, _)| cache.truncate(start));
        let inputs = part.inputs.iter().flat_map(|input| match input {
            Input::Tokens(tokens) => tokens.iter().map(|t| embed(*t)).collect::<Vec<_>>(),
            Input::Rows(rows) => rows.as_slice().chunks(HIDDEN).map(from_row).collect(),
        });
        let with = With {
            model: &self.model,
            adapter: part.adapter.as_deref(),
            arithmetic: self.arithmetic,
            overflows: self.overflows,
            slides: self.slides,
        };
        inputs
            .map(|input| {
                through(kept.iter_mut().map(|(cache, _)| cache), layers, with, input)
                    .map_err(|layer| Refusal::NonFinite { layer })
            })
            .collect()
    }
}

impl Runner for Hashes {
    /// Those of each part.
    type Rows = Vec<Vec<u64>>;

    fn check(&self, _: &Part) -> Result<(), Refusal> {
        Ok(())
    }

    fn set_pages(&mut self, key: SegmentKey, pages_per_layer: usize) {
        let layers = key.1.len() as usize;
        let none = || Kept { pages: 0, layers: vec![(Cache::new(), 0); layers] };
        let kept = self.caches.entry(key).or_insert_with(none);
        kept.pages = pages_per_layer;
        for (cache, gone) in &mut kept.layers {
            // What was in a page that is given back is lost.
            cache.truncate(pages_per_layer * PAGE);
            *gone = (*gone).min(pages_per_layer);
        }
        if pages_per_layer == 0 {
            self.caches.remove(&key);
        }
    }

    fn give_back(&mut self, key: SegmentKey, layer: u32, pages: usize) {
        let kept = self.caches.get_mut(&key);
        if let Some((cache, gone)) = kept.and_then(|kept| kept.layers.get_mut((layer - key.1.start) as usize))
        {
            let end = (pages * PAGE).min(cache.len());
            cache[..end].fill(GONE);
            *gone = pages.max(*gone);
        }
    }

    fn forward(&mut self, layers: Layers, parts: &[Part]) -> Result<Self::Rows, (usize, Refusal)> {
        if self.tried.is_empty() {
            self.tried = parts.iter().map(Tried::of).collect();
        }
        let mut rows = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            rows.push(self.part(part).map_err(|reason| (i, reason))?);
        }
        self.ran = parts.iter().map(|part| (part.key, part.start, part.count)).collect();
        self.layer_rows += rows.iter().map(|rows| rows.len() as u64 * u64::from(layers.len())).sum::<u64>();
        Ok(rows)
    }

    fn outputs(
        &mut self,
        parts: Vec<Part>,
        rows: Self::Rows,
        each: &mut dyn FnMut(&Part, Result<Output, Refusal>),
    ) {
        for (part, rows) in parts.iter().zip(rows) {
            let last = rows.last().copied().unwrap_or(0);
            let output = match &part.sample {
                Some(request) => token(last, request.params.seed, self.overflows)
                    .map(|token| Output::Token { token, logprob: 0.0, top: Vec::new() })
                    .map_err(|layer| Refusal::NonFinite { layer }),
                None if part.last => Ok(Output::Nothing),
                None => Ok(Output::Rows(RowData::new(rows.into_iter().flat_map(to_row).collect()))),
            };
            each(part, output);
        }
    }
}
