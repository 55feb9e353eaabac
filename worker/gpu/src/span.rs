//! Layers on a GPU.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_cuda::linear::linear;
use dunlin_cuda::rows::{DeviceRope, NO_FLAW, flaw, rms_norm};
use dunlin_cuda::{DeviceBuffer, Gpu, GpuError};
use dunlin_engine::span::{BatchFailure, BatchRows, DeviceError, Span};
use dunlin_kernels::page_len;
use dunlin_model::spec::Rotary;
use dunlin_model::{Adapter, Head, LayerWeights, ModelConfig, NonFinite};
use dunlin_schedule::SegmentKey;
use dunlin_swarm::Layers;

use crate::batch::BatchTables;
use crate::block::{Adapted, Block, Buffers, slot_of};
use crate::pages::SegmentPages;
use crate::weights::{DeviceAdapter, DeviceHead, DeviceLayer};

/// Layers that a GPU computes, in its memory.
pub struct GpuSpan {
    held: Held,
    pages: SegmentPages,
    buffers: Buffers,
    logits: DeviceBuffer<f32>,
}

/// What stays on the device from batch to batch, and the tables of the present one.
struct Held {
    gpu: Gpu,
    model: ModelConfig,
    /// One for each way of turning.
    turns: Vec<(Rotary, DeviceRope)>,
    layers: BTreeMap<u32, DeviceLayer>,
    head: Option<DeviceHead>,
    adapters: BTreeMap<Arc<str>, DeviceAdapter>,
    tables: BatchTables,
}

/// Where something failed.
trait During<T> {
    fn during(self, what: &str) -> Result<T, DeviceError>;
}

impl<T> During<T> for Result<T, GpuError> {
    fn during(self, what: &str) -> Result<T, DeviceError> {
        self.map_err(|error| DeviceError(format!("{what}: {error}")))
    }
}

impl GpuSpan {
    /// For sequences of up to `positions_max`. It has no layers yet.
    ///
    /// # Errors
    /// When the device fails, or has no memory for a rotary table.
    pub fn new(gpu: Gpu, model: &ModelConfig, positions_max: usize) -> Result<Self, DeviceError> {
        let attention = &model.block.attention;
        let turn = |rotary: &Rotary| {
            let table = rotary.table(attention.head_dim, positions_max);
            Ok((rotary.clone(), DeviceRope::upload(&gpu, &table)?))
        };
        let turns = model.rotaries().into_iter().map(turn).collect::<Result<_, GpuError>>();
        Ok(Self {
            pages: SegmentPages::new(page_len(attention.kv_heads, attention.head_dim)),
            buffers: Buffers::new(&gpu).during("buffers")?,
            logits: gpu.buffer(0).during("buffers")?,
            held: Held {
                turns: turns.during("rotary tables")?,
                layers: BTreeMap::new(),
                head: None,
                adapters: BTreeMap::new(),
                tables: BatchTables::new(&gpu).during("buffers")?,
                model: model.clone(),
                gpu,
            },
        })
    }

    fn logits_of(&mut self, x: &[f32], m: usize) -> Result<Vec<f32>, GpuError> {
        let Held { gpu, head, .. } = &self.held;
        let head = head.as_ref().expect("rows are sampled where the head is");
        let (b, all) = (&mut self.buffers.rows, 0..x.len());
        b.x.ensure(x.len())?;
        b.normed.ensure(x.len())?;
        let mut logits = vec![0.0; m * head.output.n()];
        self.logits.ensure(logits.len())?;
        gpu.write(&mut b.x, x)?;
        rms_norm(gpu, b.x.range(all.clone()), head.norm.all(), head.eps, m, b.normed.range_mut(all.clone()))?;
        let outs = &mut [self.logits.range_mut(0..logits.len())];
        linear(gpu, &mut b.scratch, &[&head.output], b.normed.range(all), m, outs)?;
        gpu.read(&self.logits, &mut logits)?;
        Ok(logits)
    }
}

