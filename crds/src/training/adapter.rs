//! What is trained over a model that stays as it is.

use dunlin_swarm::run::{LoraShape, PromptShape};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What is trained over a model that stays as it is: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.lora) != has(self.prompt)").message("exactly one adapter must be given: lora or prompt"))]
pub struct TrainedAdapterSpec {
    /// LoRA: two thin matrices beside each matrix that `targets` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraShape>,
    /// Prompt tuning: rows before every sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptShape>,
}
