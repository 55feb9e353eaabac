//! `TrainingSwarm`: schema, defaults and rules. As with `InferenceSwarm` there is no webhook, so whatever must be refused is refused here.
//!
//! What workers read, too, is in [`dunlin_swarm::run`], once for both.
//!
//! * [`model`] what is trained · [`adapter`] what is trained over it · [`status`] what the operator found

// Columns repeat keys such as `type_`; the lint takes them for one attribute.
#![allow(clippy::duplicated_attributes)]

pub mod adapter;
pub mod model;
pub mod status;

use dunlin_swarm::limits;
use dunlin_swarm::run::{self, CheckpointSpec, OptimizerSpec, ValidationSpec, WireSpec};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use adapter::TrainedAdapterSpec;
pub use model::{FolderSource, TrainedModelSource, TrainedModelSpec};
pub use status::{CheckpointStatus, DisplayStatus, StageStatus, TrainingSwarmStatus};

use crate::amount::ResourcesSpec;
use crate::pod::PodTemplateSpec;
use crate::shared::{HttpSource, PoolSpec, VolumeSource};

/// A model and the pools of preemptible pods that train it together.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "dunlin.dev",
    version = "v1alpha1",
    kind = "TrainingSwarm",
    plural = "trainingswarms",
    shortname = "tsw",
    category = "swarms",
    namespaced,
    status = "TrainingSwarmStatus",
    derive = "PartialEq",
    doc = "A TrainingSwarm is a model and the pools of preemptible pods that train it together.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.display.step"),
    printcolumn(name = "Loss", type_ = "string", json_path = ".status.display.loss"),
    printcolumn(name = "Tokens/s", type_ = "string", json_path = ".status.display.tokensPerSecond"),
    printcolumn(name = "Peers", type_ = "string", json_path = ".status.peers.display"),
    printcolumn(name = "Stages", type_ = "string", json_path = ".status.display.stages"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(
        name = "Checkpoint",
        type_ = "integer",
        json_path = ".status.lastCheckpoint.step",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.suspend",
    validation = Rule::new("self.metadata.name.size() <= 48 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of a swarm is part of the names of its Services and pods: at most 48 characters a-z, 0-9 and '-', the first a letter, the last no '-'")
)]
#[x_kube(
    validation = Rule::new("self.model == oldSelf.model").message("model cannot change: another model is another TrainingSwarm"),
    validation = Rule::new("has(self.adapter) == has(oldSelf.adapter) && (!has(self.adapter) || self.adapter == oldSelf.adapter)")
        .message("adapter cannot change: another adapter is another TrainingSwarm"),
    validation = Rule::new("!has(self.adapter) || has(self.model.source)")
        .message("adapter needs model.source: it is trained over a model that stays as it is"),
    validation = Rule::new("self.data == oldSelf.data").message("data cannot change: steps that are done would belong to other data"),
    validation = Rule::new("self.stages == oldSelf.stages").message("stages cannot change"),
    validation = Rule::new("self.seed == oldSelf.seed").message("seed cannot change: the order of the data follows from it"),
    validation = Rule::new("self.globalBatch % self.microbatch == 0").message("globalBatch must be a multiple of microbatch"),
    validation = Rule::new("!has(self.model.config) || self.stages <= self.model.config.layers")
        .message("stages must be at most model.config.layers"),
    validation = Rule::new("!has(self.model.config) || self.sequenceLength <= self.model.config.contextLength")
        .message("sequenceLength must be at most model.config.contextLength"),
    validation = Rule::new("self.globalBatch / self.microbatch <= 4096").message("globalBatch must be at most 4096 times microbatch"),
    validation = Rule::new("self.microbatch * self.sequenceLength <= 4194304")
        .message("microbatch times sequenceLength must be at most 4194304 tokens"),
    validation = Rule::new("self.optimizer.schedule.warmupSteps <= self.steps").message("optimizer.schedule.warmupSteps must be at most steps"),
    validation = Rule::new("!has(self.data.tokenizer) || self.data.tokenizer == 'Bytes' || has(self.model.source)")
        .message("tokenizer Model needs model.source: a new model has none"),
    validation = Rule::new("!has(self.model.config) || !has(self.model.config.vocab) || self.model.config.vocab >= 256")
        .message("model.config.vocab must be at least 256, the tokens of Bytes"),
    validation = Rule::new("self.pools.all(p, !has(p.device.nvidia))")
        .message("training computes on processors only: take device.nvidia out of the pools"),
    validation = Rule::new("self.replicas <= self.pools[0].peers.max")
        .message("replicas must be at most peers.max of the first pool"),
    validation = Rule::new("(self.replicas > self.pools[0].peers.min ? self.replicas - self.pools[0].peers.min : 0) + self.pools.map(p, p.peers.min).sum() >= self.stages")
        .message("the pools need at least one peer for each stage: raise peers.min (or replicas), or lower stages")
)]
#[serde(rename_all = "camelCase")]
pub struct TrainingSwarmSpec {
    /// What is trained: a new model, or one to go on from. It cannot change.
    pub model: TrainedModelSpec,
    /// Train this over the model of `model.source`, which stays as it is. Checkpoints are then folders in PEFT's form, for `adapters` of an
    /// InferenceSwarm. It cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<TrainedAdapterSpec>,
    /// What it is trained on. It cannot change.
    pub data: DataSpec,
    /// Tokens of a sequence.
    #[schemars(range(min = 8, max = limits::SEQUENCE_TOKENS_MAX))]
    pub sequence_length: u32,
    /// Sequences of a step: the sum of their gradients makes one update, whoever computes which.
    #[schemars(range(min = 1, max = limits::BATCH_SEQUENCES_MAX))]
    pub global_batch: u32,
    /// Sequences that travel through the stages together.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = limits::MICROBATCH_SEQUENCES_MAX))]
    pub microbatch: u32,
    /// Updates until the swarm has succeeded. Raised on a swarm that has, it goes on.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: u32,
    /// Seeds the first weights and the order of the data. It cannot change.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_u64))]
    pub seed: u64,
    /// How gradients become updates.
    pub optimizer: OptimizerSpec,
    /// Spans of layers; each is held by one or more peers. It cannot change.
    #[schemars(range(min = 1, max = limits::STAGES_MAX))]
    pub stages: u32,
    /// Where peers may run, best first.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pools: Vec<PoolSpec>,
    /// Peers of the first pool, which never has fewer than its `peers.min`: 1 means that many. This is what `kubectl scale` and autoscalers
    /// set; leave it out of a manifest that is applied again and again.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub replicas: u32,
    /// The pods that read the data and drive it through the stages.
    #[serde(default)]
    pub trainers: TrainersSpec,
    /// The pod that keeps the ledger of the run.
    #[serde(default)]
    pub conductor: ConductorSpec,
    /// How numbers travel.
    #[serde(default)]
    pub wire: WireSpec,
    /// How often the loss on held-out data is measured.
    #[serde(default)]
    pub validation: ValidationSpec,
    /// What is kept of the run.
    pub checkpoint: CheckpointSpec<CheckpointDestination>,
    /// Write a checkpoint at the end of the step, then run nothing; false goes on from there.
    #[serde(default)]
    pub suspend: bool,
}

