//! The thread that owns weights and KV cache.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dunlin_kernels::Pool;
use dunlin_model::adapter::AdaptedRows;
use dunlin_model::{
    Adapter, Block, Embedding, Head, KvPages, LayerWeights, ModelConfig, RowOf, Sampled, sample,
};
use dunlin_planner::topology::ranges;
use dunlin_planner::{Layers, Position};
use dunlin_protocol::stage::{Computed, Input, Job, Output};
use dunlin_protocol::{Refusal, RowData, SessionId};

use crate::pages::{PageTable, SegmentKey};
use crate::sched::{Budget, Part, SHORT_ROWS, Scheduler, layers_of};

/// Commands that may wait; whoever sends more waits.
const COMMANDS_MAX: usize = 4096;
/// Rows of one batch.
const BUDGET: Budget = Budget { decode_rows: 64, prefill_rows: 128 };
/// Rows of one batch, for those who count memory.
pub(crate) const ROWS_MAX: RowsMax = RowsMax(BUDGET);
/// Share of a new measurement in the moving average of the rate.
const RATE_WEIGHT: f64 = 0.1;

/// How many rows a batch has at most.
pub(crate) struct RowsMax(Budget);

impl RowsMax {
    /// Those that tokens are sampled from: the last one taken may be more than the budget.
    pub(crate) fn decode_rows(&self) -> u64 {
        u64::from(self.0.decode_rows + SHORT_ROWS)
    }

    /// All of them.
    pub(crate) fn all(&self) -> u64 {
        self.decode_rows() + u64::from(self.0.prefill_rows)
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
        /// Which session.
        session: SessionId,
        /// Which layers.
        layers: Layers,
        /// First position to forget.
        to: Position,
    },
    /// Forget the KV cache and jobs that wait.
    Free {
        /// Which session.
        session: SessionId,
        /// Which layers.
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
    /// Measured rows per second through one layer.
    pub rows_per_s_per_layer: f64,
    /// Memory of weights, in bytes.
    pub weight_bytes: u64,
}

/// A handle on the thread; it ends when the handle is dropped.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    status: Arc<Mutex<EngineStatus>>,
}

impl Engine {
    /// Starts the thread; results are given to `done` on that thread, which may block it.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(config: EngineConfig, done: Box<dyn Fn(Computed) + Send>) -> std::io::Result<Self> {
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let status = Arc::new(Mutex::new(EngineStatus::default()));
        let shared = Arc::clone(&status);
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || Executor::new(config, shared).run(&inbox, &*done))?;
        Ok(Self { commands, status })
    }

    /// Gives a command; waits while [`COMMANDS_MAX`] others are before it. False when the thread has ended.
    #[must_use]
    pub fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// How the engine is doing.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        self.status.lock().map(|s| s.clone()).unwrap_or_default()
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
    layers: BTreeMap<u32, Arc<LayerWeights>>,
    embedding: Option<Embedding>,
    head: Option<Arc<Head>>,
    adapters: BTreeMap<Arc<str>, Arc<Adapter>>,
    scheduler: Scheduler,
    pages: PageTable,
    segments: BTreeMap<SegmentKey, Segment>,
    /// Pages that were used before: their memory is warm.
    spare: Vec<Box<[f32]>>,
    rate: f64,
    status: Arc<Mutex<EngineStatus>>,
}

impl Executor {
    fn new(config: EngineConfig, status: Arc<Mutex<EngineStatus>>) -> Self {
        let block = Block::new(&config.model, config.positions_max);
        let pages = PageTable::new(config.kv_bytes / (block.page_len() * size_of::<f32>()));
        let executor = Self {
            pool: Pool::new(config.threads),
            block,
            model: config.model,
            layers: BTreeMap::new(),
            embedding: None,
            head: None,
            adapters: BTreeMap::new(),
            scheduler: Scheduler::default(),
            pages,
            segments: BTreeMap::new(),
            spare: Vec::new(),
            rate: 0.0,
            status,
        };
        executor.publish(true);
        executor
    }

