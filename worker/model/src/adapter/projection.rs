//! The matrices of a block.

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

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
