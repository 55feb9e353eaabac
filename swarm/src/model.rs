//! Models, as far as it matters who has which of their layers.

use serde::{Deserialize, Serialize};

/// A model, by its name and by what it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// The name clients ask for.
    pub name: String,
    /// A digest of its source: peers of different digests never work together.
    pub digest: String,
}

/// Sizes of a model, as its workers read them from its header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSizes {
    /// Weights of each layer in memory, in bytes; the first with the embedding, the last with the head.
    pub layer_bytes: Vec<u64>,
    /// What the first and the last layer share when one peer has both, in bytes.
    pub shared_bytes: u64,
    /// KV cache of one sequence of the greatest length in one layer, in bytes.
    pub sequence_bytes: u64,
}
