//! How gradients become updates.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How gradients become updates. A field that the kind does not use is ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OptimizerSpec {
    /// The algorithm.
    #[serde(default)]
    pub kind: OptimizerKind,
    /// Learning rate after warm-up.
    #[serde(default = "learning_rate")]
    #[schemars(range(min = 1e-12, max = 1000.0))]
    pub learning_rate: f64,
    /// Decay of the mean of gradients (AdamW, Lamb).
    #[serde(default = "beta1")]
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub beta1: f64,
    /// Decay of the mean of squared gradients (AdamW, Lamb).
    #[serde(default = "beta2")]
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub beta2: f64,
    /// What keeps a division by a small mean bounded (AdamW, Lamb).
    #[serde(default = "epsilon")]
    #[schemars(range(min = 1e-15, max = 1.0))]
    pub epsilon: f64,
    /// Decay of weights, apart from the gradient (AdamW, Lamb), or added to it (Sgd).
    #[serde(default = "weight_decay")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f64,
    /// Momentum (Sgd).
    #[serde(default = "momentum")]
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub momentum: f64,
    /// The gradient's norm over all stages is scaled down to this; 0 leaves it as it is.
    #[serde(default = "clip")]
    #[schemars(range(min = 0.0, max = 1e9))]
    pub clip: f64,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleSpec,
}

impl Default for OptimizerSpec {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::default(),
            learning_rate: learning_rate(),
            beta1: beta1(),
            beta2: beta2(),
            epsilon: epsilon(),
            weight_decay: weight_decay(),
            momentum: momentum(),
            clip: clip(),
            schedule: ScheduleSpec::default(),
        }
    }
}

/// Algorithm of an optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OptimizerKind {
    /// Adam with decoupled decay of weights.
    #[default]
    AdamW,
    /// AdamW with a step per tensor in proportion to its norm, for large batches.
    Lamb,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// The learning rate over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleSpec {
    /// The curve after warm-up, down to `finalFraction` at the last step.
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Steps in which the learning rate rises from 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub warmup_steps: u32,
    /// Share of the learning rate that is left at the last step (Linear, Cosine).
    #[serde(default = "final_fraction")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub final_fraction: f64,
}

impl Default for ScheduleSpec {
    fn default() -> Self {
        Self { kind: ScheduleKind::default(), warmup_steps: 0, final_fraction: final_fraction() }
    }
}

/// Curve of a learning rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScheduleKind {
    /// Stays.
    Constant,
    /// Falls in a line.
    Linear,
    /// Falls in half a cosine.
    #[default]
    Cosine,
}

fn learning_rate() -> f64 {
    3e-4
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.95
}

fn epsilon() -> f64 {
    1e-8
}

fn weight_decay() -> f64 {
    0.1
}

fn momentum() -> f64 {
    0.9
}

fn clip() -> f64 {
    1.0
}

fn final_fraction() -> f64 {
    0.1
}
