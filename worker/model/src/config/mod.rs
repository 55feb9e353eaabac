//! The shape of a decoder: [`shape`].
//!
//! * [`json`] from Hugging Face's config.json, [`json_keys`] its keys, [`json_rope`] what it says of rotary embeddings, [`json_section`] its objects
//! * [`gguf`] from the metadata of a GGUF file, [`gguf_keys`] its keys, [`gguf_values`] their values
//!
//! What is particular to a family is in [`crate::families`].

mod gguf;
mod gguf_keys;
pub(crate) mod gguf_values;
mod json;
mod json_keys;
pub(crate) mod json_rope;
pub(crate) mod json_section;
mod shape;

pub(crate) use gguf::from_gguf;
pub use json::from_json;
pub use shape::ModelConfig;
