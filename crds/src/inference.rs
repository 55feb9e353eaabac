//! `InferenceSwarm`: schema, defaults and rules. There is no webhook, so whatever must be refused is refused here; every list, string and
//! number has a bound.

// Columns repeat keys such as `type_`; the lint takes them for one attribute.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.peers.ready",
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
    selectable = ".spec.suspend"
)]
#[x_kube(
    validation = Rule::new("self.pools.all(p, self.pools.exists_one(q, q.name == p.name))").message("pool names must be unique"),
    validation = Rule::new("!has(self.redundancy) || self.redundancy.shadows < self.pools.map(p, p.peers.max).sum()")
        .message("redundancy.shadows must be less than the number of peers in all pools together"),
    validation = Rule::new("!has(self.replicas) || self.replicas <= self.pools[0].peers.max")
        .message("replicas must be at most peers.max of the first pool")
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceSwarmSpec {
    /// What is served.
    pub model: ModelSpec,
    /// Where peers may run, best first.
    #[schemars(length(min = 1, max = 8))]
    pub pools: Vec<PoolSpec>,
    /// Peers of the first pool; its `peers.min` when absent. This is what `kubectl scale` and autoscalers set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub replicas: Option<u32>,
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
    /// Longest sequence in tokens, prompt and answer together; what the model was trained for when absent or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 16_777_216))]
    pub max_sequence_length: Option<u32>,
}

/// Where the weights are: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.http) != has(self.volume)").message("exactly one source must be given: http or volume"))]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// A GGUF file behind a URL whose server answers range requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// A file or folder on a PersistentVolumeClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSource>,
}

/// A GGUF file behind a URL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct HttpSource {
    /// `http://` or `https://`.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("url must start with http:// or https://")
    )]
    pub url: String,
    /// SHA-256 of the file in lowercase hex. Without it, whatever the URL serves is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
}

/// A file or folder on a PersistentVolumeClaim that every peer and gateway can mount for reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSource {
    /// Name of the claim, in the swarm's namespace. With more than one node it must allow `ReadOnlyMany` or `ReadWriteMany`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub claim_name: String,
    /// Path inside of the volume: a GGUF file, or a folder with config.json, tokenizer.json and safetensors.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[A-Za-z0-9._-][A-Za-z0-9._/-]*$"))]
    #[x_kube(
        validation = Rule::new("!self.split('/').exists(part, part == '..')").message("path must not leave the volume: no '..'")
    )]
    pub path: String,
}

/// Kind of capacity of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CapacityType {
    /// Preemptible nodes: tolerations and selectors for the known platforms are added.
    #[default]
    Spot,
    /// Nodes that stay.
    OnDemand,
}

/// Peers of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    /// Part of the names of its pods.
    #[schemars(length(min = 1, max = 30), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Preemptible nodes or nodes that stay.
    #[serde(default)]
    pub capacity_type: CapacityType,
    /// How many.
    pub peers: PeersSpec,
    /// Labels that nodes must have. A label about the kind of capacity replaces what `capacityType` would add.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub node_selector: BTreeMap<String, String>,
    /// What computes.
    pub device: DeviceSpec,
    /// What a peer may use.
    pub memory: MemorySpec,
}

/// Number of peers of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.min <= self.max").message("peers.min must be at most peers.max"))]
pub struct PeersSpec {
    /// So many, unless `replicas` says otherwise for the first pool.
    #[schemars(range(min = 0, max = 64))]
    pub min: u32,
    /// At most. The room above `min` is for peers of other pools that find no node: they run here until theirs has room again.
    #[schemars(range(min = 1, max = 64))]
    pub max: u32,
}

/// What computes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceSpec {
    /// Processor cores.
    pub cpu: CpuSpec,
}

/// Processor cores of a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuSpec {
    /// Threads that compute.
    #[schemars(range(min = 1, max = 256))]
    pub cores: u32,
    /// CPU request of the pod as a quantity; `cores` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(\.[0-9]+)?m?$"))]
    pub request: Option<String>,
}

/// What a peer may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemorySpec {
    /// Main memory, such as `512Mi`: limit and request of the pod.
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    pub host: String,
    /// Room for weights on the node's disk, such as `10Gi`, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    pub disk: Option<String>,
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
pub struct GatewaySpec {
    /// How many.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 32))]
    pub replicas: u32,
    /// Requests and limits of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

impl Default for GatewaySpec {
    fn default() -> Self {
        Self { replicas: two(), resources: None }
    }
}

fn two() -> u32 {
    2
}

/// What the operator found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InferenceSwarmStatus {
    /// Generation of the manifest that the rest speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled, Degraded, ModelLoaded.
    #[serde(default)]
    #[schemars(length(max = 16))]
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
    /// Selects the peers, for `/scale`.
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

/// Peers in all pools.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeersStatus {
    /// Wanted.
    #[serde(default)]
    pub desired: u32,
    /// Serving.
    #[serde(default)]
    pub ready: u32,
    /// Serving in pools of preemptible nodes.
    #[serde(default)]
    pub by_spot: u32,
    /// Serving in the other pools.
    #[serde(default)]
    pub by_on_demand: u32,
    /// `ready/desired`, for people.
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