    fn run(mut self, inbox: &Receiver<Command>, done: &dyn Fn(Computed)) {
        loop {
            // Everything that has arrived is known before a batch is chosen.
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.command(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if self.scheduler.is_empty() {
                match inbox.recv_timeout(Duration::from_secs(1)) {
                    Ok(command) => self.command(command),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                self.batch(done);
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
                if self.rate == 0.0 {
                    self.measure();
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
        let mut parts = self.scheduler.next(BUDGET, self.model.hidden);
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
                    self.measured(f64::from(rows * layers.len()), started.elapsed());
                    self.report(&parts, &x, done);
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
        if let Input::Tokens(tokens) = &part.input
            && tokens.iter().any(|t| *t as usize >= self.model.vocab && !prompt.contains(t))
        {
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
            match &part.input {
                Input::Rows(data) => x.extend_from_slice(data.as_slice()),
                Input::Tokens(tokens) => {
                    let embedded = self.embedding.as_ref().and_then(|e| e.rows(tokens, adapter));
                    x.extend(embedded.expect("`prepare` saw the embedding and looked at every token"));
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
            if let Err(error) =
                self.block.forward(&self.pool, layer, weights, &adapted, &mut x, &rows, &mut kv)
            {
                result = Err((rows[error.row].sequence, layer));
                break;
            }
        }
        for (part, mut segment) in parts.iter().zip(taken) {
            if result.is_ok() {
                segment.len = part.start + part.count;
            }
            self.segments.insert(part.key, segment);
        }
        result.map(|()| x)
    }

    fn report(&mut self, parts: &[Part], x: &[f32], done: &dyn Fn(Computed)) {
        let hidden = self.model.hidden;
        let mut at = 0;
        let mut sampled = Vec::new();
        let mut sample_rows = Vec::new();
        for part in parts {
            let rows = &x[at..at + part.count as usize * hidden];
            at += rows.len();
            if part.sample.is_some() {
                sampled.push(part);
                sample_rows.extend_from_slice(&rows[rows.len() - hidden..]);
            } else if part.last {
                done(computed(part, Output::Nothing));
            } else {
                done(computed(part, Output::Rows(RowData::new(rows.to_vec()))));
            }
        }
        let Some(head) = self.head.as_ref().filter(|_| !sampled.is_empty()) else { return };
        let mut logits = head.logits(&self.pool, &sample_rows, sampled.len(), self.block.scratch());
        let layers = self.model.layers;
        for (part, logits) in sampled.into_iter().zip(logits.chunks_exact_mut(self.model.vocab)) {
            let Some(request) = &part.sample else { continue };
            if !dunlin_kernels::all_finite(logits) {
                self.fail(part, Refusal::NonFinite { layer: layers }, done);
                continue;
            }
            let position = part.start + part.count;
            let Sampled { token, logprob, top } =
                sample(logits, &request.params, &request.tokens, request.prompt_len as usize, position);
            done(computed(part, Output::Token { token, logprob, top }));
        }
    }

    /// A first guess of the rate: one row through one layer, the best of a few.
    fn measure(&mut self) {
        let Some((&layer, weights)) = self.layers.iter().next() else { return };
        let weights = Arc::clone(weights);
        let mut kv = KvPages { pages: vec![vec![0.0; self.block.page_len()].into_boxed_slice()] };
        let mut best = Duration::MAX;
        for position in 0..4 {
            let mut x = vec![0.01; self.model.hidden];
            let started = Instant::now();
            let row = [RowOf { sequence: 0, position }];
            if self.block.forward(&self.pool, layer, &weights, &[], &mut x, &row, &mut [&mut kv]).is_ok() {
                best = best.min(started.elapsed());
            }
        }
        if best < Duration::MAX {
            self.rate = 1.0 / best.as_secs_f64().max(1e-9);
        }
    }

    fn measured(&mut self, layer_rows: f64, elapsed: Duration) {
        let rate = layer_rows / elapsed.as_secs_f64().max(1e-9);
        self.rate = if self.rate == 0.0 { rate } else { self.rate + (rate - self.rate) * RATE_WEIGHT };
    }

    /// Tells the rest of the process how the engine is doing.
    fn publish(&self, layers_changed: bool) {
        let Ok(mut status) = self.status.lock() else { return };
        status.queue_rows = self.scheduler.rows();
        status.free_pages = u32::try_from(self.pages.free()).unwrap_or(u32::MAX);
        status.total_pages = u32::try_from(self.pages.total()).unwrap_or(u32::MAX);
        status.kv_bytes = (self.pages.total() * self.block.page_len() * size_of::<f32>()) as u64;
        status.rows_per_s_per_layer = self.rate;
        if layers_changed {
            let last = self.model.layers - 1;
            let usable: BTreeSet<u32> = self
                .layers
                .keys()
                .copied()
                .filter(|&l| (l > 0 || self.embedding.is_some()) && (l < last || self.head.is_some()))
                .collect();
            status.held = ranges(&usable);
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
