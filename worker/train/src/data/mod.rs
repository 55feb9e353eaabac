//! Text to tokens to batches.
//!
//! * [`source`] bytes of a file or of a server's file, with limits · `memory` how much there is for tokens
//! * [`text`] documents to tokens
//! * [`tokens`] one stream of tokens, and its digest
//! * [`order`] which sequence comes when: a keyed permutation per epoch
//! * [`dataset`] batches of a step
//!
//! Which tokens a microbatch has is a function of (data, seed, step, microbatch) alone, so the position in the data is the step, any
//! trainer can compute any microbatch, and nothing has to be saved.

pub mod dataset;
mod error;
mod memory;
pub mod order;
pub mod source;
pub mod text;
pub mod tokens;

pub use dataset::{Batch, Dataset};
pub use error::DataError;
pub use text::TextTokenizer;
pub use tokens::Tokens;
