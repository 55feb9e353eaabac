//! Asks the API server, and by way of it gateways, for all that is known about a swarm. Every list is bounded; what may not be read is left out
//! and named.

use std::collections::BTreeSet;

use dunlin_crds::generated::ResourceKind;
use dunlin_crds::names::{HTTP_PORT, ROLE_GATEWAY};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod, ResourceQuota, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::Value;

use super::facts::{
    ClaimFacts, ClusterEvidence, ConditionFacts, EventFacts, GatewayFacts, QuotaFacts, SwarmFacts,
};
use super::surroundings::{Surroundings, node};
use crate::cluster::{Cluster, LIST_MAX};
use crate::failure::{ApiCall, CallFailure, is_missing};
use crate::pages::GatewayPage;
use crate::placement::misfit;
use crate::pods::PodFacts;
use crate::proxy::pages;
use crate::swarm::AnySwarm;

/// Most Events that are kept.
const EVENTS_MAX: usize = 200;
/// Most Secrets and claims that are looked for.
const NAMES_MAX: usize = 32;
/// Most gateways that are asked.
const GATEWAYS_MAX: usize = 32;

/// All that is known about `swarm` at the time `now_s`.
pub async fn gather(
    cluster: &Cluster,
    swarm: &AnySwarm,
    around: &Surroundings,
    now_s: i64,
) -> ClusterEvidence {
    let here = cluster.of(&swarm.namespace());
    let selector = swarm.selector();
    let (pods, events, quotas) =
        tokio::join!(here.list::<Pod>(&selector), events(&here), here.list::<ResourceQuota>(""));
    let mut unread = around.unread.clone();
    let mut take = |why: CallFailure| unread.push(why.to_string());
    let pods = pods.map_err(&mut take).unwrap_or_default();
    let events = events.map_err(&mut take).unwrap_or_default();
    let quotas = quotas.map_err(&mut take).unwrap_or_default();
    let mut names = Names::default();
    names.of(&swarm.spec());
    for pod in &pods {
        names.of(&serde_json::to_value(&pod.spec).unwrap_or_default());
    }
    let (claims, secrets_missing, gateways) =
        tokio::join!(claims(&here, &names.claims), secrets(&here, &names.secrets), gateways(&here, &pods));
    let claims = claims.map_err(&mut take).unwrap_or_default();
    let secrets_missing = secrets_missing.map_err(&mut take).unwrap_or_default();
    unread.extend(gateways.iter().filter_map(|gateway| gateway.silent.clone()));
    let kind = match swarm {
        AnySwarm::Inference(_) => ResourceKind::Inference,
        AnySwarm::Training(_) => ResourceKind::Training,
    };
    let lacks = around.schema_lacks.iter().find(|(of, _)| *of == kind);
    ClusterEvidence {
        swarm: swarm_facts(swarm, now_s),
        operator: around.operator.clone(),
        pods: pods.iter().map(|pod| pod_facts(pod, around.nodes.as_deref(), now_s)).collect(),
        nodes: around.nodes.as_ref().map(|nodes| nodes.iter().map(node).collect()),
        events: concerning(&events, &swarm.name(), &pods, now_s),
        quotas: quotas.iter().flat_map(used_up).collect(),
        claims,
        secrets_missing,
        gateways,
        schema_lacks: lacks.map(|(_, lacks)| lacks.clone()).unwrap_or_default(),
        unread,
    }
}

fn swarm_facts(swarm: &AnySwarm, now_s: i64) -> SwarmFacts {
    let (generation, observed) = swarm.generations();
    let condition = |c: &Condition| ConditionFacts {
        kind: c.type_.clone(),
        status: c.status.clone(),
        reason: c.reason.clone(),
        message: c.message.clone(),
        since_s: now_s - c.last_transition_time.0.as_second(),
    };
    SwarmFacts {
        id: swarm.id(),
        name: swarm.name(),
        namespace: swarm.namespace(),
        generation,
        observed,
        age_s: swarm.age_s(now_s),
        suspended: swarm.is_suspended(),
        conditions: swarm.conditions().iter().map(condition).collect(),
    }
}

fn pod_facts(pod: &Pod, nodes: Option<&[Node]>, now_s: i64) -> PodFacts {
    let mut facts = PodFacts::of(pod, now_s);
    if facts.unschedulable.is_some() {
        let nodes = nodes.into_iter().flatten();
        facts.misfits = nodes.filter_map(|node| Some((node.name_any(), misfit(pod, node)?))).collect();
    }
    facts
}

