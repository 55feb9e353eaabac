//! One swarm, once: observe, plan, apply, report. Every step may be cut off at any moment and repeated.

mod decide;
mod memory;
mod roster;
#[cfg(test)]
mod tests;
mod write;

pub use decide::{Decision, decide};
pub use memory::{Memory, Published, Trust};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_crds::InferenceSwarm;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use kube::{Client, Resource, ResourceExt};
use tokio::time::Instant;
use tracing::{error, info, instrument, warn};

use crate::apply::certificates::{Authority, operator_names};
use crate::apply::network::GRPC_PORT;
use crate::apply::{Applier, certificates, topology};
use crate::config::Config;
use crate::convert::Desired;
use crate::error::Error;
use crate::labels::{Owner, random};
use crate::metrics::{Metrics, SwarmLabels};
use crate::observe::{Caches, Phase, SwarmView, Trigger, WorkerView};
use crate::peers::{Identity, Monitor, Order, Role, Target};
use crate::status;
use crate::status::events::{Happening, changes};

/// A settled swarm is looked at again after this long, without any trigger.
const SETTLED: Duration = Duration::from_secs(60);
/// An unsettled one after this long.
const UNSETTLED: Duration = Duration::from_secs(5);

/// What reconciliations share.
pub struct Context {
    /// Client of the API server.
    pub client: Client,
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
    /// Memory per swarm.
    pub memories: Mutex<BTreeMap<Trigger, Arc<tokio::sync::Mutex<Memory>>>>,
}

impl Context {
    fn memory(&self, swarm: &Trigger) -> Arc<tokio::sync::Mutex<Memory>> {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(memories.entry(swarm.clone()).or_default())
    }

    /// Drops everything that is kept about a deleted swarm.
    pub fn forget(&self, swarm: &Trigger) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(swarm);
        self.monitor.forget(swarm);
        self.metrics.forget(&SwarmLabels { namespace: swarm.0.clone(), swarm: swarm.1.clone() });
    }
}

/// Brings one swarm closer to what its manifest asks for.
///
/// # Errors
/// What kept it from doing so; [`retry`] says when to try again.
#[instrument(skip_all, fields(namespace = swarm.namespace(), swarm = swarm.name_any()))]
pub async fn reconcile(swarm: Arc<InferenceSwarm>, context: Arc<Context>) -> Result<Action, Error> {
    let started = Instant::now();
    let key = (swarm.namespace().unwrap_or_default(), swarm.name_any());
    if swarm.metadata.deletion_timestamp.is_some() {
        // Owner references delete the children; making new ones would only get in the way.
        context.forget(&key);
        return Ok(Action::await_change());
    }
    let memory = context.memory(&key);
    let mut memory = memory.lock().await;
    let result = pass(&swarm, &key, &context, &mut memory).await;
    memory.failures = if result.is_ok() { 0 } else { memory.failures.saturating_add(1) };
    context.metrics.reconciled(started.elapsed(), result.as_ref().err().map(Error::category));
    result
}

/// When to try again after an error.
#[must_use]
pub fn retry(swarm: Arc<InferenceSwarm>, failure: &Error, context: Arc<Context>) -> Action {
    let key = (swarm.namespace().unwrap_or_default(), swarm.name_any());
    let attempt = context.memory(&key).try_lock().map_or(1, |memory| memory.failures);
    let pause = failure.backoff(attempt, random());
    let cause = std::error::Error::source(failure).map(ToString::to_string).unwrap_or_default();
    let (namespace, name) = (&key.0, &key.1);
    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    error!(namespace, swarm = name, category = failure.category(), %failure, cause, pause_ms, "reconciliation failed");
    Action::requeue(pause)
}

async fn pass(
    swarm: &InferenceSwarm,
    key: &Trigger,
    context: &Context,
    memory: &mut Memory,
) -> Result<Action, Error> {
    let owner = Owner { namespace: key.0.clone(), name: key.1.clone(), uid: swarm.uid().unwrap_or_default() };
    restore(&owner, context, memory).await?;
    let Some(trust) = &memory.trust else { return Ok(Action::requeue(UNSETTLED)) };
    let identity = Arc::clone(&trust.identity);

    // Observe.
    let unseen = memory.unseen(&context.caches, &key.0, Instant::now());
    let view = context.caches.view(&key.0, &key.1, &unseen);
    context.monitor.follow(key, targets(&owner, &view, &identity));
    let answers = context.monitor.answers(key);

    // Plan.
    let desired = Desired::new(swarm, &context.config);
    let generation = swarm.metadata.generation.unwrap_or_default();
    let silence = context.config.silence_max();
    let decision = decide(&desired, generation, &view, &answers, memory, Instant::now(), silence)
        .map_err(Error::Plan)?;
    if let Some(layout) = &decision.layout {
        memory.topology = Some(layout.topology.clone());
    }

    // Apply, and report even when that failed: the status then says what is in the way.
    let mut happenings = decision.happenings.clone();
    let written = write::all(&owner, &desired, &view, &decision, context, memory, &mut happenings).await;
    // Whatever could not be written, workers that can be reached are told; not when another operator has published meanwhile.
    if !written.as_ref().is_err_and(|failure| failure.category() == "conflict") {
        give_orders(key, &view, memory, context)?;
    }
    let mut facts = decision.facts.clone();
    let epoch = memory.topology.as_ref().map_or(0, |t| t.epoch);
    if let Err(failure) = &written {
        let cause = std::error::Error::source(failure).map(ToString::to_string).unwrap_or_default();
        facts.waiting = Some(format!("{failure}: {cause}"));
    }
    let status = status::build(swarm, &desired, &decision, &facts, epoch, &context.config);
    let before = swarm.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
    happenings.extend(changes(&before, &status.conditions));
    if swarm.status.as_ref() != Some(&status) {
        status::write(&context.client, key, &status).await?;
    }
    publish(swarm, context, &happenings).await;
    measure(key, context, facts.peers_ready, epoch, &happenings);
    written?;
    let pause = if facts.is_whole() && memory.suspects.is_empty() { SETTLED } else { UNSETTLED };
    // Spread, so that a thousand swarms do not move in step.
    Ok(Action::requeue(pause - pause / 4 * u32::try_from(random() % 1000).unwrap_or(0) / 1000))
}

