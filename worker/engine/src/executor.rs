//! The thread that owns weights and KV cache.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dunlin_kernels::Pool;
use dunlin_model::adapter::AdaptedRows;
use dunlin_model::{
    Adapter, Block, BlockWeights, Embedding, Head, KvPages, LayerWeights, ModelConfig, RowOf, Sampled, sample,
};
use dunlin_protocol::stage::{Computed, Input, Job, Output};
use dunlin_protocol::{Refusal, RowData, SessionId};
use dunlin_schedule::line::layers_of;
use dunlin_schedule::{Budget, PageTable, Part, Scheduler, SegmentKey};
use dunlin_swarm::{Layers, Position, ranges};

use crate::pace::{PROBE_ROWS, Pace};

/// Commands that may wait.
const COMMANDS_MAX: usize = 4096;
/// Rows of one batch.
const BUDGET: Budget = Budget { step_rows: 64, prefill_rows: 128, prefill_ends: 16 };
/// Rows of one batch, for those who count memory.
pub(crate) const ROWS_MAX: RowsMax = RowsMax(BUDGET);

const _: () = assert!(dunlin_kernels::PAGE == dunlin_protocol::frame::PAGE_POSITIONS as usize);

/// How many rows a batch has at most.
pub(crate) struct RowsMax(Budget);

impl RowsMax {
    /// Those that tokens are sampled from.
    pub(crate) fn sampled(&self) -> u64 {
        u64::from(self.0.step_rows + self.0.prefill_ends)
    }

    /// All of them.
    pub(crate) fn all(&self) -> u64 {
        u64::from(self.0.step_rows + self.0.prefill_rows)
    }
}

/// What the engine is started with.
pub struct EngineConfig {
    /// Shape of the model.
    pub model: ModelConfig,
    /// Threads of the kernels.
    pub threads: usize,
    /// Longest sequence.
    pub positions_max: usize,
    /// Memory for KV cache, in bytes.
    pub kv_bytes: usize,
}

/// What the thread is told, in order.
pub enum Command {
    /// Compute.
    Job(Job),
    /// Forget the KV cache of positions from `to` on, and jobs that wait.
    Truncate {
        /// The session whose segment it is.
        session: SessionId,
        /// The layers of the segment.
        layers: Layers,
        /// First position to forget.
        to: Position,
    },
    /// Forget the KV cache and jobs that wait.
    Free {
        /// The session whose segment it is.
        session: SessionId,
        /// The layers of the segment.
        layers: Layers,
    },
    /// Take over a layer.
    Install(u32, Arc<LayerWeights>),
    /// Take over what the first stage needs.
    InstallEmbedding(Embedding),
    /// Take over what the last stage needs.
    InstallHead(Arc<Head>),
    /// Take over an adapter of this name.
    InstallAdapter(Arc<str>, Arc<Adapter>),
    /// Drop layers (and embedding or head with the first or last) that are not in these ranges.
    Retain(Vec<Layers>),
    /// Memory for KV cache is so many bytes from now on. Pages in use beyond it are given up as their sessions end.
    KvBytes(usize),
}

/// How the engine is doing.
#[derive(Clone, Debug, Default)]
pub struct EngineStatus {
    /// Layers it can execute; the first only with the embedding, the last only with the head.
    pub held: Vec<Layers>,
    /// Adapters it can execute them with.
    pub adapters: BTreeSet<Arc<str>>,
    /// Rows that wait.
    pub queue_rows: u32,
    /// Pages nobody has.
    pub free_pages: u32,
    /// Pages in all.
    pub total_pages: u32,
    /// Memory of those pages, in bytes.
    pub kv_bytes: u64,
    /// Rows wait, and there are no pages for any of them.
    pub starved: bool,
    /// Rows put through a layer so far.
    pub layer_rows: u64,
    /// Measured rows per second through one layer, one row at a time.
    pub rows_per_s_per_layer: f64,
    /// Memory of weights, in bytes.
    pub weight_bytes: u64,
    /// Layers that were installed so far, those that were dropped again among them: whoever gave so many knows that all have been taken.
    pub installed: u64,
}

