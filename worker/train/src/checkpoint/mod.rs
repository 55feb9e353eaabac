//! Checkpoints: folders that are, from the moment they are complete, models in Hugging Face's form.
//!
//! ```text
//! owner.json                               whose checkpoints they are
//! step-00000120/
//!   model-00001-of-00002.safetensors       a stage's parameters, f32, by their usual names
//!   optimizer-00001-of-00002.safetensors   its optimizer's vectors: `optimizer.<slot>.<name>`
//!   model.safetensors.index.json, config.json, tokenizer.json, tokenizer_config.json
//!   training.json                          the manifest: every file with its digest, step, seed, data, configuration
//! ```
//!
//! * [`destination`] a folder, or a place on a server · [`store`] what is done there · [`remote`] checkpoints on a server
//! * [`owner`] a destination belongs to one run, and to one life of its conductor
//! * [`disk`] files that appear whole or not at all
//! * [`manifest`] what is in a checkpoint, [`identity`] what it is of, [`names`] of all that · [`tensor`], `tensors` how values are given and written
//! * [`write`] any peer writes its stage; who has all their records writes the manifest, which comes last
//! * [`read`] the newest sound one, and tensors of any for any cut in stages
//! * [`model`], [`texts`] config.json, the tokenizer and what else makes it the model that it was made from
//! * `adapter` what makes an adapter of the tensors of all stages
//!
//! Of a run that trains an adapter, stages write `adapter-00001-of-00002.safetensors`, and beside them are `adapter_config.json` and
//! `adapter_model.safetensors`, which has the tensors of all of them: PEFT reads one file only.
//!
//! A folder without `training.json` is not a checkpoint. The position in the data is the step, so there is no other state.

mod adapter;
mod destination;
mod disk;
mod error;
mod identity;
mod manifest;
pub mod model;
mod names;
mod owner;
#[cfg(test)]
mod owner_tests;
mod read;
mod remote;
mod store;
mod tensor;
mod tensors;
#[cfg(test)]
mod tests;
pub mod texts;
mod write;

// The last stage of a tied model has it, too. The first stage writes it.
pub use dunlin_model::training::layout::EMBEDDING;

pub use destination::Destination;
pub use error::CheckpointError;
pub use identity::Identity;
pub use manifest::{FileRecord, Manifest, StageRecord};
pub use owner::{Claim, ConductorLife};
pub use read::{Checkpoint, Latest, Scrutiny};
pub use tensor::{Tensor, TensorSpec};
pub use texts::{Texts, bytes_tokenizer};
pub use write::StageValues;
