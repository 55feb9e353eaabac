//! Wires the operator: see the library.

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use dunlin_operator::health::{self, Health};
use dunlin_operator::lease::Elector;
use dunlin_operator::metrics::OperatorMetrics;
use dunlin_operator::{config, labels, lead, observe, peers, telemetry};
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, watch};
use tracing::info;

/// Triggers that may wait for the leader.
const TRIGGERS_MAX: usize = 4096;

#[tokio::main]
async fn main() -> Result<()> {
    let config = config::Config::parse();
    let _telemetry = telemetry::install()?;
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.context("no kubeconfig and no ServiceAccount")?;
    let metrics = Arc::new(OperatorMetrics::default());
    let (stop, stopped) = watch::channel(false);
    let (leader, leading) = watch::channel(false);
    let (triggers, _) = broadcast::channel(TRIGGERS_MAX);

    let scope = observe::Scope {
        namespace: config.watch_namespace.clone(),
        nodes: config.watch_nodes,
        secrets: config.watch_secrets,
    };
    let (caches, synced, watches) = observe::run(&client, &scope, triggers.clone());
    let health = Health { metrics: Arc::clone(&metrics), synced: synced.clone() };
    // A connection of its own: the lease does not wait behind what a slow API server has not answered yet.
    let leases = Client::try_default().await.context("no kubeconfig and no ServiceAccount")?;
    let leases = Api::namespaced(leases, &config.namespace);
    let elector = Elector::new(leases, labels::MANAGER, &config.identity);
    let address = config.http;
    let parts = lead::ControllerParts {
        client,
        config,
        caches,
        synced,
        metrics,
        triggers,
        connect: Arc::new(peers::GrpcConnector),
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        watches.await;
        Ok(())
    });
    tasks.spawn(health::serve(address, health, stopped.clone()));
    let election = tokio::spawn(elector.run(leader, stopped));
    tasks.spawn(lead::terms(parts, leading));

    let mut terminate = signal(SignalKind::terminate())?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
        Some(ended) = tasks.join_next() => ended.context("a task panicked").and_then(|r| r),
    };
    info!("stopping");
    let _ = stop.send(true);
    // Giving the lease back lets the other replica go on at once. The elector's own deadlines bound this.
    election.await.context("leader election panicked")?;
    tasks.shutdown().await;
    result
}
