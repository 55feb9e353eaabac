//! Words and defaults of a training run that its manifest and its workers share: `crds/` has the manifest, `worker/train` what workers read.
//!
//! A default is here once, because a run whose manifest leaves a field out must mean the same to whoever reads it.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// Encoding of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum ActivationWire {
    /// As computed, 4 bytes: the weights do not depend on where the stages are cut.
    #[default]
    F32,
    /// 2 bytes.
    F16,
    /// 1 byte, scaled by blocks.
    Q8,
}

/// Encoding of averaged gradients. All peers of a stage apply the same bits whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum GradientWire {
    /// Sums without rounding, 8 bytes.
    #[default]
    Exact,
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 1 byte, scaled by blocks.
    Q8,
}

/// Decay of the mean of gradients (AdamW, Lamb).
#[must_use]
pub fn beta1() -> f64 {
    0.9
}

/// Decay of the mean of squared gradients (AdamW, Lamb).
#[must_use]
pub fn beta2() -> f64 {
    0.95
}

/// What keeps a division by a small mean bounded (AdamW, Lamb).
#[must_use]
pub fn epsilon() -> f64 {
    1e-8
}

/// The longest gradient, over all parameters.
#[must_use]
pub fn clip() -> f64 {
    1.0
}

/// Base of the rotary embedding.
#[must_use]
pub fn rope_base() -> f64 {
    10_000.0
}

/// Epsilon of the norms.
#[must_use]
pub fn rms_eps() -> f64 {
    1e-5
}

/// The field of a JSON object that has the document.
#[must_use]
pub fn text_field() -> String {
    "text".to_owned()
}

/// Share of the tokens, at the end, that is held back to measure the loss on.
#[must_use]
pub fn validation_fraction() -> f64 {
    0.01
}

/// Complete checkpoints that are kept.
#[must_use]
pub fn keep() -> u32 {
    3
}
