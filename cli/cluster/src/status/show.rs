//! The command.

use std::time::Duration;

use anyhow::Result;
use dunlin_terminal::print::note;
use k8s_openapi::jiff::Timestamp;

use super::ask::Looks;
use super::render::render;
use super::view::StatusView;
use crate::args::StatusArgs;
use crate::cluster::Cluster;
use crate::swarm::{Chosen, chosen};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Shows swarms; whether all of them are Ready.
///
/// # Errors
/// When they cannot be looked at.
pub async fn show(args: &StatusArgs) -> Result<bool> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let mut looks = Looks::default();
    loop {
        let Chosen { swarms, unread } = chosen(&cluster, args.name.as_deref()).await?;
        let mut views: Vec<StatusView> = Vec::new();
        for swarm in &swarms {
            views.push(looks.look(&cluster, swarm, Timestamp::now().as_second()).await?);
        }
        let well = views.iter().all(|view| view.head().ready);
        let text = || views.iter().map(render).collect::<Vec<_>>().join("\n\n");
        if !args.watch {
            unread.iter().for_each(note);
            args.output.print(&views, text)?;
            return Ok(well);
        }
        if args.output.reprint(&views, text)?.is_break() {
            return Ok(well);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