/// What the model is trained on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataSpec {
    /// Where the file is.
    pub source: DataSource,
    /// What the file is.
    #[serde(default)]
    pub format: DataFormat,
    /// As [`TokenizerKind`] says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerKind>,
    /// Share of the data that is held out for validation; 0 measures no validation loss.
    #[serde(default = "run::validation_fraction")]
    #[schemars(range(min = 0.0, max = 0.5))]
    pub validation_fraction: f64,
}

/// Where the data is: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.http) != has(self.volume)").message("exactly one source must be given: http or volume"))]
pub struct DataSource {
    /// A file behind a URL; trainers download it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// A file on a PersistentVolumeClaim that every trainer can mount for reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSource>,
}

/// What a file of data is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DataFormat {
    /// One text, UTF-8.
    #[default]
    Text,
    /// One JSON object a line, each a document with the key `text`.
    JsonLines,
}

/// How text becomes tokens: `Model` when absent and there is a `model.source`, else `Bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TokenizerKind {
    /// Each byte is a token; byte 0 ends a document. Not over a model that has a tokenizer of its own.
    Bytes,
    /// The tokenizer beside the model in `model.source`, or inside of it when it is a GGUF file.
    Model,
}

/// The pods that read the data and drive it through the stages. They hold no weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainersSpec {
    /// How many. With two, the loss of one costs nothing: its microbatches go to the other.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 32))]
    pub replicas: u32,
    /// Requests and limits of each; 100m of CPU and 512Mi of memory when absent. It holds all tokens of the data, 4 bytes each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesSpec>,
    /// What their pods get beside what they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateSpec>,
}

