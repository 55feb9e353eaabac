//! What is trained over a model that stays as it is.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is trained over a model that stays as it is: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.lora) != has(self.prompt)").message("exactly one adapter must be given: lora or prompt"))]
pub struct TrainedAdapterSpec {
    /// LoRA: two thin matrices beside each matrix that `targets` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSpec>,
    /// Prompt tuning: rows before every sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptSpec>,
}

/// Two thin matrices beside each of some matrices (Hu et al., arXiv 2106.09685).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct LoraSpec {
    /// Width between the two matrices.
    #[serde(default = "rank")]
    #[schemars(range(min = 1, max = 1024))]
    pub rank: u32,
    /// What they add is scaled by `alpha` / `rank`.
    #[serde(default = "alpha")]
    #[schemars(range(min = 0.0, max = 1e6))]
    #[x_kube(validation = Rule::new("self >= 1e-12").message("alpha must be more than 0"))]
    pub alpha: f64,
    /// Matrices of each decoder block that have such a pair.
    #[serde(default = "targets")]
    #[schemars(length(min = 1, max = 7))]
    #[x_kube(validation = Rule::new("self.all(t, self.exists_one(u, u == t))").message("targets must be unique"))]
    pub targets: Vec<LoraTarget>,
}

/// A matrix of a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LoraTarget {
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

/// Trained rows before every sequence (Lester et al., arXiv 2104.08691).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromptSpec {
    /// How many rows.
    #[serde(default = "tokens")]
    #[schemars(range(min = 1, max = 1024))]
    pub tokens: u32,
}

fn rank() -> u32 {
    8
}

fn alpha() -> f64 {
    16.0
}

fn targets() -> Vec<LoraTarget> {
    vec![LoraTarget::Query, LoraTarget::Value]
}

fn tokens() -> u32 {
    16
}
