//! Why data cannot be trained on.

use std::io;

use dunlin_model::ModelError;
use thiserror::Error;

/// Why data cannot be trained on.
#[derive(Debug, Error)]
pub enum DataError {
    /// Bytes could not be read.
    #[error("cannot read {what}")]
    Read {
        /// The file or URL.
        what: String,
        /// What the system or the server said.
        source: io::Error,
    },
    /// The bytes are not the ones that were meant.
    #[error(
        "{what} has the SHA-256 {found}, not {expected}; correct the digest or use the data it was made of"
    )]
    Digest {
        /// The file or URL.
        what: String,
        /// The digest that it has.
        found: String,
        /// The digest in the configuration.
        expected: String,
    },
    /// The text breaks its format.
    #[error("{what}, line {line}: {problem}")]
    Malformed {
        /// The file or URL.
        what: String,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong and what to do.
        problem: String,
    },
    /// More than fits.
    #[error(
        "{what} has more than {tokens} tokens, which is as many as are held here ({available} MiB of memory are free); use a part of it, or give \
         whoever reads it more memory (trainers.resources)"
    )]
    TooLarge {
        /// The file or URL.
        what: String,
        /// As many fit.
        tokens: usize,
        /// Memory in MiB.
        available: u64,
    },
    /// Too little for one sequence.
    #[error(
        "{part} has {tokens} tokens, fewer than the {needed} of one sequence; use more data or a shorter sequenceLength"
    )]
    TooSmall {
        /// The training or the validation part.
        part: &'static str,
        /// Tokens that it has.
        tokens: usize,
        /// Tokens of a sequence.
        needed: usize,
    },
    /// No such batch.
    #[error("there is no {0}")]
    NoBatch(String),
    /// The tokenizer cannot be used.
    #[error("the tokenizer of the data cannot be used")]
    Tokenizer(#[from] ModelError),
    /// The tokenizer is not the model's.
    #[error("data.tokenizer {0}")]
    OtherTokens(String),
}

impl DataError {
    /// Whether it may be otherwise at another time, without anybody doing anything about it.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Read { source, .. } => passes(source.kind()),
            Self::Tokenizer(ModelError::Read { source, .. }) => passes(source.kind()),
            _ => false,
        }
    }
}

/// Whether what could not be read may be there at another time.
fn passes(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied};
    !matches!(kind, NotFound | PermissionDenied | IsADirectory | NotADirectory | InvalidInput)
}
