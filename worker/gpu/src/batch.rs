//! What the kernels must know of the rows of a batch, made on the host and copied at once.

use dunlin_cuda::attention::segments;
use dunlin_cuda::{DeviceBuffer, Gpu, GpuError, Slice};
use dunlin_engine::span::BatchRows;
use dunlin_kernels::PAGE;
use dunlin_model::ModelConfig;
use dunlin_swarm::Layers;

use crate::pages::SegmentPages;

/// Rows times heads that fill a device: with fewer of them segments of long rows are computed side by side.
const FULL: usize = 256;

/// Buffers for it, which are kept.
pub(crate) struct BatchTables {
    /// Positions, numbers of sequences, then of each layer the first position that each row sees.
    numbers: DeviceBuffer<u32>,
    /// Of each layer the pages of the rows, then `[sequence][pages_max]` those of the sequences.
    addresses: DeviceBuffer<u64>,
    rows: usize,
    sequences: usize,
    pages_max: usize,
    /// Of each layer.
    splits: Vec<usize>,
}

/// The part of one layer.
pub(crate) struct LayerTables<'a> {
    pub(crate) positions: Slice<'a, u32>,
    pub(crate) sequences: Slice<'a, u32>,
    pub(crate) from: Slice<'a, u32>,
    /// Of each row, the page of its position.
    pub(crate) own: Slice<'a, u64>,
    pub(crate) pages: Slice<'a, u64>,
    pub(crate) pages_max: usize,
    pub(crate) splits: usize,
}

impl BatchTables {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Ok(Self {
            numbers: gpu.buffer(0)?,
            addresses: gpu.buffer(0)?,
            rows: 0,
            sequences: 0,
            pages_max: 0,
            splits: Vec::new(),
        })
    }

    /// Of a batch that goes through `layers`.
    pub(crate) fn fill(
        &mut self,
        gpu: &Gpu,
        model: &ModelConfig,
        layers: Layers,
        batch: &BatchRows<'_>,
        pages: &SegmentPages,
    ) -> Result<(), GpuError> {
        let rows = batch.rows;
        (self.rows, self.sequences) = (rows.len(), batch.segments.len());
        self.pages_max = batch.segments.iter().map(|key| pages.count(*key)).max().unwrap_or(0);
        self.splits.clear();
        let mut numbers: Vec<u32> = rows.iter().map(|row| row.position).collect();
        numbers.extend(rows.iter().map(|row| row.sequence as u32));
        let mut addresses = Vec::new();
        for (slot, layer) in layers.iter().enumerate() {
            let attention = &model.block(layer).attention;
            let from = numbers.len();
            numbers.extend(rows.iter().map(|row| attention.first_seen(row.position)));
            let most = rows.iter().zip(&numbers[from..]);
            let most = most.map(|(row, from)| segments(*from as usize, row.position as usize)).max();
            let is_full = rows.len() * attention.heads >= FULL;
            self.splits.push(if is_full { 1 } else { most.unwrap_or(1) });
            let own = addresses.len();
            addresses.resize(own + rows.len(), 0);
            for key in batch.segments {
                let start = addresses.len();
                addresses.extend(pages.addresses(*key, slot));
                addresses.resize(start + self.pages_max, 0);
            }
            for (i, row) in rows.iter().enumerate() {
                let table = own + rows.len() + row.sequence * self.pages_max;
                addresses[own + i] = addresses[table + row.position as usize / PAGE];
                assert!(addresses[own + i] != 0, "position {} of layer {layer} has no page", row.position);
            }
        }
        self.numbers.ensure(numbers.len())?;
        self.addresses.ensure(addresses.len())?;
        gpu.write(&mut self.numbers, &numbers)?;
        gpu.write(&mut self.addresses, &addresses)
    }

    /// The part of the layer that is number `slot` of the batch's.
    pub(crate) fn layer(&self, slot: usize) -> LayerTables<'_> {
        let (m, tables) = (self.rows, self.sequences * self.pages_max);
        let numbers = |part: usize| self.numbers.range(part * m..(part + 1) * m);
        let own = slot * (m + tables);
        LayerTables {
            positions: numbers(0),
            sequences: numbers(1),
            from: numbers(2 + slot),
            own: self.addresses.range(own..own + m),
            pages: self.addresses.range(own + m..own + m + tables),
            pages_max: self.pages_max,
            splits: self.splits[slot],
        }
    }
}
