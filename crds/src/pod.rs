//! What pods get from a manifest beside what they need.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What pods get beside what they need: it is added to what the operator writes, and never takes its place. A changed one is for pods that are made
/// from then on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplateSpec {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(
        validation = Rule::new("self.all(k, !k.startsWith('dunlin.dev/') && !k.startsWith('app.kubernetes.io/'))")
            .message("labels under dunlin.dev/ and app.kubernetes.io/ are the operator's")
    )]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    #[x_kube(
        validation = Rule::new("self.all(k, !k.startsWith('dunlin.dev/') && !(k in ['cluster-autoscaler.kubernetes.io/safe-to-evict', 'karpenter.sh/do-not-disrupt', 'argocd.argoproj.io/ignore-restart-policy']))")
            .message("annotations under dunlin.dev/, and cluster-autoscaler.kubernetes.io/safe-to-evict, karpenter.sh/do-not-disrupt and argocd.argoproj.io/ignore-restart-policy are the operator's")
    )]
    pub annotations: BTreeMap<String, String>,
    /// Image instead of the operator's. All pods of a swarm should be of one version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Names of Secrets to pull images with, beside the operator's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<NameRef>,
    /// Environment of the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.all(e, !(e.name in ['POD_NAME', 'NODE_NAME', 'TMPDIR', 'DUNLIN_LOG_JSON', 'DUNLIN_MODEL_DIGEST']))")
            .message("POD_NAME, NODE_NAME, TMPDIR, DUNLIN_LOG_JSON and DUNLIN_MODEL_DIGEST are the operator's")
    )]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvSpec>,
    /// Tolerations, beside those of `capacityType`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<TolerationSpec>,
    /// Affinity as in a pod. Nodes must satisfy it and what the operator asks for; preferences are added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Passed>,
    /// Topology spread constraints as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub topology_spread_constraints: Vec<Passed>,
    /// PriorityClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// RuntimeClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// Scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub scheduler_name: Option<String>,
    /// ServiceAccount, of which the pod gets no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Volumes as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        validation = Rule::new("self.all(v, !(v.name in ['tls', 'tmp', 'cache', 'topology', 'training', 'models', 'data', 'checkpoints', 'headers', 's3']) && !v.name.startsWith('adapters-'))")
            .message("volumes called tls, tmp, cache, topology, training, models, data, checkpoints, headers, s3 and adapters-... are the operator's")
    )]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub volumes: Vec<VolumeEntry>,
    /// Where the container sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        validation = Rule::new("self.all(m, ['/tmp', '/var/cache/dunlin', '/etc/dunlin', '/models', '/adapters', '/data', '/checkpoints'].all(p, m.mountPath != p && !m.mountPath.startsWith(p + '/')))")
            .message("/tmp, /var/cache/dunlin, /etc/dunlin, /models, /adapters, /data and /checkpoints are the operator's")
    )]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["mountPath".into()]))]
    pub volume_mounts: Vec<VolumeMountSpec>,
}

/// The name of another object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NameRef {
    /// Name of the object, in the namespace of the swarm.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A variable of the environment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvSpec {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Value of the variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,
    /// Where its value is, as in a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<Passed>,
}

/// A taint that is tolerated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TolerationSpec {
    /// Key of the taint; of every taint when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// How `value` is compared; `Equal` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Value of the taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect of the taint; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// With `NoExecute`: how long it is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub toleration_seconds: Option<i64>,
}

/// How a toleration compares values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    /// The value is that of the taint.
    Equal,
    /// There is such a taint.
    Exists,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// Nothing new is scheduled.
    NoSchedule,
    /// Rather elsewhere.
    PreferNoSchedule,
    /// What runs goes, too.
    NoExecute,
}

/// A volume of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// Name by which `volumeMounts` refer to it.
    pub name: String,
    /// What it is, as in a pod.
    #[serde(flatten)]
    pub source: Map<String, Value>,
}

impl JsonSchema for VolumeEntry {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "VolumeEntry".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "description": "Its name; its source beside it, as in a pod.", "minLength": 1, "maxLength": 63}},
            "x-kubernetes-preserve-unknown-fields": true,
        })
    }
}

/// Where a container sees a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMountSpec {
    /// Name of the volume.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Path in the container.
    #[schemars(length(min = 1, max = 1024))]
    pub mount_path: String,
    /// A path inside of the volume instead of all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub sub_path: Option<String>,
    /// For reading only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Something of Kubernetes itself that is passed on as it is: the API server checks it when it is asked for a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Passed(pub Map<String, Value>);

impl JsonSchema for Passed {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Passed".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
    }
}