/// Reads back what an earlier leader left: the authority and the topology. Makes the authority if there is none.
async fn restore(owner: &Owner, context: &Context, memory: &mut Memory) -> Result<(), Error> {
    if memory.trust.is_none() {
        let found = context.applier.secret(&owner.namespace, &owner.authority()).await?;
        let authority = match found {
            Some(secret) => Authority::load(owner, &secret.data.unwrap_or_default())?,
            None => {
                let ours = Authority::generate(owner)?;
                let there = context.applier.create_or_get(&ours.secret(owner)).await?;
                Authority::load(owner, &there.data.unwrap_or_default())?
            }
        };
        let leaf = authority.issue(&operator_names(owner))?;
        let identity = Arc::new(Identity {
            authority: authority.certificate().to_owned(),
            certificate: leaf.certificate,
            key: leaf.key,
        });
        memory.trust = Some(Trust { authority, identity });
    }
    if memory.published.is_none() {
        match context.applier.config_map(&owner.namespace, &owner.topology()).await {
            Ok(map) => {
                let found = map.as_ref().and_then(topology::read);
                memory.topology = topology::reconciled(memory.topology.take(), found);
                let version = map.and_then(|map| map.metadata.resource_version);
                memory.published = Some(version.map_or(Published::Nothing, Published::Version));
                memory.restored.get_or_insert_with(Instant::now);
            }
            // Workers are still told what we know; nothing is published before it has been read.
            Err(failure) if memory.restored.is_some() => warn!(%failure, "the published topology"),
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// Everybody worth talking to.
fn targets(owner: &Owner, view: &SwarmView, identity: &Arc<Identity>) -> Vec<Target> {
    let target = |name: &str, ip: &str, role, server_name: String| Target {
        name: name.to_owned(),
        role,
        addr: address(ip, GRPC_PORT),
        server_name,
        identity: Arc::clone(identity),
    };
    let asked = |w: &&WorkerView| matches!(w.phase, Phase::Running | Phase::Draining(_)) || w.node_gone;
    let stages = view.workers.values().filter(asked);
    let stages = stages.filter_map(|w| {
        let name = certificates::stage_names(owner, &w.name).pop()?;
        Some(target(&w.name, w.ip.as_deref()?, Role::Stage, name))
    });
    let gateways = view.gateways.values().filter(|g| g.running).filter_map(|g| {
        let name = certificates::gateway_names(owner).pop()?;
        Some(target(&g.name, g.ip.as_deref()?, Role::Gateway, name))
    });
    stages.chain(gateways).collect()
}

/// `ip:port`, with brackets around IPv6.
#[must_use]
pub fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// Hands everybody the current topology; the monitor repeats it until it is acknowledged.
fn give_orders(key: &Trigger, view: &SwarmView, memory: &Memory, context: &Context) -> Result<(), Error> {
    let Some(topology) = &memory.topology else { return Ok(()) };
    let json =
        serde_json::to_string(topology).map_err(|source| Error::Json { what: "the topology", source })?;
    let order = |drain| Order { epoch: topology.epoch, topology: json.as_str().into(), drain };
    for worker in view.workers.values() {
        // SIGTERM tells a pod that is being deleted; only a reclaim that Kubernetes does not carry out needs a word from us.
        let drain = matches!(worker.phase, Phase::Draining(_)) && !worker.deleting;
        context.monitor.order(key, &worker.name, order(drain));
    }
    for gateway in view.gateways.keys() {
        context.monitor.order(key, gateway, order(false));
    }
    Ok(())
}

/// Events are for people: one that cannot be written must not hold up a replacement.
async fn publish(swarm: &InferenceSwarm, context: &Context, happenings: &[Happening]) {
    let namespace = swarm.namespace().unwrap_or_default();
    for happening in happenings {
        info!(reason = happening.reason, note = happening.note, "event");
        let reference = swarm.object_ref(&());
        if let Err(failure) = crate::apply::call(
            "publish an Event".into(),
            context.recorder.publish(&happening.event(&namespace), &reference),
        )
        .await
        {
            error!(%failure, "an Event was not written");
        }
    }
}

fn measure(key: &Trigger, context: &Context, ready: u32, epoch: u64, happenings: &[Happening]) {
    let labels = SwarmLabels { namespace: key.0.clone(), swarm: key.1.clone() };
    let count =
        |reasons: &[&str]| happenings.iter().filter(|h| reasons.contains(&h.reason.as_str())).count() as u64;
    context.metrics.peers_lost.get_or_create(&labels).inc_by(count(&["PeerLost"]));
    context.metrics.peers_created.get_or_create(&labels).inc_by(count(&["PeerCreated", "PeerReplaced"]));
    context.metrics.peers_ready.get_or_create(&labels).set(i64::from(ready));
    context.metrics.epoch.get_or_create(&labels).set(i64::try_from(epoch).unwrap_or(i64::MAX));
}