/// A handle on the thread; it ends when the handle is dropped.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    status: Arc<Mutex<EngineStatus>>,
    layer_rows: Arc<AtomicU64>,
}

/// Why the engine does not take a command.
pub enum NotTaken {
    /// As many wait as may: here it is back, for later.
    Full(Command),
    /// The thread has ended, which it never does by itself.
    Ended,
}

impl Engine {
    /// Starts the thread; results are given to `done` on that thread, which may block it: whoever takes results must never wait for the
    /// engine to take a command ([`Engine::try_send`]), or the two would wait for each other. `done` is dropped when the thread ends.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(config: EngineConfig, done: Box<dyn Fn(Computed) + Send>) -> std::io::Result<Self> {
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let status = Arc::new(Mutex::new(EngineStatus::default()));
        let layer_rows = Arc::new(AtomicU64::new(0));
        let (shared, count) = (Arc::clone(&status), Arc::clone(&layer_rows));
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || Executor::new(config, shared, count).run(&inbox, &*done))?;
        Ok(Self { commands, status, layer_rows })
    }

    /// Gives a command; waits while [`COMMANDS_MAX`] others are before it. False when the thread has ended.
    #[must_use]
    pub fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Gives a command without ever waiting.
    ///
    /// # Errors
    /// When the queue is full, or the thread has ended.
    pub fn try_send(&self, command: Command) -> Result<(), NotTaken> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) => NotTaken::Full(command),
            TrySendError::Disconnected(_) => NotTaken::Ended,
        })
    }

    /// How the engine is doing.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let mut status = self.status.lock().map(|s| s.clone()).unwrap_or_default();
        // Within a batch nothing else changes, and a batch may be long.
        status.layer_rows = self.layer_rows.load(Ordering::Relaxed);
        status
    }
}

#[derive(Default)]
struct Segment {
    /// KV cache of each layer.
    kv: Vec<KvPages>,
    len: Position,
    /// A job failed: nothing runs until it is truncated or freed.
    poisoned: bool,
}

struct Executor {
    pool: Pool,
    block: Block,
    model: ModelConfig,
    positions_max: usize,
    layers: BTreeMap<u32, Arc<LayerWeights>>,
    installed: u64,
    embedding: Option<Embedding>,
    head: Option<Arc<Head>>,
    adapters: BTreeMap<Arc<str>, Arc<Adapter>>,
    scheduler: Scheduler,
    pages: PageTable,
    segments: BTreeMap<SegmentKey, Segment>,
    /// Pages that were used before: their memory is warm.
    spare: Vec<Box<[f32]>>,
    /// Known once there is a layer.
    pace: Option<Pace>,
    status: Arc<Mutex<EngineStatus>>,
    /// Rows put through a layer; counted layer by layer, so that it grows however long a batch takes.
    layer_rows: Arc<AtomicU64>,
}

impl Executor {
    fn new(config: EngineConfig, status: Arc<Mutex<EngineStatus>>, layer_rows: Arc<AtomicU64>) -> Self {
        let block = Block::new(&config.model, config.positions_max);
        let pages = PageTable::new(config.kv_bytes / (block.page_len() * size_of::<f32>()));
        let executor = Self {
            pool: Pool::new(config.threads),
            block,
            model: config.model,
            positions_max: config.positions_max,
            layers: BTreeMap::new(),
            installed: 0,
            embedding: None,
            head: None,
            adapters: BTreeMap::new(),
            scheduler: Scheduler::default(),
            pages,
            segments: BTreeMap::new(),
            spare: Vec::new(),
            pace: None,
            status,
            layer_rows,
        };
        executor.publish(true);
        executor
    }

