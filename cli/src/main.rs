//! `dunlin`: what people run by hand.
//!
//! * [`local`] and [`local_train`] a whole swarm as [`processes`] on this machine
//! * [`replay`] a training swarm on a recorded spot trace
//! * [`random_model`] a random Llama for tests and benchmarks
//! * [`bench`] how fast parts of a swarm are
//! * [`plan`] how a model is laid over machines, or what is missing
//! * `dunlin_kubectl` the commands for swarms of a cluster, `dunlin_terminal` what all commands print; [`mod@ask`] runs questions
//! * [`cli`] the command line, [`size`] sizes as people write them
//!
//! kubectl finds the same program as `kubectl-dunlin`.

mod ask;
mod bench;
mod cli;
mod local;
mod local_train;
mod plan;
mod processes;
mod random_model;
#[cfg(test)]
mod reference;
mod replay;
mod size;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use ask::ask;
use clap::{CommandFactory, FromArgMatches};
use cli::{Bench, Cli, CompletionsArgs, ToolCommand};
use dunlin_terminal::exit::FOUND;
use dunlin_terminal::print;
use dunlin_terminal::progress::Lines;
use dunlin_worker::cli::LogArgs;
use dunlin_worker::{exit, telemetry};

fn main() -> ExitCode {
    match start() {
        Ok(false) => FOUND.into(),
        outcome => exit::code(&outcome.map(drop)),
    }
}

/// The command line; of kubectl's plugin it says what people type.
fn arguments() -> Cli {
    let called = std::env::args_os().next().unwrap_or_default();
    let is_plugin = Path::new(&called).file_stem() == Some(OsStr::new("kubectl-dunlin"));
    let command = if is_plugin { Cli::command().bin_name("kubectl dunlin") } else { Cli::command() };
    // The parser knows what it has parsed.
    Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

/// Whether what was looked at is well.
fn start() -> anyhow::Result<bool> {
    // One TLS provider for everything in this process; a second call would fail, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = arguments();
    match args.command {
        ToolCommand::Cluster(command) => return ask(dunlin_kubectl::run(command)),
        ToolCommand::Plan(args) => return plan::run(&args),
        ToolCommand::Local(local) => run(&args.log, "local", local::run(local)),
        ToolCommand::LocalTrain(train) => run(&args.log, "local-train", local_train::run(train)),
        ToolCommand::Replay(args) => replay::run(&args),
        ToolCommand::RandomModel(args) => random_model::run(&args),
        ToolCommand::Bench(Bench::Decode(args)) => bench::decode::run(&args),
        ToolCommand::Bench(Bench::Average(average)) => {
            run(&args.log, "average", bench::average::run(average))
        }
        ToolCommand::Bench(Bench::AverageMember(member)) => {
            run(&args.log, "member", bench::member::run(member))
        }
        ToolCommand::Completions(args) => completions(&args),
    }
    .map(|()| true)
}

fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dunlin", &mut script);
    // Who reads no longer has seen enough.
    let _ = print::line(String::from_utf8(script)?.trim_end())?;
    Ok(())
}

fn run(
    log: &LogArgs,
    command: &'static str,
    future: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let telemetry = telemetry::start(log, command, || Lines)?;
        let outcome = future.await;
        telemetry.stop();
        outcome
    })
}
