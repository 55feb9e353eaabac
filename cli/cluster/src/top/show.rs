//! The command.

use std::time::Duration;

use anyhow::Result;
use dunlin_crds::names::{HEALTH_PORT, ROLE_PEER, ROLE_STAGE};
use dunlin_terminal::print::note;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::rows::{Row, row, sort, text};
use crate::args::TopArgs;
use crate::cluster::Cluster;
use crate::failure::CallFailure;
use crate::pods::PodFacts;
use crate::proxy::pages;
use crate::status::ask::conductor;
use crate::swarm::{AnySwarm, Chosen, chosen};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Shows peers.
///
/// # Errors
/// When they cannot be listed.
pub async fn show(args: &TopArgs) -> Result<bool> {
    let cluster = Cluster::connect(&args.cluster).await?;
    loop {
        let Chosen { swarms, unread } = chosen(&cluster, args.name.as_deref()).await?;
        let mut rows = Vec::new();
        for swarm in &swarms {
            rows.extend(peers(&cluster, swarm).await?);
        }
        sort(&mut rows, args.sort);
        if !args.watch {
            unread.iter().for_each(note);
            args.output.print(&rows, || text(&rows))?;
            return Ok(true);
        }
        if args.output.reprint(&rows, || text(&rows))?.is_break() {
            return Ok(true);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn peers(cluster: &Cluster, swarm: &AnySwarm) -> Result<Vec<Row>, CallFailure> {
    let here = cluster.of(&swarm.namespace());
    let all = here.list::<Pod>(&swarm.selector()).await?;
    let all: Vec<PodFacts> = all.iter().map(|pod| PodFacts::of(pod, Timestamp::now().as_second())).collect();
    let peers: Vec<&PodFacts> =
        all.iter().filter(|p| !p.is_over() && (p.role == ROLE_STAGE || p.role == ROLE_PEER)).collect();
    let asked = peers.iter().filter(|p| p.phase == "Running" && p.role == ROLE_STAGE);
    let asked: Vec<String> = asked.map(|p| p.name.clone()).collect();
    let said = pages(&here.client, &swarm.namespace(), &asked, HEALTH_PORT, "/metrics").await;
    let page = |pod: &PodFacts| {
        let said = said.iter().find(|(name, _)| *name == pod.name);
        said.map_or_else(|| Ok(String::new()), |(_, page)| page.clone())
    };
    let mut rows: Vec<Row> = peers.iter().map(|pod| row(&swarm.name(), pod, page(pod))).collect();
    if let AnySwarm::Training(_) = swarm
        && let Some(said) = conductor(&here, &all).await
    {
        let members = said.map(|page| page.stages.into_iter().flat_map(|s| s.members).collect::<Vec<_>>());
        for row in &mut rows {
            match &members {
                Ok(members) => {
                    row.rows_per_s = members.iter().find(|m| m.name == row.name).map(|m| m.rows_per_second)
                }
                Err(why) => row.silent = Some(why.clone()),
            }
        }
    }
    Ok(rows)
}