async fn events(here: &Cluster) -> Result<Vec<Event>, CallFailure> {
    let params = ListParams::default().fields("type=Warning").limit(LIST_MAX);
    let call = ApiCall { verb: "list", resource: "events", namespace: here.namespace.as_deref() };
    here.api::<Event>().list(&params).await.map(|list| list.items).map_err(|e| call.failed(&e))
}

/// What is about the swarm `name`, about `pods`, or about what makes pods for it; newest first.
fn concerning(events: &[Event], name: &str, pods: &[Pod], now_s: i64) -> Vec<EventFacts> {
    let pods: BTreeSet<String> = pods.iter().map(ResourceExt::name_any).collect();
    let ours = |event: &&Event| {
        let about = event.involved_object.name.as_deref().unwrap_or_default();
        match event.involved_object.kind.as_deref() {
            Some("InferenceSwarm" | "TrainingSwarm") => about == name,
            Some("Pod") => pods.contains(about),
            Some("ReplicaSet" | "Deployment") => about.starts_with(&format!("{name}-gateway")),
            _ => false,
        }
    };
    let facts = |event: &Event| {
        let at = event.last_timestamp.as_ref().map(|t| t.0.as_second());
        let at = at.or_else(|| event.series.as_ref()?.last_observed_time.as_ref().map(|t| t.0.as_second()));
        let at = at.or_else(|| event.event_time.as_ref().map(|t| t.0.as_second()));
        let about = &event.involved_object;
        let series = event.series.as_ref().and_then(|s| s.count);
        EventFacts {
            about: format!(
                "{} {}",
                about.kind.as_deref().unwrap_or("object"),
                about.name.as_deref().unwrap_or_default()
            ),
            reason: event.reason.clone().unwrap_or_default(),
            message: event.message.clone().unwrap_or_default(),
            count: event.count.or(series).unwrap_or(1),
            ago_s: at.map_or(0, |at| now_s - at),
        }
    };
    let mut found: Vec<EventFacts> = events.iter().filter(ours).map(facts).collect();
    found.sort_by_key(|event| event.ago_s);
    found.truncate(EVENTS_MAX);
    found
}

fn used_up(quota: &ResourceQuota) -> Vec<QuotaFacts> {
    let Some(status) = &quota.status else { return Vec::new() };
    let used = status.used.as_ref();
    let full = status.hard.iter().flatten().filter_map(|(resource, hard)| {
        let used = used?.get(resource)?;
        // The API server writes both in the same form.
        (used == hard).then(|| QuotaFacts {
            name: quota.name_any(),
            resource: resource.clone(),
            used: used.0.clone(),
            hard: hard.0.clone(),
        })
    });
    full.collect()
}

/// Claims and Secrets that a manifest names.
#[derive(Debug, Default, PartialEq)]
struct Names {
    claims: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

impl Names {
    /// Those of `manifest`, a swarm's or a pod's. Optional ones need not be there.
    fn of(&mut self, manifest: &Value) {
        match manifest {
            Value::Array(list) => list.iter().for_each(|item| self.of(item)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    if value["optional"] == true {
                        continue;
                    }
                    let name = || value["name"].as_str().map(str::to_owned);
                    let own = || value.as_str().map(str::to_owned);
                    match key.as_str() {
                        "claimName" => self.claims.extend(own()),
                        "headersSecret" | "credentialsSecret" | "secretName" => self.secrets.extend(own()),
                        "secretKeyRef" | "secretRef" | "secret" => self.secrets.extend(name()),
                        "imagePullSecrets" => {
                            let listed = value.as_array().into_iter().flatten();
                            self.secrets.extend(listed.filter_map(|s| s["name"].as_str().map(str::to_owned)));
                        }
                        _ => {}
                    }
                    self.of(value);
                }
            }
            _ => {}
        }
    }
}

async fn claims(here: &Cluster, names: &BTreeSet<String>) -> Result<Vec<ClaimFacts>, CallFailure> {
    let mut found = Vec::new();
    for name in names.iter().take(NAMES_MAX) {
        let claim = here.get::<PersistentVolumeClaim>(name).await?;
        let phase = claim.as_ref().and_then(|c| c.status.as_ref()?.phase.clone()).unwrap_or_default();
        let class = claim.and_then(|c| c.spec?.storage_class_name).unwrap_or_default();
        if phase != "Bound" {
            found.push(ClaimFacts { name: name.clone(), phase, class });
        }
    }
    Ok(found)
}

