//! Adapters: a few trained values beside the weights of a model that stay as they are.
//!
//! * [`low_rank`] `y += B (A x) * alpha / rank` beside some matrices of each block (LoRA, Hu et al. 2021)
//! * [`peft`] files in the form of the PEFT library: what others trained is served here, and the other way round
//! * [`random`] random ones for tests and benchmarks
//!
//! A prompt that was trained (Lester et al. 2021) is a few rows that stand before the embeddings of every sequence. They are addressed as
//! tokens beyond the vocabulary, so that everything that works with tokens, replay above all, works with them.

pub mod low_rank;
pub mod peft;
pub mod random;

mod peft_keys;
mod strangers;

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

pub use low_rank::{AdaptedRows, LayerAdapter};
pub use peft::Adapter;

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

/// A matrix of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Projection {
    /// Rows to queries.
    Query,
    /// Rows to keys.
    Key,
    /// Rows to values.
    Value,
    /// What was attended to, to rows.
    Output,
    /// Rows to what opens and closes the feed-forward part.
    Gate,
    /// Rows to its inner values.
    Up,
    /// Inner values to rows.
    Down,
}

impl Projection {
    /// All of a block, in canonical order.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Where it is in a block, as Hugging Face names it.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Outputs and inputs.
    #[must_use]
    pub fn shape(self, c: &ModelConfig) -> (usize, usize) {
        match self {
            Self::Query => (c.q_width(), c.hidden),
            Self::Key | Self::Value => (c.kv_width(), c.hidden),
            Self::Output => (c.hidden, c.q_width()),
            Self::Gate | Self::Up => (c.ffn, c.hidden),
            Self::Down => (c.hidden, c.ffn),
        }
    }
}
