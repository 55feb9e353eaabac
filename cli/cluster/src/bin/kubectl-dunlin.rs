//! `kubectl-dunlin`, which kubectl runs for `kubectl dunlin`.

use std::process::ExitCode;

use clap::Parser;
use dunlin_kubectl::{Command, Output, run};

/// Look at swarms of models, find out what is wrong with them, and move their peers
#[derive(Parser)]
#[command(name = "kubectl-dunlin", bin_name = "kubectl dunlin", version, after_help = dunlin_kubectl::args::EXIT_CODES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[tokio::main]
async fn main() -> ExitCode {
    let output = Output::detect();
    run(Args::parse().command, &output).await.unwrap_or_else(|error| output.failed(&error))
}
