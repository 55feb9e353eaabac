//! How gradients become updates.

use dunlin_swarm::run::{self, OptimizerKind, ScheduleKind};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How gradients become updates. A field that the kind does not use is ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OptimizerSpec {
    /// The formula of the update.
    #[serde(default)]
    pub kind: OptimizerKind,
    /// Learning rate after warm-up.
    #[schemars(range(min = 0.0, max = 100.0))]
    #[x_kube(validation = Rule::new("self >= 1e-12").message("learningRate must be more than 0"))]
    pub learning_rate: f64,
    /// Decay of the mean of gradients (AdamW, Lamb).
    #[serde(default = "run::beta1")]
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub beta1: f64,
    /// Decay of the mean of squared gradients (AdamW, Lamb).
    #[serde(default = "run::beta2")]
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub beta2: f64,
    /// What keeps a division by a small mean bounded (AdamW, Lamb).
    #[serde(default = "run::epsilon")]
    #[schemars(range(min = 0.0, max = 1.0))]
    #[x_kube(validation = Rule::new("self >= 1e-15").message("epsilon must be more than 0"))]
    pub epsilon: f64,
    /// Pull of matrices towards zero; norms and biases have none.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f64,
    /// Momentum (Sgd).
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub momentum: f64,
    /// The gradient's norm over all stages is scaled down to this; 0 leaves it as it is.
    #[serde(default = "run::clip")]
    #[schemars(range(min = 0.0, max = 1e9))]
    #[x_kube(validation = Rule::new("self == 0.0 || self >= 1e-9").message("clip must be 0, or at least 1e-9"))]
    pub clip: f64,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// Compute every step with the parameters before the last update, so that gradients are averaged while the next step is computed:
    /// peers wait for no network between steps. Gradients are one step old: the same number of steps can end at a much higher loss, more so
    /// with a high learning rate.
    /// Takes 12 bytes more of memory for each parameter.
    #[serde(default)]
    pub delayed_updates: bool,
}

/// The learning rate over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub final_fraction: f64,
}
