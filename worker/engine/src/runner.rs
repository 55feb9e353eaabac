//! How rows pass through what an engine computes with: from tokens or rows to rows or the next tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dunlin_model::{Adapter, Embedding, Head, LayerWeights, ModelConfig, RowOf, Sampled, sample};
use dunlin_protocol::stage::{Input, Output};
use dunlin_protocol::{Refusal, RowData, SessionId};
use dunlin_schedule::{Part, Runner, SegmentKey};
use dunlin_swarm::{Layers, ranges};

use crate::pace::{PROBE_ROWS, Pace};
use crate::span::{BatchFailure, BatchRows, DeviceError, Span};
use crate::status::EngineStatus;

const _: () = assert!(dunlin_kernels::PAGE == dunlin_protocol::frame::PAGE_POSITIONS as usize);

/// Whose pages a measurement takes: no session has any before the first layer is here.
const PROBE: SessionId = SessionId(u64::MAX);

/// A model's layers, as far as they are here.
pub(crate) struct ModelRunner {
    span: Box<dyn Span>,
    pub model: ModelConfig,
    positions_max: usize,
    /// Memory of each layer that is here.
    layers: BTreeMap<u32, usize>,
    installed: u64,
    embedding: Option<Embedding>,
    /// Memory of the head, if it is here.
    head: Option<usize>,
    adapters: BTreeMap<Arc<str>, Arc<Adapter>>,
    /// Known once there is a layer.
    pace: Option<Pace>,
    /// Rows put through a layer; counted layer by layer, so that it grows however long a batch takes.
    layer_rows: Arc<AtomicU64>,
    /// Why nothing is computed any more.
    failure: Option<DeviceError>,
}

impl ModelRunner {
    /// Without layers yet.
    pub fn new(
        model: ModelConfig,
        span: Box<dyn Span>,
        positions_max: usize,
        layer_rows: Arc<AtomicU64>,
    ) -> Self {
        Self {
            span,
            model,
            positions_max,
            layers: BTreeMap::new(),
            installed: 0,
            embedding: None,
            head: None,
            adapters: BTreeMap::new(),
            pace: None,
            layer_rows,
            failure: None,
        }
    }

    /// Why nothing is computed any more, if that is so: the device has failed, and with it whatever it held.
    pub fn failure(&self) -> Option<&DeviceError> {
        self.failure.as_ref()
    }

    /// Remembers that the device has failed.
    fn seen(&mut self, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }

    /// Memory of a page, in bytes.
    pub fn page_bytes(&self) -> usize {
        self.span.page_bytes()
    }

    /// Takes over a layer.
    pub fn install(&mut self, layer: u32, weights: Arc<LayerWeights>) {
        self.layers.insert(layer, weights.bytes());
        self.installed += 1;
        let installed = self.span.install(layer, weights);
        self.seen(installed);
        if self.pace.is_none() {
            match self.measure(layer) {
                Ok(pace) => self.pace = Some(pace),
                Err(BatchFailure::NonFinite(_)) => {}
                Err(BatchFailure::Device(error)) => self.seen(Err(error)),
            }
        }
    }

    /// Takes over what the first layer needs.
    pub fn install_embedding(&mut self, embedding: Embedding) {
        self.embedding = Some(embedding);
    }

    /// Takes over what the last layer needs.
    pub fn install_head(&mut self, head: Arc<Head>) {
        self.head = Some(head.bytes());
        let installed = self.span.install_head(head);
        self.seen(installed);
    }

    /// Takes over an adapter.
    pub fn install_adapter(&mut self, name: Arc<str>, adapter: Arc<Adapter>) {
        let installed = self.span.install_adapter(&name, &adapter);
        self.adapters.insert(name, adapter);
        self.seen(installed);
    }

    /// Drops layers, and embedding or head with the first or last, that are not in these ranges.
    pub fn retain(&mut self, keep: &[Layers]) {
        let kept = |layer: u32| keep.iter().any(|r| r.contains(layer));
        self.layers.retain(|&layer, _| kept(layer));
        if !kept(0) {
            self.embedding = None;
        }
        let head = kept(self.model.layers - 1);
        self.head.take_if(|_| !head);
        self.span.retain(&kept, head);
    }

    /// Pages of memory that segments have.
    #[cfg(test)]
    pub fn pages_in_memory(&self) -> usize {
        self.span.pages_in_memory()
    }

    /// Frees the memory of unused pages beyond so many.
    pub fn keep_spare(&mut self, pages: usize) {
        self.span.keep_spare(pages);
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
        let layers = self.layers.values().sum::<usize>();
        let embedding = self.embedding.as_ref().map_or(0, Embedding::bytes);
        let head = self.head.unwrap_or(0);
        let shared = if self.model.tied { embedding.min(head) } else { 0 };
        status.adapters = self.adapters.keys().cloned().collect();
        let adapters = self.adapters.values().map(|a| a.bytes()).sum::<usize>();
        status.weight_bytes = (layers + embedding + head - shared + adapters) as u64;
    }

