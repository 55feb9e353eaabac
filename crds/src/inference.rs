//! `InferenceSwarm`: schema, defaults and rules. There is no webhook, so whatever must be refused is refused here; every list, string and
//! number has a bound.

// Columns repeat keys such as `type_`; the lint takes them for one attribute.
#![allow(clippy::duplicated_attributes)]

use dunlin_swarm::limits;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::ResourcesSpec;
use crate::pod::PodTemplateSpec;
use crate::shared::{ModelSource, PeersStatus, PoolSpec, VolumeSource};

/// A model and the pools of preemptible pods that serve it together.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "dunlin.dev",
    version = "v1alpha1",
    kind = "InferenceSwarm",
    plural = "inferenceswarms",
    shortname = "isw",
    category = "swarms",
    namespaced,
    status = "InferenceSwarmStatus",
    derive = "PartialEq",
    doc = "An InferenceSwarm is a model and the pools of preemptible pods that serve it together.",
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
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model"),
    printcolumn(name = "Layers", type_ = "string", json_path = ".status.layers.display"),
    printcolumn(name = "Peers", type_ = "string", json_path = ".status.peers.display"),
    printcolumn(name = "Spot", type_ = "integer", json_path = ".status.peers.bySpot"),
    printcolumn(name = "Capacity", type_ = "integer", json_path = ".status.capacityPercent"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.model.name",
    selectable = ".spec.suspend",
    validation = Rule::new("!has(self.spec.adapters) || self.spec.adapters.all(a, a.name != (has(self.spec.model.name) ? self.spec.model.name : self.metadata.name))")
        .message("the name of an adapter must not be that of the model")
        .field_path(".spec.adapters"),
    validation = Rule::new("self.metadata.name.size() <= 48 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of a swarm is part of the names of its Services and pods: at most 48 characters a-z, 0-9 and '-', the first a letter, the last no '-'")
)]
#[x_kube(
    validation = Rule::new("!has(self.redundancy) || self.redundancy.shadows < self.pools.map(p, p.peers.max).sum()")
        .message("redundancy.shadows must be less than the number of peers in all pools together"),
    validation = Rule::new("self.replicas <= self.pools[0].peers.max")
        .message("replicas must be at most peers.max of the first pool")
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceSwarmSpec {
    /// What is served.
    pub model: ModelSpec,
    /// Adapters over the model: clients ask for one by its name instead of the model's. A changed list replaces pods as a changed
    /// `model.source` does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub adapters: Vec<AdapterSpec>,
    /// Where peers may run, best first.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pools: Vec<PoolSpec>,
    /// Peers of the first pool, which never has fewer than its `peers.min`: 1 means that many. This is what `kubectl scale` and autoscalers
    /// set; leave it out of a manifest that is applied again and again.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub replicas: u32,
    /// How losses are prepared for.
    #[serde(default)]
    pub redundancy: RedundancySpec,
    /// The pods that answer clients.
    #[serde(default)]
    pub gateway: GatewaySpec,
    /// Run nothing, keep the object.
    #[serde(default)]
    pub suspend: bool,
}

/// What is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(has(self.name) ? self.name : '') == (has(oldSelf.name) ? oldSelf.name : '')")
        .message("model.name cannot change, as clients ask for it: make another swarm and delete this one when they have moved")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// The name clients ask for; the swarm's name when absent. It cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$"))]
    pub name: Option<String>,
    /// Where the weights are.
    pub source: ModelSource,
    /// Longest sequence in tokens, prompt and answer together; what the model was trained for when absent or less. Every peer needs memory for
    /// the KV cache of one sequence of this length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = limits::CONTEXT_TOKENS_MAX))]
    pub max_sequence_length: Option<u32>,
}

/// An adapter over the model: LoRA or prompt tuning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdapterSpec {
    /// The name clients ask for; not the model's. It stands for one content: a changed adapter needs another name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$"))]
    pub name: String,
    /// Where its folder is.
    pub source: AdapterSource,
}

/// Where an adapter is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdapterSource {
    /// A folder with adapter_config.json and adapter_model.safetensors in PEFT's form, such as a checkpoint of a TrainingSwarm with
    /// `adapter`, on a PersistentVolumeClaim that every pod can mount for reading.
    pub volume: VolumeSource,
}

/// How losses are prepared for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RedundancySpec {
    /// How many other peers keep each layer ready.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 8))]
    pub shadows: u32,
}

impl Default for RedundancySpec {
    fn default() -> Self {
        Self { shadows: one() }
    }
}

fn one() -> u32 {
    1
}

/// The pods that answer clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Number of gateway pods.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 32))]
    pub replicas: u32,
    /// A gateway that is told to end finishes the answers that it has begun for at most so many seconds; those that take longer end with an
    /// error. A node that is reclaimed may give it less time.
    #[serde(default = "two_minutes")]
    #[schemars(range(min = 5, max = 3600))]
    pub drain_seconds: u32,
    /// Requests and limits of each. Requested are 100m of CPU and 128Mi of memory, and with a model that has a `sha256` the largest `memory.disk`
    /// of the pools as `ephemeral-storage`, where nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesSpec>,
    /// What their pods get beside what they need. A changed one rolls them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateSpec>,
}

impl Default for GatewaySpec {
    fn default() -> Self {
        Self { replicas: two(), drain_seconds: two_minutes(), resources: None, pod_template: None }
    }
}

fn two() -> u32 {
    2
}

fn two_minutes() -> u32 {
    120
}

/// What the operator found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InferenceSwarmStatus {
    /// Generation of the manifest that the rest speaks about; -1 while no operator has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled, Degraded, ModelLoaded.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The name clients ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub model: Option<String>,
    /// Number of the current plan.
    #[serde(default)]
    pub epoch: u64,
    /// Layers of the model.
    #[serde(default)]
    pub layers: LayersStatus,
    /// Peers in all pools.
    #[serde(default)]
    pub peers: PeersStatus,
    /// Ready peers in percent of those desired.
    #[serde(default)]
    pub capacity_percent: u32,
    /// Base of the OpenAI API inside of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Who holds what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// Pods of the first pool that are there, ready or not, for `/scale`.
    #[serde(default)]
    pub replicas: u32,
    /// Selects the pods of the first pool, for `/scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

/// Layers of the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayersStatus {
    /// Of the model; 0 while it has not been read.
    #[serde(default)]
    pub total: u32,
    /// Held by some peer.
    #[serde(default)]
    pub served: u32,
    /// Held by as many other peers as asked for.
    #[serde(default)]
    pub shadowed: u32,
    /// `served/total`, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub display: String,
}

/// Who holds what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanStatus {
    /// What the plan is and why, and a table of the peers: layers they execute, layers they hold for others, MiB of weights and room for them.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub summary: String,
}
