//! Text to tokens to batches.
//!
//! * [`source`] bytes of a file or of a server's file, with limits
//! * [`text`] documents to tokens
//! * [`tokens`] one stream of tokens, and its digest
//! * [`order`] which sequence comes when: a keyed permutation per epoch
//! * [`dataset`] batches of a step
//!
//! Which tokens a microbatch has is a function of (data, seed, step, microbatch) alone, so the position in the data is the step, any
//! trainer can compute any microbatch, and nothing has to be saved.

pub mod dataset;
pub mod order;
pub mod source;
pub mod text;
pub mod tokens;

use std::io;

use dunlin_model::ModelError;
use thiserror::Error;

pub use dataset::{Batch, Dataset};
pub use text::TextTokenizer;
pub use tokens::Tokens;

/// Why data cannot be trained on.
#[derive(Debug, Error)]
pub enum DataError {
    /// Bytes could not be read.
    #[error("cannot read {what}")]
    Read {
        /// From where.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The bytes are not the ones that were meant.
    #[error(
        "{what} has the SHA-256 {found}, not {expected}; correct the digest or use the data it was made of"
    )]
    Digest {
        /// Which file.
        what: String,
        /// Its digest.
        found: String,
        /// The digest in the configuration.
        expected: String,
    },
    /// The text breaks its format.
    #[error("{what}, line {line}: {problem}")]
    Malformed {
        /// Which file.
        what: String,
        /// From 1.
        line: u64,
        /// What is wrong and what to do.
        problem: String,
    },
    /// More than fits.
    #[error("the data has more than {0} tokens, which is more than is held in memory here; use a part of it")]
    TooLarge(usize),
    /// Too little for one sequence.
    #[error(
        "{part} has {tokens} tokens, fewer than the {needed} of one sequence; use more data or a shorter sequenceLength"
    )]
    TooSmall {
        /// The training or the validation part.
        part: &'static str,
        /// Its tokens.
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
}
