//! One swarm, once: observe, plan, apply, report. Every step may be cut off at any moment and repeated.
//!
//! * [`desired`] the manifest in numbers · [`memory`] what is remembered
//! * [`decide`](mod@decide) the layout, and which pods stay, go and are missing · [`facts`], [`status`] what is told about it
//! * [`write`] the objects

mod decide;
pub mod desired;
mod facts;
pub mod memory;
mod status;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;
use std::time::Duration;

use dunlin_crds::{InferenceSwarm, InferenceSwarmStatus};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;
use tracing::{instrument, warn};

use crate::apply::topology;
use crate::context::Context;
use crate::error::Error;
use crate::key::{Kind, SwarmKey};
use crate::labels::{Owner, leaf, random};
use crate::metrics::SwarmLabels;
use crate::observe::{Phase, SwarmView};
use crate::peers::Order;
use crate::status::conditions::unreached;
use crate::status::events::{SERVING, changes};
use crate::targets::targets;
use crate::trust::{LOOK, Trust};
use decide::{Decision, decide};
use desired::Desired;
use memory::{Memory, Published};

/// A settled swarm is looked at again after this long, without any trigger.
const SETTLED: Duration = Duration::from_secs(60);
/// An unsettled one after this long.
const UNSETTLED: Duration = Duration::from_secs(5);
/// Pause while peers of an earlier operator have not been heard yet; each answer ends it.
const UNHEARD: Duration = Duration::from_secs(1);

/// Brings one swarm closer to what its manifest asks for.
///
/// # Errors
/// What kept it from doing so; [`retry`] says when to try again.
#[instrument(skip_all, fields(namespace = swarm.namespace(), swarm = swarm.name_any()))]
pub async fn reconcile(swarm: Arc<InferenceSwarm>, context: Arc<Context>) -> Result<Action, Error> {
    let started = Instant::now();
    let key = key(&swarm);
    if swarm.metadata.deletion_timestamp.is_some() {
        // Owner references delete the children; making new ones would only get in the way.
        context.forget(&key);
        return Ok(Action::await_change());
    }
    let memory = context.serving.of(&key, &swarm.uid().unwrap_or_default());
    let mut memory = memory.lock().await;
    let result = pass(&swarm, &key, &context, &mut memory).await;
    memory.failures = if result.is_ok() { 0 } else { memory.failures.saturating_add(1) };
    context.metrics.reconciled(started.elapsed(), result.as_ref().err().map(Error::category));
    result
}

/// When to try again after an error.
#[must_use]
pub fn retry(swarm: Arc<InferenceSwarm>, failure: &Error, context: Arc<Context>) -> Action {
    let key = key(&swarm);
    let attempt = context
        .serving
        .of(&key, &swarm.uid().unwrap_or_default())
        .try_lock()
        .map_or(1, |memory| memory.failures);
    context.retry(&key, failure, attempt)
}

fn key(swarm: &InferenceSwarm) -> SwarmKey {
    let (namespace, name) = (swarm.namespace().unwrap_or_default(), swarm.name_any());
    SwarmKey { kind: Kind::Inference, namespace, name }
}

