//! Names of folders, files and tensors.

use std::path::{Path, PathBuf};

/// The file that makes a folder a checkpoint.
pub(super) const FILE: &str = "training.json";
/// The folder of a step.
#[must_use]
pub(super) fn folder(destination: &Path, step: u64) -> PathBuf {
    destination.join(format!("step-{step:08}"))
}

/// Names of what a stage writes: parameters, and vectors of the optimizer.
pub(super) fn stage_files(adapter: bool, stage: u32, stages: u32) -> [String; 2] {
    let model = if adapter { "adapter" } else { "model" };
    [model, "optimizer"].map(|kind| format!("{kind}-{:05}-of-{stages:05}.safetensors", stage + 1))
}

/// The name of a tensor of an optimizer's vector. No reader of models takes it for a parameter.
pub(super) fn slot_name(slot: usize, name: &str) -> String {
    format!("optimizer.{slot}.{name}")
}
