//! `dunlin`: what people run by hand.
//!
//! * [`local`] and [`local_train`] a whole swarm as [`processes`] on this machine
//! * [`replay`] a training swarm on a recorded spot trace
//! * [`random_model`] a random Llama for tests and benchmarks
//! * [`bench`] how fast parts of a swarm are
//! * [`cli`] the command line, [`print`] what commands print

mod bench;
mod cli;
mod local;
mod local_train;
mod print;
mod processes;
mod random_model;
mod replay;

use clap::Parser;
use cli::{Bench, Command};
use dunlin_worker::cli::LogArgs;
use dunlin_worker::{exit, telemetry};

fn main() -> std::process::ExitCode {
    exit::code(&start())
}

fn start() -> anyhow::Result<()> {
    // One TLS provider for everything in this process; a second call would fail, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = cli::Cli::parse();
    match args.command {
        Command::Local(local) => run(&args.log, "local", local::run(local)),
        Command::LocalTrain(train) => run(&args.log, "local-train", local_train::run(train)),
        Command::Replay(args) => replay::run(&args),
        Command::RandomModel(args) => random_model::run(&args),
        Command::Bench(Bench::AverageMember(member)) => {
            run(&args.log, "average-member", bench::average::run(member))
        }
    }
}

fn run(
    log: &LogArgs,
    command: &'static str,
    future: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let telemetry = telemetry::start(log, command, std::io::stderr)?;
        let outcome = future.await;
        telemetry.stop();
        outcome
    })
}
