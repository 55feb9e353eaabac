//! `dunlin-worker`: one binary, several roles.
//!
//! * [`stage`] executes layers
//! * [`gateway`] speaks OpenAI's HTTP API and owns sessions
//! * [`local`] a whole swarm as processes on this machine
//! * [`training`] conductor, peers and trainers of a training swarm
//! * [`replay`] a training swarm on a recorded spot trace
//! * `random-model` writes a random Llama for tests and benchmarks
//! * [`exit`] how a process ends, [`print`] what it prints

mod certificates;
mod cli;
mod exit;
mod gateway;
mod health;
mod local;
mod memory;
mod model;
mod print;
mod replay;
mod stage;
mod telemetry;
mod training;

use clap::Parser;

fn main() -> std::process::ExitCode {
    exit::code(&start())
}

fn start() -> anyhow::Result<()> {
    // One TLS provider for everything in this process; a second call would fail, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = cli::Cli::parse();
    match args.role {
        cli::Role::RandomModel(args) => Ok(dunlin_model::random_model::write(&args.out, &args.spec())?),
        cli::Role::Replay(args) => replay::run(&args),
        cli::Role::Stage(role) => run(&args.log, "stage", stage::run(role)),
        cli::Role::Gateway(role) => run(&args.log, "gateway", gateway::run(role)),
        cli::Role::Local(role) => run(&args.log, "local", local::run(role)),
        cli::Role::Conductor(role) => run(&args.log, "conductor", training::conductor::run(role)),
        cli::Role::TrainPeer(role) => run(&args.log, "train-peer", training::peer::run(role)),
        cli::Role::Trainer(role) => run(&args.log, "trainer", training::trainer::run(role)),
        cli::Role::AverageMember(role) => run(&args.log, "average-member", training::peer::member::run(role)),
        cli::Role::LocalTrain(role) => run(&args.log, "local-train", training::local::run(role)),
    }
}

fn run(
    log: &cli::LogArgs,
    role: &'static str,
    future: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    // Two threads: one may be busy with TLS or JSON while heartbeats go on.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let telemetry = telemetry::start(log, role)?;
        let outcome = future.await;
        telemetry.stop();
        outcome
    })
}
