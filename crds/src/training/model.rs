//! What is trained.

use dunlin_swarm::run::ModelShape;
use kube::KubeSchema;
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