/// The pod that keeps the ledger of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConductorSpec {
    /// What it gets beside what it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateSpec>,
}

impl Default for TrainersSpec {
    fn default() -> Self {
        Self { replicas: two(), resources: None, pod_template: None }
    }
}

/// Where checkpoints go: exactly one of the fields. It cannot change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("checkpoint.destination cannot change: the run goes on from what is there"),
    validation = Rule::new("[has(self.http), has(self.s3), has(self.volume)].filter(given, given).size() == 1").message("exactly one destination must be given: http, s3 or volume")
)]
pub struct CheckpointDestination {
    /// A folder on a PersistentVolumeClaim; it is made when it is not there. With more than one node the claim must allow
    /// `ReadWriteMany`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSource>,
    /// A URL below which a server takes PUT and DELETE and answers GET and HEAD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpDestination>,
    /// A bucket of object storage that speaks S3's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Destination>,
}

/// A place on a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpDestination {
    /// `http://` or `https://`; of this run alone.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.matches('^https?://[^/?#]+')").message("url must start with http:// or https:// and name a host")
    )]
    pub url: String,
    /// Name of a Secret in the namespace of the swarm whose keys are names of headers, and go with every request: `Authorization`, say. It may
    /// change while the run goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub headers_secret: Option<String>,
}

/// A place in a bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Destination {
    /// `http://` or `https://`, without the bucket; AWS's for the region when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.matches('^https?://[^/?#]+')").message("endpoint must start with http:// or https:// and name a host")
    )]
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    #[serde(default = "us_east_1")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub region: String,
    /// Name of the bucket; it must be there.
    #[schemars(length(min = 3, max = 222), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub bucket: String,
    /// What the names of all objects begin with, without the `/` that follows: `runs/bible`, say; of this run alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512), regex(pattern = r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$"))]
    #[x_kube(
        validation = Rule::new("!self.split('/').exists(part, part == '.' || part == '..')").message("prefix must have no part '.' or '..'")
    )]
    pub prefix: String,
    /// Whether the bucket is in the path of URLs or in the name of their host. When absent: in the path if `endpoint` is given or the name of
    /// the bucket has a dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// Name of a Secret in the namespace of the swarm with the keys `accessKeyId`, `secretAccessKey` and, for credentials that end,
    /// `sessionToken`. They may change while the run goes on.
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret: String,
}

fn us_east_1() -> String {
    "us-east-1".to_owned()
}

fn one() -> u32 {
    1
}

fn two() -> u32 {
    2
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    /// Rules are literals, so that they cannot name a bound of [`limits`].
    #[test]
    fn rules_have_the_bounds_that_workers_check() {
        let schema = serde_json::to_string(&TrainingSwarm::crd()).unwrap_or_default();
        for rule in [
            format!("self.globalBatch / self.microbatch <= {}", limits::MICROBATCHES_MAX),
            format!("self.microbatch * self.sequenceLength <= {}", limits::MICROBATCH_TOKENS_MAX),
        ] {
            assert!(schema.contains(&format!("\"{rule}\"")), "{rule}");
        }
    }
}
