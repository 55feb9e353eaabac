//! How gradients become updates.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(feature = "schema")]
use super::rules;

/// Algorithm of an optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum OptimizerKind {
    /// Adam with decoupled decay of weights.
    #[default]
    AdamW,
    /// AdamW with a step per tensor in proportion to its norm, for large batches.
    Lamb,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// Curve of a learning rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum ScheduleKind {
    /// Stays.
    #[default]
    Constant,
    /// Falls in a line.
    Linear,
    /// Falls in half a cosine.
    Cosine,
}

/// How gradients become updates. A field that the kind does not use is ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct OptimizerSpec {
    /// The formula of the update.
    #[serde(default)]
    pub kind: OptimizerKind,
    /// Learning rate after warm-up.
    #[cfg_attr(
        feature = "schema",
        schemars(
            range(min = 0.0, max = 100.0),
            extend("x-kubernetes-validations" = rules(&[("self >= 1e-12", "learningRate must be more than 0")]))
        )
    )]
    pub learning_rate: f64,
    /// Decay of the mean of gradients (AdamW, Lamb).
    #[serde(default = "beta1")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 0.999_999)))]
    pub beta1: f64,
    /// Decay of the mean of squared gradients (AdamW, Lamb).
    #[serde(default = "beta2")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 0.999_999)))]
    pub beta2: f64,
    /// What keeps a division by a small mean bounded (AdamW, Lamb).
    #[serde(default = "epsilon")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            range(min = 0.0, max = 1.0),
            extend("x-kubernetes-validations" = rules(&[("self >= 1e-15", "epsilon must be more than 0")]))
        )
    )]
    pub epsilon: f64,
    /// Pull of matrices towards zero; norms and biases have none.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 10.0)))]
    pub weight_decay: f64,
    /// Momentum (Sgd).
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 0.999_999)))]
    pub momentum: f64,
    /// The gradient's norm over all stages is scaled down to this; 0 leaves it as it is.
    #[serde(default = "clip", with = "zero_is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            with = "f64", range(min = 0.0, max = 1e9),
            extend("x-kubernetes-validations" = rules(&[("self == 0.0 || self >= 1e-9", "clip must be 0, or at least 1e-9")]))
        )
    )]
    pub clip: Option<f64>,
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ScheduleSpec {
    /// The curve after warm-up, down to `finalFraction` at the last step.
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Steps in which the learning rate rises from 0.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 0, max = 1_000_000_000)))]
    pub warmup_steps: u64,
    /// Share of the learning rate that is left at the last step (Linear, Cosine).
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 1.0)))]
    pub final_fraction: f64,
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

fn clip() -> Option<f64> {
    Some(1.0)
}

/// A manifest says 0 where there is no bound, a file may say `null`, too.
mod zero_is_none {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<f64>::deserialize(from)?.filter(|bound| *bound != 0.0))
    }

    pub(super) fn serialize<S: Serializer>(bound: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(bound.unwrap_or(0.0))
    }
}
