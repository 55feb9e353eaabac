//! One term of leadership: everything that writes lives and dies with it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use dunlin_crds::{InferenceSwarm, TrainingSwarm};
use futures::{Stream, StreamExt, stream};
use kube::runtime::controller::{Config as ControllerConfig, Error as ControllerError};
use kube::runtime::events::Reporter;
use kube::runtime::reflector::{ObjectRef, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use tokio::sync::{broadcast, watch};
use tracing::{debug, info, warn};

use crate::api::{ApiClient, ApiServer};
use crate::apply::Applier;
use crate::config::Config;
use crate::key::{Kind, SwarmKey};
use crate::labels::{MANAGER, random};
use crate::metrics::OperatorMetrics;
use crate::observe::Caches;
use crate::peers::{Connect, Monitor};
use crate::swarm::context::Context;
use crate::swarm::{Controller, Swarm};

/// Triggers of one swarm within this time make one reconciliation.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Swarms reconciled at a time.
const CONCURRENCY: u16 = 16;

/// What outlives a term.
#[derive(Clone)]
pub struct ControllerParts {
    /// Client of the API server.
    pub client: Client,
    /// Command line.
    pub config: Config,
    /// What the watches have seen.
    pub caches: Caches,
    /// They have seen the cluster once.
    pub synced: watch::Receiver<bool>,
    /// Counters.
    pub metrics: Arc<OperatorMetrics>,
    /// Swarms to look at again.
    pub triggers: broadcast::Sender<SwarmKey>,
    /// Makes connections to workers.
    pub connect: Arc<dyn Connect>,
}

/// Leads whenever, and as long as, `leading` is true.
///
/// # Errors
/// None: it ends when the process does.
pub async fn terms(parts: ControllerParts, mut leading: watch::Receiver<bool>) -> anyhow::Result<()> {
    while leading.wait_for(|leads| *leads).await.is_ok() {
        parts.metrics.leader.set(1);
        tokio::select! {
            () = lead(parts.clone()) => {}
            _ = leading.wait_for(|leads| !*leads) => {}
        }
        parts.metrics.leader.set(0);
    }
    Ok(())
}

/// Reconciles until dropped.
async fn lead(mut parts: ControllerParts) {
    if parts.synced.wait_for(|synced| *synced).await.is_err() {
        // The process is going down.
        return;
    }
    info!("leading");
    let reporter = Reporter { controller: MANAGER.into(), instance: Some(parts.config.identity.clone()) };
    let (client, triggers) = (parts.client, parts.triggers);
    let api: Arc<dyn ApiServer> = Arc::new(ApiClient::new(client.clone(), reporter));
    let context = Arc::new(Context {
        applier: Applier::new(Arc::clone(&api), Arc::clone(&parts.metrics), Arc::new(random)),
        monitor: Box::new(Monitor::new(parts.connect, triggers.clone(), parts.config.silence_max())),
        api,
        caches: parts.caches,
        metrics: parts.metrics,
        config: parts.config,
    });
    futures::join!(
        control::<InferenceSwarm>(client.clone(), &triggers, &context),
        control::<TrainingSwarm>(client, &triggers, &context)
    );
}

/// Reconciles the swarms of one kind, for ever.
async fn control<S: Swarm>(client: Client, triggers: &broadcast::Sender<SwarmKey>, context: &Arc<Context>) {
    let controller = Arc::new(Controller::<S>::new(Arc::clone(context)));
    let namespace = &context.config.watch_namespace;
    let api: Api<S> =
        if namespace.is_empty() { Api::all(client) } else { Api::namespaced(client, namespace) };
    let config = ControllerConfig::default().debounce(DEBOUNCE).concurrency(CONCURRENCY);
    let (swarms, writer) = store();
    let mut asked = Asked::default();
    let news = watcher(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .filter_map(move |event| std::future::ready(event.map(|event| asked.news(event)).transpose()));
    kube::runtime::Controller::for_stream(news, swarms)
        .with_config(config)
        .reconcile_on(references(S::KIND, triggers.subscribe()))
        .run(Controller::<S>::reconcile, Controller::<S>::retry, Arc::clone(&controller))
        .for_each(|result| {
            match result {
                Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
                Err(ControllerError::ObjectNotFound(gone)) => {
                    let namespace = gone.namespace.unwrap_or_default();
                    controller.forget(&SwarmKey { kind: S::KIND, namespace, name: gone.name });
                }
                Err(error) => warn!(%error, kind = S::KIND.name(), "watching swarms"),
            }
            std::future::ready(())
        })
        .await;
}

/// What was last seen of each swarm that is worth a reconciliation: all but its status, which we write ourselves.
#[derive(Default)]
struct Asked(BTreeMap<(Option<String>, Option<String>), u64>);

impl Asked {
    /// The swarm of `event` if anything about it is new.
    fn news<K: Resource>(&mut self, event: watcher::Event<K>) -> Option<K> {
        match event {
            watcher::Event::Apply(swarm) | watcher::Event::InitApply(swarm) => {
                let meta = swarm.meta();
                let mut hasher = DefaultHasher::new();
                (&meta.uid, meta.generation, &meta.labels, &meta.annotations).hash(&mut hasher);
                meta.deletion_timestamp.is_some().hash(&mut hasher);
                let (key, now) = ((meta.namespace.clone(), meta.name.clone()), hasher.finish());
                (self.0.insert(key, now) != Some(now)).then_some(swarm)
            }
            watcher::Event::Delete(swarm) => {
                self.0.remove(&(swarm.meta().namespace.clone(), swarm.meta().name.clone()));
                Some(swarm)
            }
            watcher::Event::Init | watcher::Event::InitDone => None,
        }
    }
}

/// Triggers as the controller takes them. Those missed because there were too many come again with the periodic look at each swarm.
fn references<K>(
    kind: Kind,
    triggers: broadcast::Receiver<SwarmKey>,
) -> impl Stream<Item = ObjectRef<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + 'static,
{
    stream::unfold(triggers, move |mut triggers| async move {
        loop {
            match triggers.recv().await {
                Ok(swarm) if swarm.kind == kind => {
                    return Some((ObjectRef::new(&swarm.name).within(&swarm.namespace), triggers));
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => debug!(missed, "triggers were dropped"),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use dunlin_crds::InferenceSwarm;
    use serde_json::json;
    use watcher::Event;

    use super::*;

    fn swarm(uid: &str, generation: i64, ready: &str) -> InferenceSwarm {
        let value = json!({
            "apiVersion": "dunlin.dev/v1alpha1",
            "kind": "InferenceSwarm",
            "metadata": {"name": "m", "namespace": "default", "uid": uid, "generation": generation},
            "spec": {"model": {"source": {"http": {"url": "http://models/m.gguf"}}}, "pools": []},
            "status": {"model": ready},
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn our_own_status_writes_do_not_wake_us() {
        let mut asked = Asked::default();
        let mut wakes = |event| asked.news(event).is_some();
        assert!(wakes(Event::Apply(swarm("1", 1, "a"))));
        assert!(!wakes(Event::Apply(swarm("1", 1, "b"))), "a status");
        assert!(!wakes(Event::InitApply(swarm("1", 1, "b"))), "the watch begins anew");
        assert!(wakes(Event::Apply(swarm("1", 2, "b"))), "an edit");
        assert!(wakes(Event::Apply(swarm("2", 2, "b"))), "another swarm of the name");
        assert!(wakes(Event::Delete(swarm("2", 2, "b"))));
        assert!(wakes(Event::Apply(swarm("2", 2, "b"))));
    }
}
