//! Training of a span of layers: forward, loss and backward on the CPU, reproducible to the bit.
//!
//! Gradients of a microbatch depend on its content and the parameters alone: not on threads, instructions, or where the model is cut in
//! stages. The blocks are those of serving, [`crate::Block`], and give the same bits.
//!
//! * [`layout`] the parameters of a stage: one flat vector, tensors under their Hugging Face names
//! * [`initialise`](mod@initialise) first values, random or from a checkpoint
//! * [`stage`] the model of a stage: [`StageModel`]
//! * [`untrained`](fn@untrained) what is not trained, and why
//! * [`export`] an ordinary Hugging Face folder of it
//! * [`base`] the weights that an adapter is trained over
//! * [`copies`] what computations read, to tell whether memory has changed
//! * `layer`, `adapter`, `head` one block, what an adapter adds to it, and the last norm with output matrix and loss, in the backward direction

pub mod base;
pub mod copies;
pub mod export;
pub mod initialise;
pub mod layout;
pub mod stage;

mod adapter;
mod error;
mod head;
mod layer;
mod untrained;

pub use base::Base;
pub use copies::{Bits, HeldValues};
pub use dunlin_kernels::IGNORED;
pub use error::TrainingError;
pub use initialise::{initialise, initialise_adapter, load};
pub use layout::{ParameterLayout, ParameterTensor};
pub use stage::{Backward, Grad, StageInput, StageModel};
pub use untrained::untrained;
