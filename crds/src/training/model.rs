//! What is trained.

use dunlin_swarm::run;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::VolumeSource;

/// What is trained: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.config) != has(self.source)").message("exactly one must be given: config (a new model) or source (one to go on from)"))]
pub struct TrainedModelSpec {
    /// The shape of a new model; its weights are drawn from `seed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ModelShape>,
    /// A model to go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<TrainedModelSource>,
}

/// Where a model is to go on from: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.http) != has(self.volume)").message("exactly one source must be given: http or volume"))]
pub struct TrainedModelSource {
    /// The URL of a folder with config.json and safetensors; with `adapter`, of a GGUF file as well. Its server answers range requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<FolderSource>,
    /// A folder with config.json and safetensors, such as a checkpoint of another TrainingSwarm, on a PersistentVolumeClaim that every pod
    /// can mount for reading; with `adapter`, a GGUF file as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSource>,
}

/// A folder behind a URL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct FolderSource {
    /// `http://` or `https://`, without the names of files.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("url must start with http:// or https://")
    )]
    pub url: String,
}

/// The shape of a new model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.hiddenSize % self.heads == 0 && self.hiddenSize / self.heads % 8 == 0 && self.hiddenSize / self.heads <= 256")
        .message("hiddenSize divided by heads must be a multiple of 8 and at most 256"),
    validation = Rule::new("!has(self.kvHeads) || self.heads % self.kvHeads == 0").message("heads must be a multiple of kvHeads")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelShape {
    /// Family of the decoder.
    #[serde(default)]
    pub architecture: Architecture,
    /// Width of a row.
    #[schemars(range(min = 8, max = 65_536))]
    pub hidden_size: u32,
    /// Decoder blocks.
    #[schemars(range(min = 1, max = 1024))]
    pub layers: u32,
    /// Query heads.
    #[schemars(range(min = 1, max = 1024))]
    pub heads: u32,
    /// Key and value heads; `heads` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub kv_heads: Option<u32>,
    /// Width inside of the feed-forward part.
    #[schemars(range(min = 8, max = 1_048_576))]
    pub ffn: u32,
    /// Tokens that it knows; as many as the tokenizer has when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 4_194_304))]
    pub vocab: Option<u32>,
    /// Longest sequence that it is made for, in tokens.
    #[schemars(range(min = 8, max = 16_777_216))]
    pub context_length: u32,
    /// Base of the rotary embedding.
    #[serde(default = "run::rope_base")]
    #[schemars(range(min = 1.0, max = 1e9))]
    pub rope_base: f64,
    /// Epsilon of the norms.
    #[serde(default = "run::rms_eps")]
    #[schemars(range(min = 0.0, max = 0.1))]
    #[x_kube(validation = Rule::new("self >= 1e-12").message("rmsEps must be more than 0"))]
    pub rms_eps: f64,
    /// The output matrix is the embedding.
    #[serde(default)]
    pub tied: bool,
}

/// Family of a decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Architecture {
    /// Llama.
    #[default]
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2: biases on queries, keys and values.
    Qwen2,
}
