//! What an engine tells of itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use dunlin_swarm::Layers;

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
    /// Why it computes no more: the device has failed.
    pub failure: Option<String>,
}
