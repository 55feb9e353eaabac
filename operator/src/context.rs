//! What reconciliations of both kinds of swarm share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use tracing::{error, info};

use crate::apply::Applier;
use crate::config::Config;
use crate::error::Error;
use crate::key::SwarmKey;
use crate::labels::random;
use crate::metrics::{Metrics, SwarmLabels};
use crate::observe::Caches;
use crate::peers::Monitor;
use crate::status::events::SwarmEvent;

/// What reconciliations share.
pub struct Context {
    /// Client of the API server.
    pub client: kube::Client,
    /// Command line.
    pub config: Config,
    /// Writer of objects.
    pub applier: Applier,
    /// What the watches have seen.
    pub caches: Caches,
    /// Conversations with workers.
    pub monitor: Monitor,
    /// Writer of Events.
    pub recorder: Recorder,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Memory of each InferenceSwarm.
    pub serving: Memories<crate::inference::memory::Memory>,
    /// Memory of each TrainingSwarm.
    pub training: Memories<crate::training::memory::Memory>,
}

impl Context {
    /// Drops everything that is kept about a deleted swarm.
    pub fn forget(&self, swarm: &SwarmKey) {
        self.serving.forget(swarm);
        self.training.forget(swarm);
        self.monitor.forget(swarm);
        self.metrics.forget(&SwarmLabels::of(swarm));
    }

    /// When to try again after `failure`, the `attempt`-th in a row.
    #[must_use]
    pub fn retry(&self, swarm: &SwarmKey, failure: &Error, attempt: u32) -> Action {
        let pause = failure.backoff(attempt, random());
        let (kind, namespace, name) = (swarm.kind.name(), &swarm.namespace, &swarm.name);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        error!(
            kind,
            namespace,
            swarm = name,
            category = failure.category(),
            failure = failure.sentence(),
            pause_ms,
            "reconciliation failed"
        );
        Action::requeue(pause)
    }

    /// Events are for people: one that cannot be written must not hold up a replacement.
    pub async fn publish(&self, swarm: &ObjectReference, events: &[SwarmEvent]) {
        let namespace = swarm.namespace.clone().unwrap_or_default();
        for event in events {
            info!(reason = event.reason, note = event.note, "event");
            let event = event.event(&namespace);
            let published = self.recorder.publish(&event, swarm);
            if let Err(failure) = crate::apply::call("publish an Event".into(), published).await {
                error!(%failure, "an Event was not written");
            }
        }
    }

    /// Counts what happened to the peers of a swarm.
    pub fn measure(&self, swarm: &SwarmKey, ready: u32, events: &[SwarmEvent]) {
        let labels = SwarmLabels::of(swarm);
        let count =
            |reasons: &[&str]| events.iter().filter(|h| reasons.contains(&h.reason.as_str())).count() as u64;
        self.metrics.peers_lost.get_or_create(&labels).inc_by(count(&["PeerLost"]));
        self.metrics.peers_created.get_or_create(&labels).inc_by(count(&["PeerCreated", "PeerReplaced"]));
        self.metrics.peers_ready.get_or_create(&labels).set(i64::from(ready));
    }
}

/// Memory per swarm, of one kind.
pub struct Memories<M>(Mutex<BTreeMap<SwarmKey, Known<M>>>);

/// That of the swarm with this UID.
struct Known<M> {
    uid: String,
    memory: Arc<tokio::sync::Mutex<M>>,
}

impl<M> Default for Memories<M> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<M: Default> Memories<M> {
    /// That of `swarm` with this UID: a swarm that was deleted and made again under its name is another one, even when nobody saw it go.
    pub fn of(&self, swarm: &SwarmKey, uid: &str) -> Arc<tokio::sync::Mutex<M>> {
        let mut memories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Known { uid: uid.to_owned(), memory: Arc::default() };
        let known = memories.entry(swarm.clone()).or_insert_with(new);
        if known.uid != uid {
            *known = new();
        }
        Arc::clone(&known.memory)
    }
}

impl<M> Memories<M> {
    /// Drops that of `swarm`.
    pub fn forget(&self, swarm: &SwarmKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(swarm);
    }
}
