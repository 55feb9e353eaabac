//! The shape of a Llama-family decoder: [`shape`].
//!
//! * [`json`] from Hugging Face's config.json, [`json_keys`] its keys, [`json_rope`] what it says of rotary embeddings, [`json_section`] its objects
//! * [`gguf`] from the metadata of a GGUF file, [`gguf_keys`] its keys, [`gguf_values`] their values

mod gguf;
mod gguf_keys;
mod gguf_values;
mod json;
mod json_keys;
mod json_rope;
mod json_section;
mod shape;

pub(crate) use gguf::{ROPE_DIVISORS, from_gguf};
pub use json::from_json;
pub use shape::ModelConfig;
