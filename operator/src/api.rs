//! stand-in
#![allow(missing_docs)]
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dunlin.dev",
    version = "v1alpha1",
    kind = "InferenceSwarm",
    plural = "inferenceswarms",
    shortname = "isw",
    namespaced,
    status = "InferenceSwarmStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceSwarmSpec {
    pub model: ModelSpec,
    pub pools: Vec<PoolSpec>,
    pub replicas: Option<u32>,
    #[serde(default)]
    pub redundancy: RedundancySpec,
    #[serde(default)]
    pub gateway: GatewaySpec,
    #[serde(default)]
    pub suspend: bool,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    pub name: Option<String>,
    pub source: ModelSource,
    pub max_sequence_length: Option<u32>,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    pub http: Option<HttpSource>,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpSource {
    pub url: String,
    pub sha256: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum CapacityType {
    #[default]
    Spot,
    OnDemand,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    pub name: String,
    #[serde(default)]
    pub capacity_type: CapacityType,
    pub peers: PeersSpec,
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    pub device: DeviceSpec,
    pub memory: MemorySpec,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeersSpec {
    pub min: u32,
    pub max: u32,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceSpec {
    pub cpu: CpuSpec,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuSpec {
    pub cores: u32,
    pub request: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemorySpec {
    pub host: String,
    pub disk: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RedundancySpec {
    pub shadows: u32,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GatewaySpec {
    pub replicas: u32,
    pub resources: Option<ResourceRequirements>,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InferenceSwarmStatus {
    pub observed_generation: Option<i64>,
    #[serde(default)]
    pub conditions: Vec<Condition>,
    pub epoch: u64,
    pub layers: LayersStatus,
    pub peers: PeersStatus,
    pub capacity_percent: u32,
    pub url: Option<String>,
    pub plan: Option<PlanStatus>,
    pub selector: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayersStatus {
    pub total: u32,
    pub served: u32,
    pub shadowed: u32,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeersStatus {
    pub desired: u32,
    pub ready: u32,
    pub by_spot: u32,
    pub by_on_demand: u32,
}
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanStatus {
    pub summary: String,
}
