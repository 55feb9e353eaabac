//! `dunlin`: what people run by hand.
//!
//! * [`local`] and [`local_train`] a whole swarm as [`processes`] on this machine
//! * [`replay`] a training swarm on a recorded spot trace
//! * [`random_model`] a random Llama for tests and benchmarks
//! * [`bench`] how fast parts of a swarm are
//! * [`plan`] how a model would be laid over machines, or what is missing
//! * [`cli`] the command line, [`print`] what commands print, [`progress`] how far they are, [`size`] sizes as people write them

mod bench;
mod cli;
mod local;
mod local_train;
mod plan;
mod print;
mod processes;
mod progress;
mod random_model;
#[cfg(test)]
mod reference;
mod replay;
mod size;

use clap::{CommandFactory, Parser};
use cli::{Bench, Cli, Command, CompletionsArgs};
use dunlin_worker::cli::LogArgs;
use dunlin_worker::{exit, telemetry};
use progress::Lines;

fn main() -> std::process::ExitCode {
    exit::code(&start())
}

fn start() -> anyhow::Result<()> {
    // One TLS provider for everything in this process; a second call would fail, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Cli::parse();
    match args.command {
        Command::Local(local) => run(&args.log, "local", local::run(local)),
        Command::LocalTrain(train) => run(&args.log, "local-train", local_train::run(train)),
        Command::Replay(args) => replay::run(&args),
        Command::RandomModel(args) => random_model::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(Bench::Decode(args)) => bench::decode::run(&args),
        Command::Bench(Bench::Average(average)) => run(&args.log, "average", bench::average::run(average)),
        Command::Bench(Bench::AverageMember(member)) => run(&args.log, "member", bench::member::run(member)),
        Command::Completions(args) => completions(&args),
    }
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
