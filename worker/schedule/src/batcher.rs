//! An engine without its kernels: jobs come in, batches of them run, and each part of a batch has a result.
//!
//! The order of effects is here and nowhere else. A part runs only if its segment has a KV cache up to its first row, and pages for the rest; the
//! cache counts as written before anybody gets a result; whatever failed is forgotten until its session begins again. Kernels, weights and
//! the memory of pages are behind [`Runner`]: those of a model in a process, hashes in the simulation.

use std::collections::BTreeMap;

use dunlin_protocol::stage::{Computed, Output, StageJob};
use dunlin_protocol::{Refusal, Windows};
use dunlin_swarm::{Layers, Position};

use crate::line::{Budget, Part, Scheduler, layers_of};
use crate::pages::{PageTable, SegmentKey};

/// What computes.
pub trait Runner {
    /// Rows behind the last layer of a batch.
    type Rows;

    /// Has it the layers, the adapter and the vocabulary for a part?
    ///
    /// # Errors
    /// What it lacks.
    fn check(&self, part: &Part) -> Result<(), Refusal>;

    /// From now on a segment has so many pages in each of its layers, the first ones being those that it had before; with none it is forgotten.
    fn set_pages(&mut self, key: SegmentKey, pages_per_layer: usize);

    /// No row of a segment sees the first `pages` pages of `layer` any more: their memory is for others. Those that were given back before are among them. Who has no memory for
    /// pages has nothing to do.
    fn give_back(&mut self, _key: SegmentKey, _layer: u32, _pages: usize) {}

    /// Puts the rows of `parts` through `layers`, and writes the KV cache of each.
    ///
    /// # Errors
    /// The index of a part that cannot be computed, and why. The others run again without it.
    fn forward(&mut self, layers: Layers, parts: &[Part]) -> Result<Self::Rows, (usize, Refusal)>;

    /// Gives the result of every part to `each`, in any order.
    fn outputs(
        &mut self,
        parts: Vec<Part>,
        rows: Self::Rows,
        each: &mut dyn FnMut(&Part, Result<Output, Refusal>),
    );
}

/// Jobs, KV pages and segments of one engine.
#[derive(Debug)]
pub struct Batcher {
    budget: Budget,
    /// Values in a row.
    hidden: usize,
    line: Scheduler,
    pages: PageTable,
    segments: BTreeMap<SegmentKey, Segment>,
}

/// The KV cache of a session in some layers.
#[derive(Debug, Default)]
struct Segment {
    /// Positions whose KV cache is written.
    written: Position,
    /// A job failed: nothing runs until it is truncated or freed.
    is_poisoned: bool,
}

impl Batcher {
    /// With `pages` pages of KV cache, each of one layer, and rows of `hidden` values.
    #[must_use]
    pub fn new(budget: Budget, hidden: usize, pages: usize) -> Self {
        Self {
            budget,
            hidden,
            line: Scheduler::default(),
            pages: PageTable::new(pages),
            segments: BTreeMap::new(),
        }
    }

    /// The same for a model whose layers keep this of a sequence.
    #[must_use]
    pub fn with_windows(self, windows: Windows) -> Self {
        Self { pages: self.pages.with_windows(windows), ..self }
    }

    /// Who has how many pages.
    #[must_use]
    pub fn pages(&self) -> &PageTable {
        &self.pages
    }

    /// Jobs that wait.
    #[must_use]
    pub fn line(&self) -> &Scheduler {
        &self.line
    }

    /// Nothing of any session is left.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.segments.is_empty() && self.line.is_empty() && self.pages.free() == self.pages.total()
    }

    /// Takes a job. Those of a segment in which one failed are dropped: its session begins again before anything else runs.
    pub fn push(&mut self, job: StageJob) {
        if self.segments.get(&(job.session, job.layers)).is_none_or(|segment| !segment.is_poisoned) {
            self.line.push(job);
        }
    }

    /// Forgets the jobs of a segment, and its KV cache from position `to` on.
    pub fn truncate(&mut self, key: SegmentKey, to: Position, runner: &mut impl Runner) {
        self.line.forget(&key);
        let keep = self.pages.shrink(key, to as usize);
        runner.set_pages(key, keep);
        if keep == 0 {
            self.segments.remove(&key);
        } else if let Some(segment) = self.segments.get_mut(&key) {
            segment.written = segment.written.min(to);
            segment.is_poisoned = false;
        }
    }

    /// There are `pages` pages from now on. Those in use beyond that stay until they are given back.
    pub fn resize(&mut self, pages: usize) {
        self.pages.resize(pages);
    }

    /// Runs the next batch and gives `done` its results.
    pub fn step<R: Runner>(&mut self, runner: &mut R, done: &mut dyn FnMut(Computed)) {
        let mut parts = self.line.next(self.budget, self.hidden, &self.pages);
        let layers = layers_of(&parts);
        // Rows of one adapter side by side are one product.
        parts.sort_by(|a, b| a.adapter.cmp(&b.adapter));
        parts.retain(|part| match self.admit(runner, part) {
            Ok(()) => true,
            Err(reason) => {
                done(self.fail(part, reason));
                false
            }
        });
        while !parts.is_empty() {
            match runner.forward(layers, &parts) {
                Ok(rows) => {
                    // Before any result: whoever gets one gives the next job, which begins where this one ends.
                    for part in &parts {
                        let written = part.start + part.count;
                        self.segments.entry(part.key).or_default().written = written;
                        self.pages.advance(part.key, written);
                        for layer in layers.iter() {
                            let behind = self.pages.behind(&part.key, layer);
                            if behind > 0 {
                                runner.give_back(part.key, layer, behind);
                            }
                        }
                    }
                    runner.outputs(parts, rows, &mut |part, output| {
                        done(match output {
                            Ok(output) => computed(part, output),
                            Err(reason) => self.fail(part, reason),
                        });
                    });
                    return;
                }
                Err((bad, reason)) => {
                    let part = parts.remove(bad);
                    done(self.fail(&part, reason));
                }
            }
        }
    }

    /// Pages for a part's rows, if there is sense in it.
    fn admit(&mut self, runner: &mut impl Runner, part: &Part) -> Result<(), Refusal> {
        if part.count == 0 {
            return Err(Refusal::BadRequest { message: "a job without rows".to_owned() });
        }
        runner.check(part)?;
        let have = self.segments.entry(part.key).or_default().written;
        if have != part.start {
            return Err(Refusal::NeedReplay { have });
        }
        self.pages.grow(part.key, (part.start + part.count) as usize).map_err(|_| Refusal::NoPages)?;
        runner.set_pages(part.key, self.pages.of(&part.key));
        Ok(())
    }

    /// A part has no result: nor has anything of its segment that waits or comes, until its session begins again.
    fn fail(&mut self, part: &Part, reason: Refusal) -> Computed {
        self.line.forget(&part.key);
        self.segments.entry(part.key).or_default().is_poisoned = true;
        computed(part, Output::Failed(reason))
    }
}

fn computed(part: &Part, output: Output) -> Computed {
    let (session, layers) = part.key;
    Computed { session, attempt: part.attempt, layers, start: part.start, count: part.count, output }
}

#[cfg(test)]
mod tests;
