//! The command.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;

use super::ask::Looks;
use super::render::render;
use super::view::View;
use crate::args::{Format, StatusArgs};
use crate::cluster::{Cluster, or_end};
use crate::output::Output;
use crate::swarm::chosen;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Shows swarms; whether all of them are Ready.
///
/// # Errors
/// When they cannot be looked at.
pub async fn show(args: &StatusArgs, output: &Output) -> Result<bool> {
    let cluster = Cluster::connect(&args.common).await?;
    let mut looks = Looks::default();
    loop {
        let mut views = Vec::new();
        for swarm in chosen(&cluster, args.name.as_deref()).await? {
            views.push(or_end(looks.look(&cluster, &swarm, Timestamp::now().as_second()).await)?);
        }
        let text =
            |views: &[View]| views.iter().map(|view| render(view, output)).collect::<Vec<_>>().join("\n\n");
        match args.common.output {
            Format::Json => output.json(&views)?,
            Format::Text if args.watch => output.reprint(&text(&views))?,
            Format::Text => output.print(&text(&views))?,
        }
        if !args.watch {
            return Ok(views.iter().all(|view| view.head().ready));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
