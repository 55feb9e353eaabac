//! What both kinds of swarm have: sources of files, pools of nodes, counts of peers.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::pod::PodTemplateSpec;

/// Where the weights are: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.http) != has(self.volume)").message("exactly one source must be given: http or volume"))]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// A GGUF file, or a folder with config.json, tokenizer.json and safetensors, behind a URL whose server answers range requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// A GGUF file, or a folder with config.json, tokenizer.json and safetensors, on a PersistentVolumeClaim that every pod can mount for reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSource>,
}

/// A file behind a URL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct HttpSource {
    /// `http://` or `https://`.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.matches('^https?://[^/?#]+')").message("url must start with http:// or https:// and name a host")
    )]
    pub url: String,
    /// SHA-256 of the file, not of a folder, in lowercase hex. Without it, whatever the URL serves is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
}

/// A file or folder on a PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSource {
    /// Name of the claim, in the swarm's namespace. With more than one node it must allow `ReadOnlyMany` or `ReadWriteMany`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub claim_name: String,
    /// Path inside of the volume.
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
    /// How many peers it has, at least and at most.
    pub peers: PeersSpec,
    /// Labels that nodes must have. A label about the kind of capacity replaces what `capacityType` would add.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"}))]
    pub node_selector: BTreeMap<String, String>,
    /// What a peer computes with.
    pub device: DeviceSpec,
    /// What a peer may use.
    pub memory: MemorySpec,
    /// What its pods get beside what they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateSpec>,
}

/// Number of peers of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.min <= self.max").message("peers.min must be at most peers.max"))]
pub struct PeersSpec {
    /// At least so many; the first pool has more when `replicas` says so.
    #[schemars(range(min = 0, max = 64))]
    pub min: u32,
    /// At most. The room above `min` is for peers of other pools that find no node: they run here until theirs has room again.
    #[schemars(range(min = 1, max = 64))]
    pub max: u32,
}

/// What a peer computes with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceSpec {
    /// Processor cores, which compute if there is no GPU, and serve it if there is one.
    pub cpu: CpuSpec,
    /// An NVIDIA GPU that computes. A peer that finds none says so and does not compute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvidia: Option<NvidiaSpec>,
}

/// An NVIDIA GPU of a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NvidiaSpec {
    /// GPUs of a peer: one. More GPUs are more peers.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1))]
    pub count: u32,
    /// The resource that nodes offer: `nvidia.com/gpu`, or `nvidia.com/mig-3g.40gb` and the like. Pods tolerate the taint `nvidia.com/gpu`.
    #[serde(default = "nvidia_gpu")]
    #[schemars(
        length(min = 3, max = 253),
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub resource: String,
    /// RuntimeClass of its pods, such as `nvidia`: where NVIDIA's runtime is not the one that nodes have by default (k3s, RKE2, minikube).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub runtime_class_name: Option<String>,
}

impl Default for NvidiaSpec {
    fn default() -> Self {
        Self { count: one(), resource: nvidia_gpu(), runtime_class_name: None }
    }
}

fn one() -> u32 {
    1
}

fn nvidia_gpu() -> String {
    "nvidia.com/gpu".to_owned()
}

/// Processor cores of a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct CpuSpec {
    /// Threads that compute.
    #[schemars(range(min = 1, max = 256))]
    pub cores: u32,
    /// CPU request of the pod as a quantity; `cores` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("quantity(string(self)).compareTo(quantity('1m')) >= 0").message("cpu.request must be at least 1m")
    )]
    pub request: Option<Amount>,
    /// CPU limit of the pod as a quantity; none when absent. For namespaces whose quota asks for one: a peer that is held up by it holds up
    /// every token. Pods with a limit below their request are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Amount>,
}

/// What a peer may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct MemorySpec {
    /// Main memory, such as `512Mi`: limit and request of the pod. Below 16Mi no container starts.
    #[x_kube(
        validation = Rule::new("quantity(string(self)).compareTo(quantity('16Mi')) >= 0").message("memory.host must be at least 16Mi")
    )]
    pub host: Amount,
    /// Room for downloads on the node's disk, such as `10Gi`, which is the default. It is requested of the node where something is kept there: a
    /// model with a `sha256`, and what a peer of a training run puts by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("quantity(string(self)).compareTo(quantity('16Mi')) >= 0").message("memory.disk must be at least 16Mi")
    )]
    pub disk: Option<Amount>,
}

/// How many peers each of `pools` should have. `replicas`: those of the first one, if its own least is not more.
pub fn peers_wanted(pools: &[PoolSpec], replicas: u32) -> impl Iterator<Item = u32> {
    let least = pools.iter().map(|pool| pool.peers.min);
    least.enumerate().map(move |(at, least)| if at == 0 { replicas.max(least) } else { least })
}

/// Peers in all pools.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeersStatus {
    /// Wanted.
    #[serde(default)]
    pub desired: u32,
    /// Ready.
    #[serde(default)]
    pub ready: u32,
    /// Ready, in pools of preemptible nodes.
    #[serde(default)]
    pub by_spot: u32,
    /// Ready, in the other pools.
    #[serde(default)]
    pub by_on_demand: u32,
    /// `ready/desired`, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub display: String,
}