impl Held {
    /// The rows `x` through layers, in place.
    fn forward(
        &self,
        layers: Layers,
        batch: &BatchRows<'_>,
        x: &mut [f32],
        buffers: &mut Buffers,
    ) -> Result<(), BatchFailure> {
        let Self { gpu, model, .. } = self;
        let adapted = batch.adapted.iter().map(|(rows, name)| (rows.clone(), &self.adapters[name]));
        let adapted: Vec<Adapted<'_>> = adapted.collect();
        buffers.ensure(model, batch.rows.len()).during("buffers")?;
        gpu.write(&mut buffers.rows.x, x).during("rows")?;
        gpu.write(&mut buffers.rows.flaw, &[NO_FLAW]).during("rows")?;
        for (slot, layer) in layers.iter().enumerate() {
            let block = self.block((slot, layer), batch.rows.len(), &adapted);
            block.forward(buffers).during(&format!("layer {layer}"))?;
        }
        let mut found = [NO_FLAW];
        let what = format!("layers {layers}");
        gpu.read(&buffers.rows.flaw, &mut found).during(&what)?;
        if let Some((code, row)) = flaw(found[0]) {
            return Err(BatchFailure::NonFinite(NonFinite { layer: layers.start + slot_of(code), row }));
        }
        Ok(gpu.read(&buffers.rows.x, x).during(&what)?)
    }

    /// A layer, which is number `slot` of a batch's, with its rows.
    fn block<'a>(&'a self, (slot, layer): (usize, u32), m: usize, adapted: &'a [Adapted<'a>]) -> Block<'a> {
        let spec = self.model.block(layer);
        let mut turns = self.turns.iter();
        let (_, table) = turns.find(|(own, _)| *own == spec.rotary).expect("there is a table for each");
        Block {
            gpu: &self.gpu,
            spec,
            hidden: self.model.hidden,
            layer,
            slot,
            weights: &self.layers[&layer],
            turns: (table, spec.rotary.layout),
            adapted,
            tables: self.tables.layer(slot),
            m,
        }
    }
}

impl Span for GpuSpan {
    fn page_bytes(&self) -> usize {
        self.pages.page_bytes()
    }

    fn install(&mut self, layer: u32, weights: Arc<LayerWeights>) -> Result<(), DeviceError> {
        let weights =
            DeviceLayer::upload(&self.held.gpu, &weights).during(&format!("weights of layer {layer}"))?;
        self.held.layers.insert(layer, weights);
        Ok(())
    }

    fn install_head(&mut self, head: Arc<Head>) -> Result<(), DeviceError> {
        self.held.head = Some(DeviceHead::upload(&self.held.gpu, &head).during("weights of the head")?);
        Ok(())
    }

    fn install_adapter(&mut self, name: &Arc<str>, adapter: &Arc<Adapter>) -> Result<(), DeviceError> {
        let adapter = DeviceAdapter::upload(&self.held.gpu, adapter).during(&format!("adapter {name}"))?;
        self.held.adapters.insert(Arc::clone(name), adapter);
        Ok(())
    }

    fn retain(&mut self, keep: &dyn Fn(u32) -> bool, head: bool) {
        self.held.layers.retain(|layer, _| keep(*layer));
        self.held.head.take_if(|_| !head);
    }

    fn set_pages(&mut self, key: SegmentKey, pages_per_layer: usize) -> Result<(), DeviceError> {
        self.pages.set(&self.held.gpu, key, pages_per_layer).during("KV pages")
    }

    fn give_back(&mut self, key: SegmentKey, layer: u32, pages: usize) {
        self.pages.give_back(key, layer, pages);
    }

    fn pages_in_memory(&self) -> usize {
        self.pages.used()
    }

    fn keep_spare(&mut self, pages: usize) {
        self.pages.keep_spare(pages);
    }

    fn forward(
        &mut self,
        layers: Layers,
        batch: &BatchRows<'_>,
        x: &mut Vec<f32>,
        passed: &dyn Fn(usize),
    ) -> Result<(), BatchFailure> {
        let Held { gpu, model, tables, .. } = &mut self.held;
        tables.fill(gpu, model, layers, batch, &self.pages).during("tables of pages")?;
        self.held.forward(layers, batch, x, &mut self.buffers)?;
        passed(batch.rows.len() * layers.len() as usize);
        Ok(())
    }

    fn logits(&mut self, x: &[f32], m: usize) -> Result<Vec<f32>, DeviceError> {
        self.logits_of(x, m).during("head")
    }
}
