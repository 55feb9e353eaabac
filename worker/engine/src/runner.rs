//! The kernels of an engine: weights, the memory of KV pages, and how rows pass through both.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dunlin_kernels::Pool;
use dunlin_model::adapter::AdaptedRows;
use dunlin_model::{
    Adapter, Block, BlockWeights, Embedding, Head, KvPages, LayerWeights, ModelConfig, RowOf, Sampled, sample,
};
use dunlin_protocol::stage::{Input, Output};
use dunlin_protocol::{Refusal, RowData};
use dunlin_schedule::{Part, Runner, SegmentKey};
use dunlin_swarm::{Layers, ranges};

use crate::pace::{PROBE_ROWS, Pace};
use crate::status::EngineStatus;

const _: () = assert!(dunlin_kernels::PAGE == dunlin_protocol::frame::PAGE_POSITIONS as usize);

/// A model's layers, as far as they are here.
pub(crate) struct ModelRunner {
    pool: Pool,
    block: Block,
    pub model: ModelConfig,
    positions_max: usize,
    layers: BTreeMap<u32, Arc<LayerWeights>>,
    installed: u64,
    pub embedding: Option<Embedding>,
    pub head: Option<Arc<Head>>,
    pub adapters: BTreeMap<Arc<str>, Arc<Adapter>>,
    /// KV cache of each layer of a segment.
    caches: BTreeMap<SegmentKey, Vec<KvPages>>,
    /// Pages that were used before: their memory is warm.
    spare: Vec<Box<[f32]>>,
    /// Known once there is a layer.
    pace: Option<Pace>,
    /// Rows put through a layer; counted layer by layer, so that it grows however long a batch takes.
    layer_rows: Arc<AtomicU64>,
}

impl ModelRunner {
    /// Without layers yet.
    pub fn new(model: ModelConfig, threads: usize, positions_max: usize, layer_rows: Arc<AtomicU64>) -> Self {
        Self {
            pool: Pool::new(threads),
            block: Block::new(&model, positions_max),
            model,
            positions_max,
            layers: BTreeMap::new(),
            installed: 0,
            embedding: None,
            head: None,
            adapters: BTreeMap::new(),
            caches: BTreeMap::new(),
            spare: Vec::new(),
            pace: None,
            layer_rows,
        }
    }

    /// Memory of a page, in bytes.
    pub fn page_bytes(&self) -> usize {
        self.block.page_len() * size_of::<f32>()
    }

    /// Takes over a layer.
    pub fn install(&mut self, layer: u32, weights: Arc<LayerWeights>) {
        self.layers.insert(layer, weights);
        self.installed += 1;
        if self.pace.is_none() {
            self.pace = self.measure();
        }
    }

    /// Drops layers, and embedding or head with the first or last, that are not in these ranges.
    pub fn retain(&mut self, keep: &[Layers]) {
        let kept = |layer: u32| keep.iter().any(|r| r.contains(layer));
        self.layers.retain(|&layer, _| kept(layer));
        if !kept(0) {
            self.embedding = None;
        }
        if !kept(self.model.layers - 1) {
            self.head = None;
        }
    }

    /// Pages of memory that segments have.
    #[cfg(test)]
    pub fn pages_in_memory(&self) -> usize {
        let kv = self.caches.values().flatten();
        kv.flat_map(|kv| &kv.pages).filter(|page| !page.is_empty()).count()
    }

    /// Frees the memory of unused pages beyond so many.
    pub fn keep_spare(&mut self, pages: usize) {
        self.spare.truncate(pages);
    }

    /// Writes down how fast it is.
    pub fn describe_pace(&self, status: &mut EngineStatus) {
        status.rows_per_s_per_layer = self.pace.as_ref().map_or(0.0, Pace::rows_per_s_per_layer);
    }

