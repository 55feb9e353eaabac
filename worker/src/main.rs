//! `dunlin-worker`: one binary, a role for each process of a swarm.

use dunlin_worker::cli::{LogArgs, WorkerCli, WorkerRole};
use dunlin_worker::training::{conductor, peer, trainer};
use dunlin_worker::{exit, gateway, stage, telemetry};

fn main() -> std::process::ExitCode {
    exit::code(&start())
}

fn start() -> anyhow::Result<()> {
    // One TLS provider for everything in this process; a second call would fail, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = WorkerCli::of_process();
    match args.role {
        WorkerRole::Stage(role) => run(&args.log, "stage", stage::run(role)),
        WorkerRole::Gateway(role) => run(&args.log, "gateway", gateway::run(role)),
        WorkerRole::Conductor(role) => run(&args.log, "conductor", conductor::run(role)),
        WorkerRole::TrainPeer(role) => run(&args.log, "train-peer", peer::run(role)),
        WorkerRole::Trainer(role) => run(&args.log, "trainer", trainer::run(role)),
    }
}

fn run(
    log: &LogArgs,
    role: &'static str,
    future: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    // Two threads: one may be busy with TLS or JSON while heartbeats go on.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let telemetry = telemetry::start(log, role, std::io::stderr)?;
        let outcome = future.await;
        telemetry.stop();
        outcome
    })
}
