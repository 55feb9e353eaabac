//! What is known about the sessions of a pod and the layers that would go with it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use dunlin_crds::names::{KIND, ROLE_GATEWAY, ROLE_STAGE, SWARM};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::holders::{last_held, sessions};
use crate::cluster::Cluster;
use crate::layers::words;
use crate::pods::PodFacts;
use crate::status::ask::{gateway_pages, read_topology};

/// What works when the plan cannot be read.
const BLIND: &str = "without it nobody knows whether the peer is the last holder of a layer; `dunlin drain --force` moves it in any case";

/// A look at a pod's swarm.
pub(super) struct Look {
    /// Sessions that go over it.
    pub on_it: BTreeSet<String>,
    /// All sessions of the swarm, each with whether it goes over it.
    pub all: BTreeMap<String, bool>,
    /// Layers that nobody else holds who stays; empty for none.
    pub last: String,
    /// Why no gateway could be asked for sessions, if there are gateways.
    pub unheard: Option<String>,
}

/// Looks at the swarm of `pod`. With `force` it does not matter who else holds its layers.
pub(super) async fn look(here: &Cluster, pod: &Pod, force: bool) -> Result<Look> {
    let (name, facts) = (pod.name_any(), PodFacts::of(pod, 0));
    let nothing = Look { on_it: BTreeSet::new(), all: BTreeMap::new(), last: String::new(), unheard: None };
    // Sessions are of swarms that serve, and go over stages.
    if facts.role != ROLE_STAGE {
        return Ok(nothing);
    }
    let label = |key: &str| pod.labels().get(key).cloned().unwrap_or_default();
    let swarm = label(SWARM);
    let pods = here.list::<Pod>(&format!("{SWARM}={swarm},{KIND}={}", label(KIND))).await?;
    let pods: Vec<PodFacts> = pods.iter().map(|p| PodFacts::of(p, Timestamp::now().as_second())).collect();
    let pages = gateway_pages(here, &pods).await;
    let all = sessions(&pages, &name);
    let gateways = pods.iter().any(|p| p.role == ROLE_GATEWAY && !p.is_over());
    let heard = pages.values().any(Result::is_ok);
    let why = pages.values().find_map(|page| page.as_ref().err()).cloned();
    let unheard = (gateways && !heard).then(|| why.unwrap_or_else(|| "no gateway runs".to_owned()));
    let mut last = String::new();
    if !force && let Some(topology) = read_topology(here, &swarm).await.map_err(|why| why.and(BLIND))? {
        let heard: Vec<_> = pages.into_values().flatten().collect();
        last = words(&last_held(&name, &topology, &pods, &heard), "");
    }
    let on_it = all.iter().filter(|(_, on_it)| **on_it).map(|(id, _)| id.clone()).collect();
    Ok(Look { on_it, all, last, unheard })
}
