//! What the operator found.

use dunlin_swarm::limits;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::PeersStatus;

/// What the operator found, and what the conductor told it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingSwarmStatus {
    /// Generation of the manifest that the rest speaks about; -1 while no operator has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled, Degraded, Succeeded.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Updates done.
    #[serde(default)]
    pub step: u64,
    /// Updates asked for.
    #[serde(default)]
    pub steps: u64,
    /// Mean loss per token of the last step, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Mean loss per token of held-out data when last measured, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Tokens trained on per second, of late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Stages in the order of their layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::STAGES_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["stage".into()]))]
    pub stages: Vec<StageStatus>,
    /// Peers in all pools.
    #[serde(default)]
    pub peers: PeersStatus,
    /// The newest complete checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<CheckpointStatus>,
    /// Microbatches computed again because a peer was lost with its sums.
    #[serde(default)]
    pub redone: u64,
    /// Peers lost without notice.
    #[serde(default)]
    pub lost: u64,
    /// Peers that went to another stage.
    #[serde(default)]
    pub moves: u64,
    /// The page with the curve of the loss, inside of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Pods of the first pool that are there, ready or not, for `/scale`.
    #[serde(default)]
    pub replicas: u32,
    /// Selects the pods of the first pool, for `/scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The same for people: columns of `kubectl get`.
    #[serde(default)]
    pub display: DisplayStatus,
}

/// One stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageStatus {
    /// Its number, from 0.
    #[serde(default)]
    pub stage: u32,
    /// First and last of its layers, such as `0-7`.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub layers: String,
    /// Peers that hold it and are current.
    #[serde(default)]
    pub peers: u32,
    /// Sequences per second, of late.
    #[serde(default)]
    pub samples_per_second: f64,
}

/// A checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckpointStatus {
    /// Updates in it.
    #[serde(default)]
    pub step: u64,
    /// Its folder, inside of the volume: the `path` of an InferenceSwarm that serves it. On a server its URL; in a bucket
    /// `s3://BUCKET/PREFIX/step-…`.
    #[serde(default)]
    #[schemars(length(max = 2048))]
    pub path: String,
    /// SHA-256 of its manifest, which has those of its files.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub sha256: String,
}

/// Columns of `kubectl get`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DisplayStatus {
    /// `step/steps`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub step: String,
    /// Loss with three places.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub loss: String,
    /// Tokens per second in whole numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub tokens_per_second: String,
    /// Peers of each stage, such as `2/2/1/2`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub stages: String,
}
