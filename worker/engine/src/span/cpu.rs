//! Layers on the processor of this machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::adapter::AdaptedRows;
use dunlin_model::{Adapter, Block, BlockWeights, Head, KvPages, LayerWeights, ModelConfig};
use dunlin_schedule::SegmentKey;
use dunlin_swarm::Layers;

use super::{BatchFailure, BatchRows, DeviceError, Span};

/// Layers that the processor computes, in main memory.
pub struct CpuSpan {
    pool: Pool,
    block: Block,
    layers: BTreeMap<u32, Arc<LayerWeights>>,
    head: Option<Arc<Head>>,
    adapters: BTreeMap<Arc<str>, Arc<Adapter>>,
    /// KV cache of each layer of a segment.
    caches: BTreeMap<SegmentKey, Vec<KvPages>>,
    /// Pages that were used before: their memory is warm.
    spare: Vec<Box<[f32]>>,
}

impl CpuSpan {
    /// For sequences of up to `positions_max`, with as many threads. It has no layers yet.
    #[must_use]
    pub fn new(model: &ModelConfig, threads: usize, positions_max: usize) -> Self {
        Self {
            pool: Pool::new(threads),
            block: Block::new(model, positions_max),
            layers: BTreeMap::new(),
            head: None,
            adapters: BTreeMap::new(),
            caches: BTreeMap::new(),
            spare: Vec::new(),
        }
    }
}

impl Span for CpuSpan {
    fn page_bytes(&self) -> usize {
        self.block.page_len() * size_of::<f32>()
    }

    fn install(&mut self, layer: u32, weights: Arc<LayerWeights>) -> Result<(), DeviceError> {
        self.layers.insert(layer, weights);
        Ok(())
    }

    fn install_head(&mut self, head: Arc<Head>) -> Result<(), DeviceError> {
        self.head = Some(head);
        Ok(())
    }

    fn install_adapter(&mut self, name: &Arc<str>, adapter: &Arc<Adapter>) -> Result<(), DeviceError> {
        self.adapters.insert(Arc::clone(name), Arc::clone(adapter));
        Ok(())
    }

    fn retain(&mut self, keep: &dyn Fn(u32) -> bool, head: bool) {
        self.layers.retain(|layer, _| keep(*layer));
        self.head.take_if(|_| !head);
    }

    fn set_pages(&mut self, key: SegmentKey, pages_per_layer: usize) -> Result<(), DeviceError> {
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
        Ok(())
    }

    fn give_back(&mut self, key: SegmentKey, layer: u32, pages: usize) {
        let caches = self.caches.get_mut(&key);
        if let Some(kv) = caches.and_then(|caches| caches.get_mut((layer - key.1.start) as usize)) {
            self.spare.extend(kv.take_before(pages));
        }
    }

    fn pages_in_memory(&self) -> usize {
        let kv = self.caches.values().flatten();
        kv.flat_map(|kv| &kv.pages).filter(|page| !page.is_empty()).count()
    }

    fn keep_spare(&mut self, pages: usize) {
        self.spare.truncate(pages);
    }

    fn forward(
        &mut self,
        layers: Layers,
        batch: &BatchRows<'_>,
        x: &mut Vec<f32>,
        passed: &dyn Fn(usize),
    ) -> Result<(), BatchFailure> {
        // Out of the map, so that all can be written at once.
        let taken = batch.segments.iter().map(|key| self.caches.remove(key).unwrap_or_default());
        let mut caches: Vec<Vec<KvPages>> = taken.collect();
        let mut result = Ok(());
        for (slot, layer) in layers.iter().enumerate() {
            let mut kv: Vec<&mut KvPages> = caches.iter_mut().map(|cache| &mut cache[slot]).collect();
            let adapters = &self.adapters;
            let adapted = batch.adapted.iter();
            let adapted: Vec<AdaptedRows<'_>> =
                adapted.filter_map(|(rows, name)| adapters[name].for_rows(layer, rows.clone())).collect();
            let block = BlockWeights { layer, weights: &self.layers[&layer], adapted: &adapted };
            if let Err(error) = self.block.forward(&self.pool, block, x, batch.rows, &mut kv) {
                result = Err(BatchFailure::NonFinite(error));
                break;
            }
            passed(batch.rows.len());
        }
        self.caches.extend(batch.segments.iter().copied().zip(caches));
        result
    }

    fn logits(&mut self, x: &[f32], m: usize) -> Result<Vec<f32>, DeviceError> {
        let head = self.head.as_ref().expect("rows are sampled where the head is");
        Ok(head.logits(&self.pool, x, m))
    }
}