    fn run(mut self, inbox: &Receiver<Command>, done: &dyn Fn(Computed)) {
        // Has anything come since the last batch?
        let mut news = false;
        loop {
            // Everything that has arrived is known before a batch is chosen.
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.command(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
                news = true;
            }
            // A session that gives pages back says so with a command.
            if self.scheduler.is_empty() || (self.scheduler.is_starved() && !news) {
                match inbox.recv_timeout(Duration::from_secs(1)) {
                    Ok(command) => {
                        self.command(command);
                        news = true;
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                self.batch(done);
                news = false;
            }
            self.publish(false);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Job(job) => {
                if self.segments.get(&(job.session, job.layers)).is_none_or(|s| !s.poisoned) {
                    self.scheduler.push(job);
                }
            }
            Command::Truncate { session, layers, to } => self.truncate((session, layers), to),
            Command::Free { session, layers } => self.truncate((session, layers), 0),
            Command::Install(layer, weights) => {
                self.layers.insert(layer, weights);
                self.installed += 1;
                if self.pace.is_none() {
                    self.pace = self.measure();
                }
                self.publish(true);
            }
            Command::InstallEmbedding(embedding) => {
                self.embedding = Some(embedding);
                self.publish(true);
            }
            Command::InstallHead(head) => {
                self.head = Some(head);
                self.publish(true);
            }
            Command::InstallAdapter(name, adapter) => {
                self.adapters.insert(name, adapter);
                self.publish(true);
            }
            Command::Retain(keep) => {
                let kept = |layer: u32| keep.iter().any(|r| r.contains(layer));
                self.layers.retain(|&layer, _| kept(layer));
                if !kept(0) {
                    self.embedding = None;
                }
                if !kept(self.model.layers - 1) {
                    self.head = None;
                }
                self.publish(true);
            }
            Command::KvBytes(bytes) => {
                self.pages.resize(bytes / (self.block.page_len() * size_of::<f32>()));
                self.give_back();
            }
        }
    }

    /// Frees the memory of pages beyond those there may be.
    fn give_back(&mut self) {
        self.spare.truncate(self.pages.free());
    }

    fn truncate(&mut self, key: SegmentKey, to: Position) {
        self.scheduler.forget(&key);
        let keep = self.pages.shrink(key, to as usize);
        let Some(segment) = self.segments.get_mut(&key) else { return };
        segment.len = segment.len.min(to);
        segment.poisoned = false;
        for kv in &mut segment.kv {
            self.spare.extend(kv.pages.drain(keep.min(kv.pages.len())..));
        }
        if to == 0 {
            self.segments.remove(&key);
        }
        self.give_back();
    }

    /// Runs one batch and reports its results.
    fn batch(&mut self, done: &dyn Fn(Computed)) {
        let mut parts = self.scheduler.next(BUDGET, self.model.hidden, &self.pages);
        let layers = layers_of(&parts);
        // Rows of one adapter side by side are one product.
        parts.sort_by(|a, b| a.adapter.cmp(&b.adapter));
        parts.retain(|part| match self.prepare(part) {
            Ok(()) => true,
            Err(reason) => {
                self.fail(part, reason, done);
                false
            }
        });
        while !parts.is_empty() {
            let started = Instant::now();
            match self.forward(layers, &parts) {
                Ok(x) => {
                    let rows = parts.iter().map(|p| p.count).sum::<u32>();
                    if let Some(pace) = &mut self.pace {
                        pace.batch(rows, layers.len(), started.elapsed().as_secs_f64());
                    }
                    self.report(parts, &x, done);
                    return;
                }
                Err((bad, layer)) => {
                    let part = parts.remove(bad);
                    self.fail(&part, Refusal::NonFinite { layer }, done);
                }
            }
        }
    }

    /// Room for the part's rows, and sense in it.
    fn prepare(&mut self, part: &Part) -> Result<(), Refusal> {
        let layers = part.key.1;
        let complete = layers.iter().all(|l| self.layers.contains_key(&l))
            && (layers.start > 0 || self.embedding.is_some())
            && (layers.end < self.model.layers || self.head.is_some());
        if !complete {
            return Err(Refusal::NotHolding { layers });
        }
        let prompt = match &part.adapter {
            None => 0..0,
            Some(name) => {
                let missing = || Refusal::NoAdapter { name: name.to_string() };
                self.adapters.get(name).ok_or_else(missing)?.prompt_tokens(&self.model)
            }
        };
        let unknown = |input: &Input| match input {
            Input::Tokens(tokens) => {
                tokens.iter().any(|t| *t as usize >= self.model.vocab && !prompt.contains(t))
            }
            Input::Rows(_) => false,
        };
        if part.inputs.iter().any(unknown) {
            return Err(Refusal::BadRequest { message: "a token is not in the vocabulary".to_owned() });
        }
        let segment = self.segments.entry(part.key).or_default();
        if segment.len != part.start {
            return Err(Refusal::NeedReplay { have: segment.len });
        }
        let more =
            self.pages.grow(part.key, (part.start + part.count) as usize).map_err(|_| Refusal::NoPages)?;
        segment.kv.resize_with(layers.len() as usize, KvPages::default);
        for kv in &mut segment.kv {
            for _ in 0..more {
                let page = self.spare.pop();
                kv.pages.push(page.unwrap_or_else(|| vec![0.0; self.block.page_len()].into_boxed_slice()));
            }
        }
        Ok(())
    }

    fn fail(&mut self, part: &Part, reason: Refusal, done: &dyn Fn(Computed)) {
        self.scheduler.forget(&part.key);
        self.segments.entry(part.key).or_default().poisoned = true;
        done(computed(part, Output::Failed(reason)));
    }

    /// Rows behind the last layer, or (index of the part, layer) where a value is not finite.
    fn forward(&mut self, layers: Layers, parts: &[Part]) -> Result<Vec<f32>, (usize, u32)> {
        let mut x = Vec::new();
        let mut rows = Vec::new();
        let mut adapted: Vec<(Range<usize>, &Adapter)> = Vec::new();
        for (sequence, part) in parts.iter().enumerate() {
            let adapter = part.adapter.as_ref().and_then(|name| self.adapters.get(name)).map(Arc::as_ref);
            for input in &part.inputs {
                match input {
                    Input::Rows(data) => x.extend_from_slice(data.as_slice()),
                    Input::Tokens(tokens) => {
                        let embedded = self.embedding.as_ref().and_then(|e| e.rows(tokens, adapter));
                        x.extend(embedded.expect("`prepare` saw the embedding and looked at every token"));
                    }
                }
            }
            let first = rows.len();
            rows.extend((part.start..part.start + part.count).map(|position| RowOf { sequence, position }));
            match (adapted.last_mut(), adapter) {
                (_, None) => {}
                (Some((range, before)), Some(own)) if std::ptr::eq(*before, own) => range.end = rows.len(),
                (_, Some(own)) => adapted.push((first..rows.len(), own)),
            }
        }
        let mut taken: Vec<Segment> =
            parts.iter().map(|part| self.segments.remove(&part.key).unwrap_or_default()).collect();
        let mut result = Ok(());
        for (slot, layer) in layers.iter().enumerate() {
            let mut kv: Vec<&mut KvPages> = taken.iter_mut().map(|s| &mut s.kv[slot]).collect();
            let weights = &self.layers[&layer];
            let adapted: Vec<AdaptedRows<'_>> =
                adapted.iter().filter_map(|(range, own)| own.for_rows(layer, range.clone())).collect();
            let block = BlockWeights { layer, weights, adapted: &adapted };
            if let Err(error) = self.block.forward(&self.pool, block, &mut x, &rows, &mut kv) {
                result = Err((rows[error.row].sequence, layer));
                break;
            }
            self.layer_rows.fetch_add(rows.len() as u64, Ordering::Relaxed);
        }
        for (part, mut segment) in parts.iter().zip(taken) {
            if result.is_ok() {
                segment.len = part.start + part.count;
            }
            self.segments.insert(part.key, segment);
        }
        result.map(|()| x)
    }

    fn report(&mut self, parts: Vec<Part>, x: &[f32], done: &dyn Fn(Computed)) {
        let hidden = self.model.hidden;
        let mut at = 0;
        let mut sampled = Vec::new();
        let mut sample_rows = Vec::new();
        for part in parts {
            let rows = &x[at..at + part.count as usize * hidden];
            at += rows.len();
            if part.sample.is_some() {
                sample_rows.extend_from_slice(&rows[rows.len() - hidden..]);
                sampled.push(part);
            } else if part.last {
                done(computed(&part, Output::Nothing));
            } else {
                done(computed(&part, Output::Rows(RowData::new(rows.to_vec()))));
            }
        }
        let Some(head) = self.head.as_ref().filter(|_| !sampled.is_empty()) else { return };
        let mut logits = head.logits(&self.pool, &sample_rows, sampled.len());
        let layers = self.model.layers;
        for (mut part, logits) in sampled.into_iter().zip(logits.chunks_exact_mut(self.model.vocab)) {
            // Dropped before the result is reported: with the list of tokens shared nowhere else, its owner appends without a copy.
            let Some(request) = part.sample.take() else { continue };
            if !dunlin_kernels::all_finite(logits) {
                self.fail(&part, Refusal::NonFinite { layer: layers }, done);
                continue;
            }
            let position = part.start + part.count;
            let Sampled { token, logprob, top } =
                sample(logits, &request.params, &request.tokens, request.prompt_len as usize, position);
            drop(request);
            done(computed(&part, Output::Token { token, logprob, top }));
        }
    }

    /// What one row and many take through one layer, the best of a few tries each.
    fn measure(&mut self) -> Option<Pace> {
        let (&layer, weights) = self.layers.iter().next()?;
        let weights = Arc::clone(weights);
        let mut best_s = |count: usize, tries: u32| {
            let mut best = f64::MAX;
            for _ in 0..tries {
                let pages = count.div_ceil(dunlin_kernels::PAGE);
                let page = || vec![0.0; self.block.page_len()].into_boxed_slice();
                let mut kv = KvPages { pages: (0..pages).map(|_| page()).collect() };
                let mut x = vec![0.01; count * self.model.hidden];
                let rows: Vec<RowOf> =
                    (0..count as u32).map(|position| RowOf { sequence: 0, position }).collect();
                let started = Instant::now();
                let block = BlockWeights { layer, weights: &weights, adapted: &[] };
                self.block.forward(&self.pool, block, &mut x, &rows, &mut [&mut kv]).ok()?;
                best = best.min(started.elapsed().as_secs_f64());
            }
            Some(best)
        };
        let many = PROBE_ROWS.min(self.positions_max);
        Some(Pace::measured(best_s(1, 4)?, best_s(many, 2)?, many))
    }

    /// Tells the rest of the process how the engine is doing.
    fn publish(&self, layers_changed: bool) {
        let Ok(mut status) = self.status.lock() else { return };
        status.queue_rows = self.scheduler.rows();
        status.free_pages = u32::try_from(self.pages.free()).unwrap_or(u32::MAX);
        status.total_pages = u32::try_from(self.pages.total()).unwrap_or(u32::MAX);
        status.kv_bytes = (self.pages.total() * self.block.page_len() * size_of::<f32>()) as u64;
        status.starved = self.scheduler.is_starved();
        status.rows_per_s_per_layer = self.pace.as_ref().map_or(0.0, Pace::rows_per_s_per_layer);
        if layers_changed {
            let last = self.model.layers - 1;
            let usable: BTreeSet<u32> = self
                .layers
                .keys()
                .copied()
                .filter(|&l| (l > 0 || self.embedding.is_some()) && (l < last || self.head.is_some()))
                .collect();
            status.held = ranges(&usable);
            status.installed = self.installed;
            let layers = self.layers.values().map(|l| l.bytes()).sum::<usize>();
            let embedding = self.embedding.as_ref().map_or(0, Embedding::bytes);
            let head = self.head.as_ref().map_or(0, |h| h.bytes());
            let shared = if self.model.tied { embedding.min(head) } else { 0 };
            status.adapters = self.adapters.keys().cloned().collect();
            let adapters = self.adapters.values().map(|a| a.bytes()).sum::<usize>();
            status.weight_bytes = (layers + embedding + head - shared + adapters) as u64;
        }
    }
}

fn computed(part: &Part, output: Output) -> Computed {
    let (session, layers) = part.key;
    Computed { session, attempt: part.attempt, layers, start: part.start, count: part.count, output }
}

#[cfg(test)]
mod tests;
