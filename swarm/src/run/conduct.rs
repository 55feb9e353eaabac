//! How a run is conducted: how numbers travel, how often the loss is measured, what is kept.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// How numbers travel between pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct WireSpec {
    /// Activations and their gradients, between stages.
    #[serde(default)]
    pub activations: ActivationWire,
    /// Gradients of parameters, between the peers of a stage.
    #[serde(default)]
    pub gradients: GradientWire,
}

/// How often the loss on held-out data is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ValidationSpec {
    /// Steps between measurements.
    #[serde(default = "hundred")]
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 1, max = 1_000_000_000)))]
    pub every_steps: u64,
    /// Microbatches of one measurement.
    #[serde(default = "eight")]
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 1, max = 65_536)))]
    pub batches: usize,
}

impl Default for ValidationSpec {
    fn default() -> Self {
        Self { every_steps: hundred(), batches: eight() }
    }
}

/// What is kept of the run: weights that an InferenceSwarm serves, and what training goes on from. `D`: how a destination is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema),
    schemars(
        description = "What is kept of the run: weights that an InferenceSwarm serves, and what training goes on from."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointSpec<D> {
    /// Steps between checkpoints.
    #[serde(default = "hundred")]
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 1, max = 1_000_000_000)))]
    pub every_steps: u64,
    /// Checkpoints that are kept; older ones are deleted.
    #[serde(default = "keep")]
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 1, max = 1000)))]
    pub keep: usize,
    /// Where they go. Deleting the swarm leaves them there.
    pub destination: D,
}

impl<D> CheckpointSpec<D> {
    /// The same, with its destination named in another way.
    #[must_use]
    pub fn with_destination<E>(&self, destination: E) -> CheckpointSpec<E> {
        CheckpointSpec { every_steps: self.every_steps, keep: self.keep, destination }
    }
}

fn hundred() -> u64 {
    100
}

fn eight() -> usize {
    8
}

fn keep() -> usize {
    3
}
