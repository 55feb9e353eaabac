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
//! * [`destination`] a folder, or a place on a [`server`]: [`remote`]
//! * [`s3`] object storage: signed requests
//! * [`owner`] a destination belongs to one run, and to one life of its conductor
//! * [`disk`] files that appear whole or not at all
//! * [`manifest`] what is in a checkpoint
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
mod manifest;
pub mod model;
mod owner;
#[cfg(test)]
mod owner_tests;
mod read;
mod remote;
mod s3;
mod server;
mod tensors;
#[cfg(test)]
mod tests;
pub mod texts;
mod write;

use std::io;
use std::path::PathBuf;

use dunlin_model::ModelError;
// The last stage of a tied model has it, too. The first stage writes it.
pub use dunlin_model::training::layout::EMBEDDING;
use thiserror::Error;

pub use destination::{Destination, HttpPlace, Place};
pub use manifest::{FileRecord, Manifest, StageRecord};
pub use owner::{Claim, Owner};
pub use read::{Checkpoint, Latest, Scrutiny};
pub use s3::{S3Bucket, S3Place};
pub use texts::{Texts, bytes_tokenizer};
pub use write::{Identity, Stage};

/// A tensor to write: values in rows.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Hugging Face's name.
    pub name: &'a str,
    /// Rows first.
    pub shape: &'a [usize],
    /// All values.
    pub values: &'a [f32],
}

/// A tensor's place in the flat vectors of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face's name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// As many places as the shape has values.
    pub range: std::ops::Range<usize>,
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file could not be written.
    #[error("cannot write {path}; is the destination of checkpoints there, writable and not full?")]
    Write {
        /// Which file or folder.
        path: PathBuf,
        /// What the system or the server said.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file or folder.
        path: PathBuf,
        /// What the system or the server said.
        source: io::Error,
    },
    /// A file is not what the manifest says.
    #[error("{path} is damaged: {problem}; remove this checkpoint to go on from an earlier one")]
    Damaged {
        /// The file that is damaged.
        path: PathBuf,
        /// The first thing that is wrong.
        problem: String,
    },
    /// There is no checkpoint where one is asked for.
    #[error("{0} is no checkpoint; do the conductor and all peers see the same destination?")]
    Missing(PathBuf),
    /// What is there is not for this run or this program: what to do.
    #[error("{0}")]
    Refused(String),
    /// Somebody else has taken the destination: who, and what to do.
    #[error("{0}")]
    TakenOver(String),
    /// Tensors, stages or vectors that do not fit together.
    #[error("{0}")]
    Mismatch(String),
    /// A weight file breaks its format.
    #[error("a file of the checkpoint cannot be used")]
    Weights(#[from] ModelError),
}

impl CheckpointError {
    /// Whether it is the checkpoint that is unusable, whoever reads it. What cannot be read may be another time.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing(_))
    }

    /// Whether it stays as it is until a user does something about it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::TakenOver(_))
    }
}
