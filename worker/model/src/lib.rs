//! Decoders of the Llama kind: files, tokenizers, decoder blocks, sampler.
//!
//! * [`source`] bytes by range: a local file here, HTTP in the worker
//! * [`gguf`], [`safetensors`] headers of weight files, read with limits: they come from strangers
//! * [`spec`] a decoder block as a value · [`config`] the shape of a decoder, as files and users write it · `families` what is particular to each
//! * [`file`] one view on either: configuration, tensors, tokenizer
//! * [`weights`] the layers of a stage, packed for the kernels
//! * [`block`] one decoder block over rows of many sequences
//! * [`adapter`] LoRA and trained prompts beside the weights
//! * [`tokenizer`] text to tokens and back, also piece by piece
//! * [`sampler`] the next token, seeded by position
//! * [`generate`] a whole model in one process: for tests, perplexity and comparisons
//! * `numerics` which bits all of this is
//! * [`training`] a span of layers forward and backward
//! * [`random_model`] a random Llama for tests and benchmarks

pub mod adapter;
pub mod block;
pub mod config;
pub mod file;
pub mod generate;
pub mod gguf;
pub mod random_model;
pub mod safetensors;
pub mod sampler;
pub mod source;
pub mod spec;
pub mod tokenizer;
pub mod training;
pub mod weights;

mod error;
mod families;
mod mistaken;
mod numerics;

pub use adapter::Adapter;
pub use block::{Block, BlockWeights, KvPages, RowOf};
pub use config::ModelConfig;
pub use error::{ModelError, NonFinite};
pub use file::ModelFile;
pub use numerics::OWN_NUMERICS;
pub use sampler::{Sampled, sample};
pub use source::{ByteSource, FileSource};
pub use tokenizer::{Decoder, Tokenizer};
pub use weights::{Embedding, Head, LayerWeights};
