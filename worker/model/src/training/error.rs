//! Why a microbatch cannot be computed.

use thiserror::Error;

use crate::block::Flaw;

/// Why a microbatch cannot be computed. Nothing of it was added to any sum.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TrainingError {
    /// A value that is not finite.
    #[error("a value that is not finite appeared in {op} of layer {layer}, row {row}")]
    NonFinite {
        /// The layer; the number of layers for the head.
        layer: u32,
        /// What was computed.
        op: &'static str,
        /// The first row of this index in the microbatch.
        row: usize,
    },
    /// A gradient that is not finite or too large for the sum.
    #[error("the gradient of `{tensor}` has {value} at {index}, not a number of at most {limit} in size")]
    Gradient {
        /// Name of the tensor, as Hugging Face has it.
        tensor: String,
        /// Index in the tensor.
        index: usize,
        /// The value that was found there.
        value: f32,
        /// The largest size allowed.
        limit: f32,
    },
    /// The input or the request makes no sense for this stage.
    #[error("{0}")]
    Input(String),
}

impl TrainingError {
    pub(super) fn at(layer: u32) -> impl FnOnce(Flaw) -> Self {
        move |Flaw { op, row }| Self::NonFinite { layer, op, row }
    }
}
