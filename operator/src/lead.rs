//! One term of leadership: everything that writes lives and dies with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_crds::InferenceSwarm;
use futures::{Stream, StreamExt, stream};
use kube::runtime::controller::{Config as ControllerConfig, Error as ControllerError};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Api, Client};
use tokio::sync::{broadcast, watch};
use tracing::{debug, info, warn};

use crate::apply::Applier;
use crate::config::Config;
use crate::labels::MANAGER;
use crate::metrics::Metrics;
use crate::observe::{Caches, Trigger};
use crate::peers::{Connect, Monitor};
use crate::reconcile::{Context, reconcile, retry};

/// Triggers of one swarm within this time make one reconciliation.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Swarms reconciled at a time.
const CONCURRENCY: u16 = 16;

/// What outlives a term.
#[derive(Clone)]
pub struct Parts {
    /// Client of the API server.
    pub client: Client,
    /// Command line.
    pub config: Config,
    /// What the watches have seen.
    pub caches: Caches,
    /// They have seen the cluster once.
    pub synced: watch::Receiver<bool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Swarms to look at again.
    pub triggers: broadcast::Sender<Trigger>,
    /// Makes connections to workers.
    pub connect: Arc<dyn Connect>,
}

/// Reconciles until dropped.
pub async fn lead(mut parts: Parts) {
    if parts.synced.wait_for(|synced| *synced).await.is_err() {
        // The process is going down.
        return;
    }
    info!("leading");
    let reporter = Reporter { controller: MANAGER.into(), instance: Some(parts.config.identity.clone()) };
    let context = Arc::new(Context {
        applier: Applier::new(parts.client.clone(), Arc::clone(&parts.metrics)),
        monitor: Monitor::new(parts.connect, parts.triggers.clone(), parts.config.silence_max()),
        recorder: Recorder::new(parts.client.clone(), reporter),
        client: parts.client.clone(),
        caches: parts.caches,
        metrics: parts.metrics,
        memories: Mutex::new(BTreeMap::new()),
        config: parts.config,
    });
    let namespace = &context.config.watch_namespace;
    let api: Api<InferenceSwarm> =
        if namespace.is_empty() { Api::all(parts.client) } else { Api::namespaced(parts.client, namespace) };
    let config = ControllerConfig::default().debounce(DEBOUNCE).concurrency(CONCURRENCY);
    Controller::new(api, watcher::Config::default())
        .with_config(config)
        .reconcile_on(references(parts.triggers.subscribe()))
        .run(reconcile, retry, Arc::clone(&context))
        .for_each(|result| {
            match result {
                Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
                Err(ControllerError::ObjectNotFound(gone)) => {
                    context.forget(&(gone.namespace.unwrap_or_default(), gone.name));
                }
                Err(error) => warn!(%error, "watching swarms"),
            }
            std::future::ready(())
        })
        .await;
}

/// Triggers as the controller takes them. Those missed because there were too many come again with the periodic look at each swarm.
fn references(
    triggers: broadcast::Receiver<Trigger>,
) -> impl Stream<Item = ObjectRef<InferenceSwarm>> + Send + 'static {
    stream::unfold(triggers, |mut triggers| async move {
        loop {
            match triggers.recv().await {
                Ok((namespace, name)) => {
                    return Some((ObjectRef::new(&name).within(&namespace), triggers));
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => debug!(missed, "triggers were dropped"),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    })
}
