//! The weights that an adapter is trained over.

use std::ops::Range;

use crate::error::ModelError;
use crate::file::ModelFile;
use crate::weights::{Embedding, Head, LayerWeights};

/// Weights of a stage that stay as they are, in the format of their file: quantised ones stay so.
pub struct Base {
    pub(super) embedding: Option<Embedding>,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) head: Option<Head>,
}

impl Base {
    /// Reads blocks `layers`; with the embedding when `first`, with the head when `last`.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn load(file: &ModelFile, layers: Range<u32>, first: bool, last: bool) -> Result<Self, ModelError> {
        let embedding = first.then(|| Embedding::load(file)).transpose()?;
        let head = last.then(|| Head::load(file, embedding.as_ref())).transpose()?;
        let layers = layers.map(|layer| LayerWeights::load(file, layer)).collect::<Result<_, _>>()?;
        Ok(Self { embedding, layers, head })
    }
}
