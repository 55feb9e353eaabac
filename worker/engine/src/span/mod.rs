//! The seam between an engine and what computes: layers over a batch. All that an engine does around it, which rows run next, who has how many pages,
//! what is sampled, is the same on every device.
//!
//! * [`cpu`] the kernels of this machine's processor

pub mod cpu;

use std::ops::Range;
use std::sync::Arc;

use dunlin_model::{Adapter, Head, LayerWeights, NonFinite, RowOf};
use dunlin_schedule::SegmentKey;
use dunlin_swarm::Layers;
use thiserror::Error;

/// Layers that compute, with their weights and the memory of KV pages. Every device gives the same bits (kernels/ARITHMETIC.md).
pub trait Span: Send {
    /// Memory of a page of one layer, in bytes.
    fn page_bytes(&self) -> usize;

    /// Takes over a layer.
    ///
    /// # Errors
    /// When the device fails.
    fn install(&mut self, layer: u32, weights: Arc<LayerWeights>) -> Result<(), DeviceError>;

    /// Takes over what the last layer needs.
    ///
    /// # Errors
    /// When the device fails.
    fn install_head(&mut self, head: Arc<Head>) -> Result<(), DeviceError>;

    /// Takes over an adapter, which rows of batches name from now on.
    ///
    /// # Errors
    /// When the device fails.
    fn install_adapter(&mut self, name: &Arc<str>, adapter: &Arc<Adapter>) -> Result<(), DeviceError>;

    /// Drops the layers that `keep` does not say, and the head with `head` false.
    fn retain(&mut self, keep: &dyn Fn(u32) -> bool, head: bool);

    /// From now on a segment has so many pages in each of its layers, the first ones being those that it had before; with none it is forgotten.
    ///
    /// # Errors
    /// When the device fails.
    fn set_pages(&mut self, key: SegmentKey, pages_per_layer: usize) -> Result<(), DeviceError>;

    /// No row of a segment sees the first `pages` pages of `layer` any more.
    fn give_back(&mut self, key: SegmentKey, layer: u32, pages: usize);

    /// Pages of memory that segments have.
    fn pages_in_memory(&self) -> usize;

    /// Frees the memory of unused pages beyond so many.
    fn keep_spare(&mut self, pages: usize);

    /// The rows `x` of a batch through `layers`, in place; keys and values go into the pages of the segments. `passed` is told how many rows went through a
    /// layer, some time after they did.
    ///
    /// # Errors
    /// When a value is not finite, or the device fails.
    ///
    /// # Panics
    /// When a layer, a page or an adapter of the batch is not there.
    fn forward(
        &mut self,
        layers: Layers,
        batch: &BatchRows<'_>,
        x: &mut Vec<f32>,
        passed: &dyn Fn(usize),
    ) -> Result<(), BatchFailure>;

    /// Logits of `m` rows behind the last layer: `m * vocab` values.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there is no head.
    fn logits(&mut self, x: &[f32], m: usize) -> Result<Vec<f32>, DeviceError>;
}

/// Whose the rows of a batch are.
pub struct BatchRows<'a> {
    /// Each row; its sequence is an index of `segments`.
    pub rows: &'a [RowOf],
    /// Where the pages of each sequence are.
    pub segments: &'a [SegmentKey],
    /// Rows that have an adapter, side by side, and its name.
    pub adapted: &'a [(Range<usize>, Arc<str>)],
}

/// Why a batch has no result.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchFailure {
    /// Of one row; the batch can be computed without its sequence.
    NonFinite(NonFinite),
    /// It computes no more.
    Device(DeviceError),
}

impl From<DeviceError> for BatchFailure {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

/// A device failed, and with it whatever it held.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct DeviceError(pub String);
