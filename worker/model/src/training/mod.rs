//! Training of a span of layers: forward, loss and backward on the CPU, reproducible to the bit.
//!
//! Gradients of a microbatch depend on its content and the parameters alone: not on threads, instructions, or where the model is cut in
//! stages. The blocks are those of serving, [`crate::Block`], and give the same bits.
//!
//! * [`layout`] the parameters of a stage: one flat vector, tensors under their Hugging Face names
//! * [`initialise`](mod@initialise) first values, random or from a checkpoint
//! * [`stage`] the model of a stage: [`StageModel`]
//! * [`export`] an ordinary Hugging Face folder of it
//! * [`base`] the weights that an adapter is trained over
//! * [`copies`] what computations read, to tell whether memory has changed
//! * `layer`, `adapter`, `head` one block, what an adapter adds to it, and the last norm with output matrix and loss, in the backward direction; `through`
//!   their buffers

pub mod base;
pub mod copies;
pub mod export;
pub mod initialise;
pub mod layout;
pub mod stage;

mod adapter;
mod head;
mod layer;
mod through;

use thiserror::Error;

pub use base::Base;
pub use copies::{Bits, Held};
pub use dunlin_kernels::IGNORED;
pub use initialise::{initialise, initialise_adapter, load};
pub use layout::{ParameterLayout, ParameterTensor};
pub use stage::{Backward, Grad, StageInput, StageModel};

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
        /// Which tensor.
        tensor: String,
        /// Index in the tensor.
        index: usize,
        /// The value.
        value: f32,
        /// The largest size allowed.
        limit: f32,
    },
    /// The input or the request makes no sense for this stage.
    #[error("{0}")]
    Input(String),
}

impl TrainingError {
    fn at(layer: u32) -> impl FnOnce(Flaw) -> Self {
        move |Flaw { op, row }| Self::NonFinite { layer, op, row }
    }
}
