//! The command.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow, bail};
use dunlin_crds::names::{HEALTH_PORT, ROLE_STAGE};
use dunlin_terminal::print::OutputArgs;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::inputs::inputs;
use super::view::view;
use crate::args::ClusterArgs;
use crate::cluster::Cluster;
use crate::pods::PodFacts;
use crate::proxy::pages;
use crate::status::ask::{gateway_pages, read_topology};
use crate::swarm::{AnySwarm, chosen};

/// What works without a right that a plan needs.
const WITHOUT: &str = "`dunlin status` shows the plan that is published without it";

/// Shows what would be planned for the swarm called `name`; whether nothing is wrong with it.
///
/// # Errors
/// When there is no plan, or it cannot be looked at.
pub async fn show(name: &str, cluster: &ClusterArgs, output: &OutputArgs) -> Result<bool> {
    let cluster = Cluster::connect(cluster).await?;
    let swarm = chosen(&cluster, Some(name)).await?.swarms.remove(0);
    let (id, namespace) = (swarm.id(), swarm.namespace());
    let AnySwarm::Inference(object) = &swarm else {
        bail!(
            "{id} has no plan: its conductor tells peers which stage to hold; `dunlin status` shows who holds which, and `dunlin plan \
             --model` lays a model out that is served"
        );
    };
    let here = cluster.of(&namespace);
    let topology = read_topology(&here, &swarm.name()).await.map_err(|why| why.and(WITHOUT))?;
    let Some(topology) = topology else {
        bail!("{id} has no plan yet, because no peer has read the model: `dunlin doctor` says why");
    };
    let pods = here.list::<Pod>(&swarm.selector()).await.map_err(|why| why.and(WITHOUT))?;
    let pods: Vec<PodFacts> =
        pods.iter().map(|pod| PodFacts::of(pod, Timestamp::now().as_second())).collect();
    let stages = pods.iter().filter(|p| p.role == ROLE_STAGE && p.phase == "Running");
    let stages: Vec<String> = stages.map(|p| p.name.clone()).collect();
    let (heard, metrics) = tokio::join!(
        gateway_pages(&here, &pods),
        pages(&here.client, &namespace, &stages, HEALTH_PORT, "/metrics")
    );
    let unheard = heard.values().filter_map(|page| page.as_ref().err());
    let unheard = unheard.chain(metrics.iter().filter_map(|(_, text)| text.as_ref().err()));
    let unread: BTreeSet<String> = unheard.cloned().collect();
    let heard: Vec<_> = heard.into_values().flatten().collect();
    let metrics: BTreeMap<String, String> =
        metrics.into_iter().filter_map(|(pod, text)| Some((pod, text.ok()?))).collect();
    let inputs = inputs(object, &topology, &pods, &heard, &metrics);
    let mut plan = view(&id, &namespace, &topology, &inputs).map_err(|refusal| anyhow!(refusal))?;
    plan.unread = unread.into_iter().collect();
    output.print(&plan, || plan.text())?;
    Ok(plan.findings.is_empty())
}
