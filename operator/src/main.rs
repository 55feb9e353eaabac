//! `dunlin-operator`: observe -> plan -> apply.
//!
//! * [`observe`] watches fill caches; one immutable view per swarm · [`peers`] what workers say over gRPC
//! * [`key`] which swarm · [`pools`] those of its manifest, in numbers · [`targets`] whom to ask · [`labels`] how all of it is called
//! * [`swarm`] the controller of both kinds of swarm: the order of its steps · [`inference`], [`training`] what each kind decides and writes
//! * [`roster`], [`turnover`] which pods stay, go and are missing · [`trust`] certificates · [`making`] new pods
//! * [`apply`] manifests and server-side apply · [`status`] conditions, Events
//! * [`lease`] who may write · [`lead`] one term of it

mod apply;
mod config;
mod deletion;
mod error;
mod health;
mod inference;
mod key;
mod labels;
mod lead;
mod lease;
mod making;
mod metrics;
mod observe;
mod peers;
mod pools;
mod quantity;
mod roll;
mod roster;
mod spot;
mod status;
mod swarm;
mod targets;
mod telemetry;
#[cfg(test)]
mod testing;
mod training;
mod trust;
mod turnover;

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, watch};
use tracing::info;

use crate::health::Health;
use crate::lease::Elector;
use crate::metrics::Metrics;

/// Triggers that may wait for the leader.
const TRIGGERS_MAX: usize = 4096;

#[tokio::main]
async fn main() -> Result<()> {
    let config = config::Config::parse();
    let _telemetry = telemetry::install()?;
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.context("no kubeconfig and no ServiceAccount")?;
    let metrics = Arc::new(Metrics::default());
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
