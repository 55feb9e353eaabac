//! What an adapter is made of.

use serde::{Deserialize, Serialize};

use crate::spec::Projection;

/// What an adapter is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AdapterShape {
    /// Products of two thin matrices beside those of the model.
    Lora(LoraShape),
    /// Rows before every sequence.
    Prompt(PromptShape),
}

/// Products of two thin matrices beside those of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoraShape {
    /// Width between both matrices.
    #[serde(default = "rank")]
    pub rank: usize,
    /// The product counts `alpha / rank` times.
    #[serde(default = "alpha")]
    pub alpha: f32,
    /// Beside which matrices of each block.
    #[serde(default = "targets")]
    pub targets: Vec<Projection>,
}

/// Rows before every sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromptShape {
    /// How many.
    #[serde(default = "tokens")]
    pub tokens: usize,
}

fn rank() -> usize {
    8
}

fn alpha() -> f32 {
    16.0
}

fn targets() -> Vec<Projection> {
    vec![Projection::Query, Projection::Value]
}

fn tokens() -> usize {
    16
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
