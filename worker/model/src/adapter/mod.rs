//! Adapters: a few trained values beside the weights of a model that stay as they are.
//!
//! * [`shape`] what an adapter is made of · [`Projection`] beside which matrices
//! * [`low_rank`] `y += B (A x) * alpha / rank` beside some matrices of each block (LoRA, Hu et al. 2021)
//! * [`peft`] files in the form of the PEFT library: what others trained is served here, and the other way round
//! * [`random`] random ones for tests and benchmarks
//!
//! A prompt that was trained (Lester et al. 2021) is a few rows that stand before the embeddings of every sequence. They are addressed as
//! tokens beyond the vocabulary, so that everything that works with tokens, replay above all, works with them.

pub mod low_rank;
pub mod peft;
pub mod random;

mod modules;
mod peft_keys;
mod shape;
mod strangers;

pub use crate::spec::Projection;
pub use dunlin_swarm::run::{LoraShape, PromptShape};
pub use low_rank::{AdaptedRows, LayerAdapter, LowRank};
pub use peft::Adapter;
pub use shape::AdapterShape;
