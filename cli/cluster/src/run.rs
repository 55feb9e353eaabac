//! From the command line to an exit code.

use std::process::ExitCode;

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;

use crate::args::{Command, DoctorArgs, Format};
use crate::cluster::Cluster;
use crate::doctor::{Report, diagnose, report};
use crate::evidence::{gather, surroundings};
use crate::output::{FOUND, Output};
use crate::swarm::chosen;
use crate::{bundle, drain, plan, status, top};

/// Does what `command` says, and prints what there is to say to `output`.
///
/// # Errors
/// When it cannot be done: a sentence that says what to do.
pub async fn run(command: Command, output: &Output) -> Result<ExitCode> {
    let well = match command {
        Command::Doctor(args) => doctor(&args, output).await?,
        Command::Status(args) => status::show(&args, output).await?,
        Command::Plan(args) => plan::show(&args, output).await?,
        Command::Drain(args) => drain::drain(&args, output).await?,
        Command::Top(args) => top::show(&args, output).await?,
        Command::SupportBundle(args) => bundle::write(&args, output).await?,
    };
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

async fn doctor(args: &DoctorArgs, output: &Output) -> Result<bool> {
    let cluster = Cluster::connect(&args.common).await?;
    let swarms = chosen(&cluster, args.name.as_deref()).await?;
    let now_s = Timestamp::now().as_second();
    let around = surroundings(&cluster, now_s).await;
    let mut reports: Vec<Report> = Vec::new();
    for swarm in &swarms {
        let evidence = gather(&cluster, swarm, &around, now_s).await;
        reports.push(report(&evidence, diagnose(&evidence)));
    }
    match args.common.output {
        Format::Json => output.json(&reports)?,
        Format::Text => {
            let texts: Vec<String> = reports.iter().map(|report| report.text(output)).collect();
            output.print(&texts.join("\n\n"))?;
        }
    }
    Ok(reports.iter().all(|report| report.well))
}
