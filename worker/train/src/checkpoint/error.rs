//! Why a checkpoint cannot be written or read.

use std::io;
use std::path::PathBuf;

use dunlin_model::ModelError;
use thiserror::Error;

use crate::config::Change;

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
    /// A destination is not this run's. `refused`: what differs.
    pub(super) fn of_another_run(place: &str, refused: &[Change]) -> Self {
        let differences: Vec<String> =
            refused.iter().map(|c| format!("{} was {}", c.field, c.was())).collect();
        Self::Refused(format!(
            "{place} belongs to another run: {}. Set that back to go on with that run; for a run of its own choose another \
             checkpoint.destination, or move what is in this one elsewhere",
            differences.join(", ")
        ))
    }

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
