//! What every pod of a swarm is made of, those of workers and of gateways alike: its image, its container, its volumes, and what Pod Security
//! `restricted` asks for.

use dunlin_swarm::timing::GRACE;
use serde_json::{Value, json};

use crate::apply::network::HEALTH_PORT;
use crate::labels::Owner;

/// User of every container: distroless `nonroot`.
const USER: i64 = 65532;

/// What all pods of a swarm share.
#[derive(Clone, Debug)]
pub struct Image {
    /// Reference of the worker image.
    pub reference: String,
    /// imagePullPolicy.
    pub pull_policy: String,
    /// Names of pull secrets.
    pub pull_secrets: Vec<String>,
    /// Its user is named in the pod; otherwise the platform chooses one.
    pub fixed_user: bool,
}

/// A volume of a pod and where its container sees it.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Name of the volume.
    pub name: String,
    /// Path at which the container sees it.
    pub path: String,
    /// What it is, as Kubernetes writes it.
    pub source: Value,
    /// For reading.
    pub read_only: bool,
}

impl Mount {
    /// A PersistentVolumeClaim.
    #[must_use]
    pub fn claim(name: &str, path: &str, claim: &str, read_only: bool) -> Self {
        let source = json!({"persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}});
        Self { name: name.to_owned(), path: path.to_owned(), source, read_only }
    }

    /// A Secret, a file for each key.
    #[must_use]
    pub fn secret(name: &str, path: &str, secret: &str) -> Self {
        let source = json!({"secret": {"secretName": secret}});
        Self { name: name.to_owned(), path: path.to_owned(), source, read_only: true }
    }

    /// Gives it to `spec` and its first container.
    pub fn add(&self, spec: &mut Value) {
        let mut volume = self.source.clone();
        volume["name"] = json!(self.name);
        let mount = json!({"name": self.name, "mountPath": self.path, "readOnly": self.read_only});
        for (list, entry) in [("/volumes", volume), ("/containers/0/volumeMounts", mount)] {
            if let Some(list) = spec.pointer_mut(list).and_then(Value::as_array_mut) {
                list.push(entry);
            }
        }
    }
}

/// What every worker is told: who it is and where it is asked.
#[must_use]
pub fn common_args(role: &str) -> Vec<String> {
    let health = format!("0.0.0.0:{HEALTH_PORT}");
    let args = [role, "--name", "$(POD_NAME)", "--health", &health, "--tls-dir", "/etc/dunlin/tls"];
    args.map(str::to_owned).to_vec()
}

/// By which the processes of a swarm that serves know that they are of one model.
#[must_use]
pub fn model_environment(digest: &str) -> Value {
    json!({"name": "DUNLIN_MODEL_DIGEST", "value": digest})
}

/// A container with what all containers share added.
pub(super) struct Container<'a> {
    pub name: &'a str,
    pub image: &'a Image,
    pub args: Vec<String>,
    /// Variables as Kubernetes writes them.
    pub environment: Vec<Value>,
    pub ports: Value,
    pub resources: Value,
    pub mounts: Value,
}

pub(super) fn container(container: &Container<'_>) -> Value {
    let probe = |path: &str, period_s: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "health", "scheme": "HTTP"},
            "periodSeconds": period_s,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let mut mounts = vec![
        json!({"name": "tls", "mountPath": "/etc/dunlin/tls", "readOnly": true}),
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ];
    mounts.extend(container.mounts.as_array().cloned().unwrap_or_default());
    let mut environment = vec![
        json!({"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}),
        json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}}),
        json!({"name": "DUNLIN_LOG_JSON", "value": "true"}),
    ];
    environment.extend_from_slice(&container.environment);
    json!({
        "name": container.name,
        "image": container.image.reference,
        "imagePullPolicy": container.image.pull_policy,
        "args": container.args,
        "env": environment,
        "ports": container.ports,
        "resources": container.resources,
        "volumeMounts": mounts,
        // `kubectl describe` then shows the last lines of what ended with an error.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/healthz", 10, 6),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// A pod spec without containers and volumes: Pod Security `restricted`, no ServiceAccount token.
pub(super) fn pod_spec(image: &Image, affinity: Value, tolerations: &[Value]) -> Value {
    let mut spec = json!({
        "affinity": affinity,
        "tolerations": tolerations,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE.as_secs(),
        "securityContext": {
            "runAsNonRoot": true,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    if image.fixed_user {
        for field in ["runAsUser", "runAsGroup", "fsGroup"] {
            spec["securityContext"][field] = json!(USER);
        }
    }
    if !image.pull_secrets.is_empty() {
        spec["imagePullSecrets"] = image.pull_secrets.iter().map(|name| json!({"name": name})).collect();
    }
    spec
}

pub(super) fn tls_volume(secret: &str) -> Value {
    let items = ["ca.crt", "tls.crt", "tls.key"].map(|key| json!({"key": key, "path": key}));
    json!({
        "name": "tls",
        "secret": {
            "secretName": secret,
            "defaultMode": 0o440,
            "items": items,
        },
    })
}

/// Pods of one role prefer different nodes and zones: what is lost together should not be the same thing twice.
pub(super) fn apart(owner: &Owner, role: &str) -> Value {
    let term = |key: &str, weight: u32| {
        json!({
            "weight": weight,
            "podAffinityTerm": {"topologyKey": key, "labelSelector": {"matchLabels": owner.selector(role)}},
        })
    };
    json!({"preferredDuringSchedulingIgnoredDuringExecution": [
        term("kubernetes.io/hostname", 100),
        term("topology.kubernetes.io/zone", 50),
    ]})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dunlin_swarm::timing::DRAIN;

    use super::*;
    use crate::testing::image;

    /// A worker is not told how long its pod has: it ends after this time of its own.
    #[test]
    fn a_worker_has_handed_over_before_its_pod_is_killed() {
        let spec = pod_spec(&image(), json!({}), &[]);
        let grace_s = spec["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(DRAIN < Duration::from_secs(grace_s));
    }

    #[test]
    fn the_platform_may_choose_the_user() {
        let user = |fixed_user| {
            let spec = pod_spec(&Image { fixed_user, ..image() }, json!({}), &[]);
            ["runAsUser", "runAsGroup", "fsGroup"].map(|field| spec["securityContext"][field].as_i64())
        };
        assert_eq!((user(true), user(false)), ([Some(USER); 3], [None; 3]));
    }
}
