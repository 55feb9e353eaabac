//! What reconciliations of all swarms share.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tracing::{error, info};

use crate::api::{ApiServer, ApiVerb};
use crate::apply::Applier;
use crate::config::Config;
use crate::error::Error;
use crate::key::SwarmKey;
use crate::metrics::{OperatorMetrics, SwarmLabels};
use crate::observe::Caches;
use crate::peers::Conversations;
use crate::status::events::SwarmEvent;

/// What reconciliations share.
pub struct Context {
    /// The API server.
    pub api: Arc<dyn ApiServer>,
    /// Command line.
    pub config: Config,
    /// Writer of objects.
    pub applier: Applier,
    /// What the watches have seen.
    pub caches: Caches,
    /// Conversations with workers.
    pub monitor: Box<dyn Conversations>,
    /// Counters.
    pub metrics: Arc<OperatorMetrics>,
}

impl Context {
    /// Ends all conversations with a deleted swarm, and its series.
    pub fn forget(&self, swarm: &SwarmKey) {
        self.monitor.forget(swarm);
        self.metrics.forget(&SwarmLabels::of(swarm));
    }

    /// How long to wait after `failure`, the `attempt`-th in a row.
    #[must_use]
    pub fn retry(&self, swarm: &SwarmKey, failure: &Error, attempt: u32) -> Duration {
        let pause = failure.backoff(attempt, self.applier.draw());
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
        pause
    }

    /// Events are for people: one that cannot be written must not hold up a replacement.
    pub async fn publish(&self, swarm: &ObjectReference, events: &[SwarmEvent]) {
        let namespace = swarm.namespace.clone().unwrap_or_default();
        for event in events {
            info!(reason = event.reason, note = event.note, "event");
            let verb = ApiVerb::Tell { swarm: swarm.clone(), event: Box::new(event.object(&namespace)) };
            if let Err(failure) = self.api.call("publish an Event".into(), verb).await {
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
