//! What reconciliations of both kinds of swarm share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use dunlin_wire::TlsFiles;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use tracing::{error, info};

use crate::apply::Applier;
use crate::apply::certificates::{conductor_names, gateway_names, worker_names};
use crate::apply::network::GRPC_PORT;
use crate::config::Config;
use crate::error::Error;
use crate::labels::{Owner, random};
use crate::metrics::{Metrics, SwarmLabels};
use crate::observe::{Caches, Phase, SwarmKey, SwarmView, WorkerView};
use crate::peers::{Monitor, Role, Target};
use crate::status::events::Happening;
use crate::{reconcile, training};

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
    pub serving: Memories<reconcile::Memory>,
    /// Memory of each TrainingSwarm.
    pub training: Memories<training::Memory>,
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
    pub async fn publish(&self, swarm: &ObjectReference, happenings: &[Happening]) {
        let namespace = swarm.namespace.clone().unwrap_or_default();
        for happening in happenings {
            info!(reason = happening.reason, note = happening.note, "event");
            let event = happening.event(&namespace);
            let published = self.recorder.publish(&event, swarm);
            if let Err(failure) = crate::apply::call("publish an Event".into(), published).await {
                error!(%failure, "an Event was not written");
            }
        }
    }

    /// Counts what happened to the peers of a swarm.
    pub fn measure(&self, swarm: &SwarmKey, ready: u32, happenings: &[Happening]) {
        let labels = SwarmLabels::of(swarm);
        let count = |reasons: &[&str]| {
            happenings.iter().filter(|h| reasons.contains(&h.reason.as_str())).count() as u64
        };
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

/// Everybody worth talking to.
#[must_use]
pub fn targets(owner: &Owner, view: &SwarmView, identity: &Arc<TlsFiles>) -> Vec<Target> {
    let target = |name: &str, ip: &str, role, server_name: String| Target {
        name: name.to_owned(),
        role,
        addr: address(ip, GRPC_PORT),
        server_name,
        identity: Arc::clone(identity),
    };
    let asked = |w: &&WorkerView| matches!(w.phase, Phase::Running | Phase::Draining(_)) || w.node_gone;
    let workers = view.workers.values().filter(asked).filter_map(|w| {
        let [_, name] = worker_names(owner, &w.name);
        Some(target(&w.name, w.ip.as_deref()?, Role::Stage, name))
    });
    let conductors = view.conductors.values().filter(asked).filter_map(|w| {
        let name = conductor_names(owner, &w.name).pop()?;
        Some(target(&w.name, w.ip.as_deref()?, Role::Conductor, name))
    });
    let gateways = view.gateways.values().filter(|g| g.running).filter_map(|g| {
        let name = gateway_names(owner).pop()?;
        Some(target(&g.name, g.ip.as_deref()?, Role::Gateway, name))
    });
    workers.chain(conductors).chain(gateways).collect()
}

/// `ip:port`, with brackets around IPv6.
#[must_use]
pub fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}
