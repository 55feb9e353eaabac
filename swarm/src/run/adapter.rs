//! What is trained over a model that stays as it is.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(feature = "schema")]
use super::rules;
#[cfg(feature = "schema")]
use crate::limits::ADAPTER_ROWS_MAX;

/// Two thin matrices beside each of some matrices (Hu et al., arXiv 2106.09685).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct LoraShape {
    /// Width between the two matrices.
    #[serde(default = "rank")]
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 1, max = ADAPTER_ROWS_MAX)))]
    pub rank: usize,
    /// What they add is scaled by `alpha` / `rank`.
    #[serde(default = "alpha")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            with = "f64", range(min = 0.0, max = 1e6),
            extend("x-kubernetes-validations" = rules(&[("self >= 1e-12", "alpha must be more than 0")]))
        )
    )]
    pub alpha: f32,
    /// Matrices of each decoder block that have such a pair.
    #[serde(default = "targets")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(min = 1, max = 7),
            extend("x-kubernetes-validations" = rules(&[("self.all(t, self.exists_one(u, u == t))", "targets must be unique")]))
        )
    )]
    pub targets: Vec<Projection>,
}

/// A matrix of a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum Projection {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// The output of attention.
    Output,
    /// The gate of the feed-forward part.
    Gate,
    /// Into the feed-forward part.
    Up,
    /// Out of the feed-forward part.
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
}

/// Trained rows before every sequence (Lester et al., arXiv 2104.08691).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct PromptShape {
    /// How many rows.
    #[serde(default = "tokens")]
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 1, max = ADAPTER_ROWS_MAX)))]
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
