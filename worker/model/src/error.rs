//! What can be wrong with a model, said so that a user knows what to do.

use std::io;

use dunlin_kernels::PackError;
use thiserror::Error;

/// Why a model cannot be used.
#[derive(Debug, Error)]
pub enum ModelError {
    /// Bytes could not be read.
    #[error("cannot read {what}")]
    Read {
        /// The file or URL.
        what: String,
        /// What the system or the server said.
        source: io::Error,
    },
    /// The file breaks its format.
    #[error("{file} is not a sound {format} file: {what}; use an intact copy of it")]
    Malformed {
        /// Name of the file.
        file: String,
        /// `GGUF`, `safetensors`, `config.json`, ...
        format: &'static str,
        /// The first thing that is wrong.
        what: String,
    },
    /// A kind of model that is not known here.
    #[error("{0}")]
    Unsupported(String),
    /// Something in a model of a known kind that is not known here.
    #[error("{what}; {remedy}")]
    Refused {
        /// Where it is, and what.
        what: String,
        /// What to do, or what runs.
        remedy: String,
    },
    /// A tensor is not there.
    #[error("the model has no tensor `{0}`; the file is incomplete or of another architecture")]
    MissingTensor(String),
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` is {found:?}, the configuration needs {expected:?}")]
    Shape {
        /// Name of the tensor, as its file has it.
        name: String,
        /// The shape that it has in the file.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor cannot be packed.
    #[error("tensor `{name}` cannot be packed")]
    Pack {
        /// Name of the tensor, as its file has it.
        name: String,
        /// What is in the way.
        source: PackError,
    },
    /// The weights make values that are not finite.
    #[error(
        "{0}; the weights are damaged or not made for this configuration, use an intact copy of the model"
    )]
    NonFinite(#[from] NonFinite),
    /// An adapter is not sound, or not for this model.
    #[error("the adapter in {folder} cannot be used with this model: {what}")]
    Adapter {
        /// Where it is.
        folder: String,
        /// The first thing that is wrong.
        what: String,
    },
    /// The tokenizer cannot be used.
    #[error("the tokenizer cannot be used: {0}")]
    Tokenizer(String),
}

impl ModelError {
    /// The tokenizer cannot be used.
    pub(crate) fn tokenizer(what: impl Into<String>) -> Self {
        Self::Tokenizer(what.into())
    }

    /// Can another try help (a server that is down), or is the model itself at fault?
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Read { .. })
    }
}

/// A value that is not finite appeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a value that is not finite appeared in layer {layer}, row {row}")]
pub struct NonFinite {
    /// Index of the layer in the model.
    pub layer: u32,
    /// In the first row of this index in the batch.
    pub row: usize,
}

/// As much as a message quotes of a text from a file.
pub(crate) fn excerpt(text: &str) -> &str {
    const CHARACTERS: usize = 80;
    text.char_indices().nth(CHARACTERS).map_or(text, |(end, _)| &text[..end])
}
