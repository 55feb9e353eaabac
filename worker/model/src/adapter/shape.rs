//! What an adapter is made of.

use dunlin_swarm::run::{LoraShape, PromptShape};
use serde::{Deserialize, Serialize};

/// What an adapter is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AdapterShape {
    /// Products of two thin matrices beside those of the model.
    Lora(LoraShape),
    /// Rows before every sequence.
    Prompt(PromptShape),
}

impl AdapterShape {
    /// Rows before every sequence.
    #[must_use]
    pub fn prompt_rows(&self) -> usize {
        match self {
            Self::Lora(_) => 0,
            Self::Prompt(prompt) => prompt.tokens,
        }
    }
}
