//! Asks for what goes into a bundle. Each thing is bounded; what cannot be had is a file that says why.

use dunlin_crds::names::{HEALTH_PORT, SWARM};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Node, PersistentVolumeClaim, Pod, ResourceQuota, Secret, Service,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, LogParams};
use kube::{Client, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use super::archive::Entry;
use super::redact::{lines, redact};
use crate::cluster::{Cluster, listed};
use crate::evidence::surroundings::OPERATOR_PODS;
use crate::failure::{ApiCall, CallFailure};
use crate::pods::PodFacts;
use crate::proxy::page;

/// Last lines of each log.
const LOG_LINES: i64 = 5000;
/// Most bytes of each log.
const LOG_BYTES: i64 = 1 << 20;
/// Most pods whose logs and metrics are taken.
const PODS_MAX: usize = 128;
/// Pods that are asked at once.
const AT_ONCE: usize = 8;

/// What the API server has in the namespace of `here`, and nodes.
pub async fn objects(here: &Cluster) -> Vec<Entry> {
    let nodes: Api<Node> = Api::all(here.client.clone());
    let client = &here.client;
    vec![
        ("objects/inferenceswarms.json".into(), kept(here.list::<dunlin_crds::InferenceSwarm>("").await)),
        ("objects/trainingswarms.json".into(), kept(here.list::<dunlin_crds::TrainingSwarm>("").await)),
        ("objects/pods.json".into(), kept(here.list::<Pod>(SWARM).await)),
        ("objects/deployments.json".into(), kept(here.list::<Deployment>(SWARM).await)),
        ("objects/services.json".into(), kept(here.list::<Service>(SWARM).await)),
        ("objects/configmaps.json".into(), kept(here.list::<ConfigMap>(SWARM).await)),
        ("objects/networkpolicies.json".into(), kept(here.list::<NetworkPolicy>("").await)),
        ("objects/poddisruptionbudgets.json".into(), kept(here.list::<PodDisruptionBudget>("").await)),
        ("objects/persistentvolumeclaims.json".into(), kept(here.list::<PersistentVolumeClaim>("").await)),
        ("objects/resourcequotas.json".into(), kept(here.list::<ResourceQuota>("").await)),
        ("objects/events.json".into(), kept(here.list::<Event>("").await)),
        ("objects/secrets.json".into(), secrets(here).await),
        ("objects/nodes.json".into(), kept(listed(&nodes, "", None).await)),
        ("versions.json".into(), versions(client).await),
    ]
}

fn kept<K: Serialize>(found: Result<Vec<K>, CallFailure>) -> String {
    match found {
        Ok(objects) => {
            let objects = objects.iter().map(|o| redact(&serde_json::to_value(o).unwrap_or_default()));
            pretty(&Value::Array(objects.collect()))
        }
        Err(why) => why.to_string(),
    }
}

fn pretty(value: &Value) -> String {
    // A value that was read is written again.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Names of Secrets of swarms, and of their keys.
async fn secrets(here: &Cluster) -> String {
    let named = |secret: &Secret| {
        let keys: Vec<&String> = secret.data.iter().flatten().map(|(key, _)| key).collect();
        json!({"name": secret.name_any(), "type": secret.type_, "keys": keys})
    };
    match here.list::<Secret>(SWARM).await {
        Ok(secrets) => pretty(&secrets.iter().map(named).collect()),
        Err(why) => why.to_string(),
    }
}

async fn versions(client: &Client) -> String {
    let server = match client.apiserver_version().await {
        Ok(info) => info.git_version,
        Err(error) => {
            ApiCall { verb: "get", resource: "version", namespace: None }.failed(&error).to_string()
        }
    };
    pretty(&json!({"dunlin": env!("CARGO_PKG_VERSION"), "kubernetes": server}))
}

/// Logs and metrics of the swarms' pods here, and logs of the operator's.
pub async fn pods(here: &Cluster) -> Vec<Entry> {
    let ours = here.list::<Pod>(SWARM).await;
    let operator = listed(&Api::<Pod>::all(here.client.clone()), OPERATOR_PODS, None).await;
    let mut entries: Vec<Entry> = [("pods", &ours), ("operator", &operator)]
        .into_iter()
        .filter_map(|(what, found)| {
            Some((format!("logs/{what}-not-listed.txt"), found.as_ref().err()?.to_string()))
        })
        .collect();
    if let Ok(pods) = &operator {
        let pods = pods.iter().map(|p| redact(&serde_json::to_value(p).unwrap_or_default()));
        entries.push(("objects/operator-pods.json".into(), pretty(&Value::Array(pods.collect()))));
    }
    let asked = ours.into_iter().flatten().map(|pod| (pod, true)).take(PODS_MAX);
    let asked = asked.chain(operator.into_iter().flatten().map(|pod| (pod, false)).take(PODS_MAX));
    let said = futures::stream::iter(asked).map(|(pod, metrics)| of_pod(here.client.clone(), pod, metrics));
    entries.extend(said.buffered(AT_ONCE).collect::<Vec<_>>().await.into_iter().flatten());
    entries
}

async fn of_pod(client: Client, pod: Pod, metrics: bool) -> Vec<Entry> {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let facts = PodFacts::of(&pod, 0);
    if facts.node.is_empty() {
        return Vec::new();
    }
    let mut entries = vec![(format!("logs/{name}.log"), log(&client, &namespace, &name, false).await)];
    if facts.restarts > 0 {
        entries.push((format!("logs/{name}.previous.log"), log(&client, &namespace, &name, true).await));
    }
    if metrics && facts.phase == "Running" {
        let said = page(&client, &namespace, &name, HEALTH_PORT, "/metrics").await;
        entries.push((format!("metrics/{name}.txt"), said.unwrap_or_else(|why| why)));
    }
    entries
}

async fn log(client: &Client, namespace: &str, pod: &str, previous: bool) -> String {
    let params = LogParams {
        tail_lines: Some(LOG_LINES),
        limit_bytes: Some(LOG_BYTES),
        previous,
        ..LogParams::default()
    };
    match Api::<Pod>::namespaced(client.clone(), namespace).logs(pod, &params).await {
        Ok(text) => lines(&text),
        Err(error) => ApiCall { verb: "get", resource: "pods/log", namespace: Some(namespace) }
            .failed(&error)
            .to_string(),
    }
}