async fn pass(
    swarm: &InferenceSwarm,
    key: &SwarmKey,
    context: &Context,
    memory: &mut Memory,
) -> Result<Action, Error> {
    let owner = Owner::new(key, swarm, &context.config.inherited_labels);
    let generation = swarm.metadata.generation.unwrap_or_default();
    let desired = Desired::new(swarm, &context.config);
    let mut before = swarm.status.clone().unwrap_or_default();
    if before.conditions.is_empty() {
        // Before anything can fail: without conditions the swarm would count as settled.
        before = status::first(swarm, &desired, &context.config);
        crate::status::write::<InferenceSwarm>(&context.client, key, &before).await?;
    }
    let (view, decision) = match look(swarm, key, &owner, &desired, context, memory).await {
        Ok(seen) => seen,
        Err(failure) => {
            if let Some(conditions) = unreached(&before.conditions, generation, &failure) {
                let status = InferenceSwarmStatus {
                    observed_generation: Some(generation),
                    conditions,
                    ..before.clone()
                };
                if before != status {
                    crate::status::write::<InferenceSwarm>(&context.client, key, &status).await?;
                }
            }
            return Err(failure);
        }
    };

    // Apply, and report even when that failed: the status then says what is in the way.
    let mut events = decision.events.clone();
    let written = write::all(&owner, &desired, &view, &decision, context, memory, &mut events).await;
    // Whatever could not be written, workers that can be reached are told; not when another operator has published meanwhile.
    if !written.as_ref().is_err_and(|failure| failure.category() == "conflict") {
        give_orders(key, &view, memory, context)?;
    }
    if decision.unheard > 0 {
        // A new leader does not say of a swarm that serves that it does not: it looks again when everybody has answered, or has had the time.
        context.publish(&swarm.object_ref(&()), &events).await;
        written?;
        return Ok(Action::requeue(UNHEARD));
    }
    let mut facts = decision.facts.clone();
    let epoch = memory.topology.as_ref().map_or(0, |t| t.epoch);
    // A conflict is over with the next pass.
    if let Err(failure) = written.as_ref()
        && failure.category() != "conflict"
    {
        facts.waiting = Some(failure.sentence());
        facts.trouble = facts.trouble.or(failure.trouble());
    }
    let status = status::build(swarm, &before, &desired, &decision, &facts, epoch, &context.config);
    events.extend(changes(&before.conditions, &status.conditions, SERVING));
    if before != status {
        crate::status::write::<InferenceSwarm>(&context.client, key, &status).await?;
    }
    context.publish(&swarm.object_ref(&()), &events).await;
    context.measure(key, facts.peers_ready, &events);
    context.metrics.epoch.get_or_create(&SwarmLabels::of(key)).set(i64::try_from(epoch).unwrap_or(i64::MAX));
    // What rests has been told and counted when it was tried.
    written.or_else(|failure| if failure.is_held() { Ok(()) } else { Err(failure) })?;
    let pause = if facts.is_whole() && memory.suspects.is_empty() { SETTLED } else { UNSETTLED };
    // Spread, so that a thousand swarms do not move in step.
    Ok(Action::requeue(pause - pause / 4 * u32::try_from(random() % 1000).unwrap_or(0) / 1000))
}

/// Observes and plans.
async fn look(
    swarm: &InferenceSwarm,
    key: &SwarmKey,
    owner: &Owner,
    desired: &Desired,
    context: &Context,
    memory: &mut Memory,
) -> Result<(SwarmView, Decision), Error> {
    let trust = restore(key, owner, context, memory).await?;
    let identity = Arc::clone(&trust.identity);
    let unseen = memory.making.unseen(&context.caches, key, Instant::now());
    let mut view = context.caches.view(key, &owner.uid, &unseen);
    let gateways = ("Deployment".to_owned(), owner.gateway());
    view.gateways_refused = context.caches.children(key).failure(&gateways).map(str::to_owned);
    context.monitor.follow(key, targets(owner, &view, &identity));
    let answers = context.monitor.answers(key);
    let generation = swarm.metadata.generation.unwrap_or_default();
    let silence = context.config.silence_max();
    let decision =
        decide(desired, generation, &view, &answers, memory, Instant::now(), silence).map_err(Error::Plan)?;
    if let Some(layout) = &decision.layout {
        memory.topology = Some(layout.topology.clone());
    }
    Ok((view, decision))
}

/// Forgets what somebody else has touched, and reads back what an earlier leader left: the authority and the topology. Makes the authority if
/// there is none.
async fn restore(
    key: &SwarmKey,
    owner: &Owner,
    context: &Context,
    memory: &mut Memory,
) -> Result<Trust, Error> {
    let touched = memory.applied.forget_touched(&context.caches.children(key), Instant::now());
    let is_touched = |kind: &str, name: String| touched.contains(&(kind.to_owned(), name));
    if is_touched("ConfigMap", owner.topology()) {
        memory.published = None;
    }
    let gateway_touched = is_touched("Secret", leaf(&owner.gateway()));
    memory.gateway_trusted =
        memory.gateway_trusted.filter(|looked| !gateway_touched && looked.elapsed() < LOOK);
    memory.kept &= !is_touched("Secret", owner.authority());
    let mut trust = match &memory.trust {
        Some(trust) if memory.kept => trust.clone(),
        Some(trust) => {
            trust.keep(owner, &context.applier, &mut memory.applied).await?;
            trust.clone()
        }
        None => Trust::restore(owner, &context.applier, &mut memory.applied).await?,
    };
    memory.kept = true;
    trust.renew_own(owner)?;
    memory.trust = Some(trust.clone());
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
    Ok(trust)
}

/// Hands everybody the current topology; the monitor repeats it until it is acknowledged.
fn give_orders(key: &SwarmKey, view: &SwarmView, memory: &Memory, context: &Context) -> Result<(), Error> {
    let Some(topology) = &memory.topology else { return Ok(()) };
    let epoch = topology.epoch;
    let json = serde_json::to_string(topology).map_err(|source| Error::json("the topology", source))?;
    let topology: Arc<str> = json.as_str().into();
    let order = |drain| Order { topology: Some((epoch, Arc::clone(&topology))), drain, suspend: false };
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
