//! Names of folders, files and tensors.

use std::path::{Path, PathBuf};

use dunlin_model::adapter::peft;

use super::texts;
use crate::config::TrainingConfig;

/// The file that makes a folder a checkpoint.
pub(super) const FILE: &str = "training.json";
/// Which file has which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";

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

/// Names of what can be beside the files of stages.
pub(super) fn beside(config: &TrainingConfig) -> impl Iterator<Item = String> {
    let own = match config.adapter {
        Some(_) => [peft::CONFIG, peft::WEIGHTS],
        None => ["config.json", INDEX],
    };
    own.into_iter().chain(texts::FILES.map(|(name, _)| name)).map(str::to_owned)
}

/// The name of a tensor of an optimizer's vector. No reader of models takes it for a parameter.
pub(super) fn slot_name(slot: usize, name: &str) -> String {
    format!("optimizer.{slot}.{name}")
}