    /// What one row and many take through one layer, the best of a few tries each.
    fn measure(&mut self, layer: u32) -> Result<Pace, BatchFailure> {
        let key = (PROBE, Layers::new(layer, layer + 1));
        let mut best_s = |count: usize, tries: u32| -> Result<f64, BatchFailure> {
            let mut best = f64::MAX;
            for _ in 0..tries {
                self.span.set_pages(key, count.div_ceil(dunlin_kernels::PAGE))?;
                let mut x = vec![0.01; count * self.model.hidden];
                let rows: Vec<RowOf> =
                    (0..count as u32).map(|position| RowOf { sequence: 0, position }).collect();
                let batch = BatchRows { rows: &rows, segments: &[key], adapted: &[] };
                let started = Instant::now();
                let computed = self.span.forward(key.1, &batch, &mut x, &|_| {});
                best = best.min(started.elapsed().as_secs_f64());
                self.span.set_pages(key, 0)?;
                computed?;
            }
            Ok(best)
        };
        let many = PROBE_ROWS.min(self.positions_max);
        Ok(Pace::measured(best_s(1, 4)?, best_s(many, 2)?, many))
    }
}

impl Runner for ModelRunner {
    type Rows = Vec<f32>;

    fn check(&self, part: &Part) -> Result<(), Refusal> {
        let layers = part.key.1;
        let complete = self.failure.is_none()
            && layers.iter().all(|l| self.layers.contains_key(&l))
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
        let set = self.span.set_pages(key, pages_per_layer);
        self.seen(set);
    }

    fn give_back(&mut self, key: SegmentKey, layer: u32, pages: usize) {
        self.span.give_back(key, layer, pages);
    }

    /// Fails where a value is not finite. With a device that has failed nothing is held any more: sessions go elsewhere, without waiting for this process to end.
    fn forward(&mut self, layers: Layers, parts: &[Part]) -> Result<Vec<f32>, (usize, Refusal)> {
        if self.failure.is_some() {
            return Err((0, Refusal::NotHolding { layers }));
        }
        let started = Instant::now();
        let (mut x, rows, adapted) = rows_of(self.embedding.as_ref(), &self.adapters, parts);
        let segments: Vec<SegmentKey> = parts.iter().map(|part| part.key).collect();
        let batch = BatchRows { rows: &rows, segments: &segments, adapted: &adapted };
        let layer_rows = &self.layer_rows;
        let passed = |rows: usize| {
            layer_rows.fetch_add(rows as u64, Ordering::Relaxed);
        };
        match self.span.forward(layers, &batch, &mut x, &passed) {
            Ok(()) => {}
            Err(BatchFailure::NonFinite(error)) => {
                return Err((rows[error.row].sequence, Refusal::NonFinite { layer: error.layer }));
            }
            Err(BatchFailure::Device(error)) => {
                self.failure = Some(error);
                return Err((0, Refusal::NotHolding { layers }));
            }
        }
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
        if sampled.is_empty() {
            return;
        }
        let layers = self.model.layers;
        let mut logits = match self.span.logits(&sample_rows, sampled.len()) {
            Ok(logits) => logits,
            Err(error) => {
                self.failure = Some(error);
                for part in sampled {
                    each(&part, Err(Refusal::NotHolding { layers: part.key.1 }));
                }
                return;
            }
        };
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

/// Rows that have an adapter, side by side, and its name.
type AdaptedBy = Vec<(Range<usize>, Arc<str>)>;

/// Rows of `parts` as the first layer takes them: their values, whose they are, and which of them have which adapter.
fn rows_of(
    embedding: Option<&Embedding>,
    adapters: &BTreeMap<Arc<str>, Arc<Adapter>>,
    parts: &[Part],
) -> (Vec<f32>, Vec<RowOf>, AdaptedBy) {
    let mut x = Vec::new();
    let mut rows = Vec::new();
    let mut adapted: AdaptedBy = Vec::new();
    for (sequence, part) in parts.iter().enumerate() {
        let named = part.adapter.as_ref().and_then(|name| adapters.get_key_value(name));
        let adapter = named.map(|(_, adapter)| adapter.as_ref());
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
        match (adapted.last_mut(), named) {
            (_, None) => {}
            (Some((range, before)), Some((name, _))) if before == name => range.end = rows.len(),
            (_, Some((name, _))) => adapted.push((first..rows.len(), Arc::clone(name))),
        }
    }
    (x, rows, adapted)
}
