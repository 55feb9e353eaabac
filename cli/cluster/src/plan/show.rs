//! The command.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use dunlin_crds::names::{HEALTH_PORT, ROLE_STAGE};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::inputs::inputs;
use super::view::view;
use crate::args::{Format, NamedArgs};
use crate::cluster::{Cluster, or_end};
use crate::output::Output;
use crate::pods::PodFacts;
use crate::proxy::pages;
use crate::status::ask::{gateway_pages, read_topology};
use crate::swarm::{Swarm, chosen};

/// Shows what would be planned; whether nothing is wrong with it.
///
/// # Errors
/// When there is no plan, or it cannot be looked at.
pub async fn show(args: &NamedArgs, output: &Output) -> Result<bool> {
    let cluster = Cluster::connect(&args.common).await?;
    let swarm = chosen(&cluster, Some(&args.name)).await?.remove(0);
    let (id, namespace) = (swarm.id(), swarm.namespace());
    let Swarm::Inference(object) = &swarm else {
        bail!(
            "{id} has no plan: its conductor tells peers which stage to hold; `kubectl dunlin status` shows it"
        );
    };
    let here = cluster.of(&namespace);
    let Some(topology) = or_end(read_topology(&here, &swarm.name()).await)? else {
        bail!("{id} has no plan yet, because no peer has read the model: `kubectl dunlin doctor` says why");
    };
    let pods = or_end(here.list::<Pod>(&swarm.selector()).await)?;
    let pods: Vec<PodFacts> =
        pods.iter().map(|pod| PodFacts::of(pod, Timestamp::now().as_second())).collect();
    let stages = pods.iter().filter(|p| p.role == ROLE_STAGE && p.phase == "Running");
    let stages: Vec<String> = stages.map(|p| p.name.clone()).collect();
    let (heard, metrics) = tokio::join!(
        gateway_pages(&here, &pods),
        pages(&here.client, &namespace, &stages, HEALTH_PORT, "/metrics")
    );
    let heard: Vec<_> = heard.into_values().flatten().collect();
    let metrics: BTreeMap<String, String> =
        metrics.into_iter().filter_map(|(pod, text)| Some((pod, text.ok()?))).collect();
    let plan = or_end(view(&id, &namespace, &topology, &inputs(object, &topology, &pods, &heard, &metrics)))?;
    match args.common.output {
        Format::Json => output.json(&plan)?,
        Format::Text => output.print(&plan.text())?,
    }
    Ok(plan.findings.is_empty())
}
