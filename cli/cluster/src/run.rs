//! From the command line to whether all is well.

use anyhow::Result;
use dunlin_terminal::print::note;
use k8s_openapi::jiff::Timestamp;

use crate::args::{ClusterCommand, DoctorArgs};
use crate::cluster::Cluster;
use crate::doctor::{DoctorReport, diagnose, report};
use crate::evidence::{gather, surroundings};
use crate::swarm::chosen;
use crate::{bundle, drain, status, top};

/// Does what `command` says; whether what was looked at is well.
///
/// # Errors
/// When it cannot be done: a sentence that says what to do.
pub async fn run(command: ClusterCommand) -> Result<bool> {
    match command {
        ClusterCommand::Doctor(args) => doctor(&args).await,
        ClusterCommand::Status(args) => status::show(&args).await,
        ClusterCommand::Drain(args) => drain::drain(&args).await,
        ClusterCommand::Top(args) => top::show(&args).await,
        ClusterCommand::SupportBundle(args) => bundle::write(&args).await,
    }
}

async fn doctor(args: &DoctorArgs) -> Result<bool> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let chosen = chosen(&cluster, args.name.as_deref()).await?;
    chosen.unread.iter().for_each(note);
    let now_s = Timestamp::now().as_second();
    let around = surroundings(&cluster, now_s).await;
    let mut reports: Vec<DoctorReport> = Vec::new();
    for swarm in &chosen.swarms {
        let evidence = gather(&cluster, swarm, &around, now_s).await;
        reports.push(report(&evidence, diagnose(&evidence)));
    }
    args.output
        .print(&reports, || reports.iter().map(DoctorReport::text).collect::<Vec<_>>().join("\n\n"))?;
    Ok(reports.iter().all(|report| report.well))
}
