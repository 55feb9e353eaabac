//! What the gateway needs of the model.

use std::ops::Range;
use std::sync::Arc;

use dunlin_model::Tokenizer;
use dunlin_protocol::Windows;

use crate::template::ChatTemplate;

/// An adapter that clients may ask for in place of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedAdapter {
    /// The name they ask for.
    pub name: Arc<str>,
    /// Tokens behind the vocabulary that stand for the rows it has before every sequence.
    pub prompt: Range<u32>,
}

/// What the gateway needs of the model.
pub struct ModelText {
    /// The name clients ask for.
    pub name: String,
    /// Its adapters; all names differ.
    pub adapters: Vec<ServedAdapter>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt; a base model has none.
    pub template: Option<ChatTemplate>,
    /// Tokens that the model knows; its tokenizer may have more.
    pub vocab: u32,
    /// Longest sequence.
    pub max_len: u32,
    /// What its layers keep of a sequence.
    pub windows: Windows,
    /// Since when it is served, in seconds since 1970.
    pub since_s: u64,
}

impl ModelText {
    /// Every name that clients may ask for, the model's first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.adapters.iter().map(|a| &*a.name))
    }

    /// The adapter of this name.
    #[must_use]
    pub fn adapter(&self, name: &str) -> Option<&ServedAdapter> {
        self.adapters.iter().find(|a| *a.name == *name)
    }
}