/// Only whether they are there: what is in them is not read.
async fn secrets(here: &Cluster, names: &BTreeSet<String>) -> Result<Vec<String>, CallFailure> {
    let mut missing = Vec::new();
    for name in names.iter().take(NAMES_MAX) {
        match here.api::<Secret>().get_metadata(name).await {
            Ok(_) => {}
            Err(error) if is_missing(&error) => missing.push(name.clone()),
            Err(error) => {
                let call = ApiCall { verb: "get", resource: "secrets", namespace: here.namespace.as_deref() };
                return Err(call.failed(&error));
            }
        }
    }
    Ok(missing)
}

async fn gateways(here: &Cluster, pods: &[Pod]) -> Vec<GatewayFacts> {
    let running = |pod: &&Pod| {
        let facts = PodFacts::of(pod, 0);
        facts.role == ROLE_GATEWAY && facts.phase == "Running" && !facts.deleting
    };
    let names: Vec<String> =
        pods.iter().filter(running).map(ResourceExt::name_any).take(GATEWAYS_MAX).collect();
    let namespace = here.namespace.as_deref().unwrap_or_default();
    let said = pages(&here.client, namespace, &names, HTTP_PORT, "/swarm").await;
    said.into_iter().map(|(pod, said)| gateway(pod, said)).collect()
}

fn gateway(pod: String, said: Result<String, String>) -> GatewayFacts {
    let page = said.and_then(|text| {
        serde_json::from_str::<GatewayPage>(&text).map_err(|e| format!("{pod} answers something else: {e}"))
    });
    match page {
        Ok(page) => GatewayFacts {
            not_ready: page.not_ready,
            unreached: page.peers.into_iter().filter(|p| !p.up).map(|p| p.name).collect(),
            silent: None,
            pod,
        },
        Err(why) => GatewayFacts { silent: Some(why), pod, ..GatewayFacts::default() },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_and_secrets_of_manifests_are_found_and_optional_ones_are_not() {
        let mut names = Names::default();
        names.of(&json!({
            "model": {"source": {"volume": {"claimName": "models", "path": "a"}}},
            "checkpoints": {"s3": {"credentialsSecret": "keys"}, "http": {"headersSecret": "headers"}},
            "pools": [{"podTemplate": {"imagePullSecrets": [{"name": "pull"}],
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "a"}}},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "maybe", "key": "a", "optional": true}}}]}}],
            "volumes": [{"name": "tls", "secret": {"secretName": "a-tls"}}, {"name": "p", "projected": {"sources": [{"secret": {"name": "b-tls"}}]}}],
        }));
        let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(names.claims, of(&["models"]));
        assert_eq!(names.secrets, of(&["a-tls", "b-tls", "env", "headers", "keys", "pull"]));
    }

    #[test]
    fn a_quota_counts_when_nothing_is_left_of_it() {
        let quota = json!({"metadata": {"name": "q"}, "status": {
            "hard": {"pods": "1", "requests.cpu": "4"}, "used": {"pods": "1", "requests.cpu": "2"}
        }});
        let full = used_up(&serde_json::from_value(quota).unwrap());
        assert_eq!(full.len(), 1);
        assert_eq!((full[0].resource.as_str(), full[0].hard.as_str()), ("pods", "1"));
    }

    #[test]
    fn events_of_others_are_left_out() {
        let event = |kind: &str, name: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {}, "involvedObject": {"kind": kind, "name": name}, "reason": "R", "message": "m",
                "lastTimestamp": "1970-01-01T00:00:10Z",
            }))
            .unwrap()
        };
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        let events = [
            event("Pod", "p"),
            event("Pod", "q"),
            event("ReplicaSet", "m-gateway-7"),
            event("InferenceSwarm", "m2"),
        ];
        let found = concerning(&events, "m", &[pod], 15);
        let found: Vec<_> = found.iter().map(|e| (e.about.as_str(), e.ago_s)).collect();
        assert_eq!(found, [("Pod p", 5), ("ReplicaSet m-gateway-7", 5)]);
    }
}