    /// Writes down what it has, and what that takes.
    pub fn describe_layers(&self, status: &mut EngineStatus) {
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

    /// What one row and many take through one layer, the best of a few tries each.
    fn measure(&mut self) -> Option<Pace> {
        let (&layer, weights) = self.layers.iter().next()?;
        let weights = Arc::clone(weights);
        let mut best_s = |count: usize, tries: u32| {
            let mut best = f64::MAX;
            for _ in 0..tries {
                let pages = count.div_ceil(dunlin_kernels::PAGE);
                let page = || vec![0.0; self.block.page_len()].into_boxed_slice();
                let mut kv = KvPages::default();
                kv.pages.extend((0..pages).map(|_| page()));
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
}

impl Runner for ModelRunner {
    type Rows = Vec<f32>;

    fn check(&self, part: &Part) -> Result<(), Refusal> {
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
        Ok(())
    }

    fn set_pages(&mut self, key: SegmentKey, pages_per_layer: usize) {
        let page_len = self.block.page_len();
        let caches = self.caches.entry(key).or_default();
        caches.resize_with(key.1.len() as usize, KvPages::default);
        for kv in caches.iter_mut() {
            self.spare.extend(kv.take_from(pages_per_layer));
            while kv.pages.len() < pages_per_layer {
                let page = self.spare.pop();
                kv.pages.push(page.unwrap_or_else(|| vec![0.0; page_len].into_boxed_slice()));
            }
        }
        if pages_per_layer == 0 {
            self.caches.remove(&key);
        }
    }

    fn give_back(&mut self, key: SegmentKey, layer: u32, pages: usize) {
        let caches = self.caches.get_mut(&key);
        if let Some(kv) = caches.and_then(|caches| caches.get_mut((layer - key.1.start) as usize)) {
            self.spare.extend(kv.take_before(pages));
        }
    }

    /// Fails where a value is not finite.
    fn forward(&mut self, layers: Layers, parts: &[Part]) -> Result<Vec<f32>, (usize, Refusal)> {
        let started = Instant::now();
        // Out of the map, so that all can be written at once.
        let mut caches: Vec<Vec<KvPages>> =
            parts.iter().map(|part| self.caches.remove(&part.key).unwrap_or_default()).collect();
        let (mut x, rows, adapted) = rows_of(self.embedding.as_ref(), &self.adapters, parts);
        let mut result = Ok(());
        for (slot, layer) in layers.iter().enumerate() {
            let mut kv: Vec<&mut KvPages> = caches.iter_mut().map(|cache| &mut cache[slot]).collect();
            let adapted: Vec<AdaptedRows<'_>> =
                adapted.iter().filter_map(|(range, own)| own.for_rows(layer, range.clone())).collect();
            let block = BlockWeights { layer, weights: &self.layers[&layer], adapted: &adapted };
            if let Err(error) = self.block.forward(&self.pool, block, &mut x, &rows, &mut kv) {
                result = Err((rows[error.row].sequence, Refusal::NonFinite { layer }));
                break;
            }
            self.layer_rows.fetch_add(rows.len() as u64, Ordering::Relaxed);
        }
        self.caches.extend(parts.iter().map(|part| part.key).zip(caches));
        result?;
        if let Some(pace) = &mut self.pace {
            pace.batch(rows.len() as u32, layers.len(), started.elapsed().as_secs_f64());
        }
        Ok(x)
    }

    fn outputs(
        &mut self,
        parts: Vec<Part>,
        x: Vec<f32>,
        each: &mut dyn FnMut(&Part, Result<Output, Refusal>),
    ) {
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
                each(&part, Ok(Output::Nothing));
            } else {
                each(&part, Ok(Output::Rows(RowData::new(rows.to_vec()))));
            }
        }
        let Some(head) = self.head.as_ref().filter(|_| !sampled.is_empty()) else { return };
        let mut logits = head.logits(&self.pool, &sample_rows, sampled.len());
        let layers = self.model.layers;
        for (mut part, logits) in sampled.into_iter().zip(logits.chunks_exact_mut(self.model.vocab)) {
            // Dropped before the result is reported: with the list of tokens shared nowhere else, its owner appends without a copy.
            let Some(request) = part.sample.take() else { continue };
            if !dunlin_kernels::all_finite(logits) {
                each(&part, Err(Refusal::NonFinite { layer: layers }));
                continue;
            }
            let position = part.start + part.count;
            let Sampled { token, logprob, top } =
                sample(logits, &request.params, &request.tokens, request.prompt_len as usize, position);
            drop(request);
            each(&part, Ok(Output::Token { token, logprob, top }));
        }
    }
}

/// Rows that have an adapter, side by side, and which.
type AdaptedBy<'a> = Vec<(Range<usize>, &'a Adapter)>;

/// Rows of `parts` as the first layer takes them: their values, whose they are, and which of them have which adapter.
fn rows_of<'a>(
    embedding: Option<&Embedding>,
    adapters: &'a BTreeMap<Arc<str>, Arc<Adapter>>,
    parts: &[Part],
) -> (Vec<f32>, Vec<RowOf>, AdaptedBy<'a>) {
    let mut x = Vec::new();
    let mut rows = Vec::new();
    let mut adapted: AdaptedBy<'_> = Vec::new();
    for (sequence, part) in parts.iter().enumerate() {
        let adapter = part.adapter.as_ref().and_then(|name| adapters.get(name)).map(Arc::as_ref);
        for input in &part.inputs {
            match input {
                Input::Rows(data) => x.extend_from_slice(data.as_slice()),
                Input::Tokens(tokens) => {
                    let embedded = embedding.and_then(|e| e.rows(tokens, adapter));
                    x.extend(embedded.expect("`check` saw the embedding and looked at every token"));
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
    (x, rows, adapted)
}
