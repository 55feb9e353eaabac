//! One training run, once: observe, decide, apply, report. Every step may be cut off at any moment and repeated.
//!
//! * [`desired`] the manifest: the [`run`] as workers read it, the [`places`] of what it reads and writes, a pod for each [`post`]
//! * [`memory`] what is remembered
//! * [`decide`] which pods stay, go and are missing; when they may go · [`conditions`], [`status`] what is told about it
//! * [`write`] the objects

mod conditions;
mod decide;
mod desired;
#[cfg(test)]
mod lives;
pub mod memory;
mod places;
mod post;
mod run;
mod status;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;
use std::time::Duration;

use dunlin_crds::{TrainingSwarm, TrainingSwarmStatus};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;
use tracing::instrument;

use crate::context::Context;
use crate::error::Error;
use crate::key::{Kind, SwarmKey};
use crate::labels::{Owner, random};
use crate::observe::{Phase, SwarmView};
use crate::peers::Order;
use crate::status::conditions::unreached;
use crate::targets::targets;
use crate::trust::{Trust, authority_key};
use decide::{Decision, Known, Lifecycle, decide};
use desired::Desired;
use memory::Memory;

/// A run with pods is looked at again after this long: its step and loss are written this often.
const PROGRESS: Duration = Duration::from_secs(2);
/// One without pods after this long.
const SETTLED: Duration = Duration::from_secs(60);

/// Brings one run closer to what its manifest asks for.
///
/// # Errors
/// What kept it from doing so; [`retry`] says when to try again.
#[instrument(skip_all, fields(namespace = swarm.namespace(), swarm = swarm.name_any()))]
pub async fn reconcile(swarm: Arc<TrainingSwarm>, context: Arc<Context>) -> Result<Action, Error> {
    let started = Instant::now();
    let key = key(&swarm);
    if swarm.metadata.deletion_timestamp.is_some() {
        // Owner references delete the children. Checkpoints are on a claim that is not ours.
        context.forget(&key);
        return Ok(Action::await_change());
    }
    let memory = context.training.of(&key, &swarm.uid().unwrap_or_default());
    let mut memory = memory.lock().await;
    let result = pass(&swarm, &key, &context, &mut memory).await;
    memory.failures = if result.is_ok() { 0 } else { memory.failures.saturating_add(1) };
    context.metrics.reconciled(started.elapsed(), result.as_ref().err().map(Error::category));
    result
}

/// When to try again after an error.
#[must_use]
pub fn retry(swarm: Arc<TrainingSwarm>, failure: &Error, context: Arc<Context>) -> Action {
    let key = key(&swarm);
    let attempt = context
        .training
        .of(&key, &swarm.uid().unwrap_or_default())
        .try_lock()
        .map_or(1, |memory| memory.failures);
    context.retry(&key, failure, attempt)
}

fn key(swarm: &TrainingSwarm) -> SwarmKey {
    let (namespace, name) = (swarm.namespace().unwrap_or_default(), swarm.name_any());
    SwarmKey { kind: Kind::Training, namespace, name }
}

async fn pass(
    swarm: &TrainingSwarm,
    key: &SwarmKey,
    context: &Context,
    memory: &mut Memory,
) -> Result<Action, Error> {
    let owner = Owner::new(key, swarm, &context.config.inherited_labels);
    let generation = swarm.metadata.generation.unwrap_or_default();
    let desired = Desired::new(swarm, &context.config);
    memory.restore(swarm);
    let mut before = swarm.status.clone().unwrap_or_default();
    if before.conditions.is_empty() {
        // Before anything can fail: without conditions the swarm would count as settled.
        before = status::first(swarm, &desired, &context.config);
        crate::status::write::<TrainingSwarm>(&context.client, key, &before).await?;
    }
    let touched = memory.applied.forget_touched(&context.caches.children(key), Instant::now());
    memory.kept &= !touched.contains(&authority_key(&owner));
    let trust = match &memory.trust {
        Some(trust) if memory.kept => Ok(trust.clone()),
        Some(trust) => {
            trust.keep(&owner, &context.applier, &mut memory.applied).await.map(|()| trust.clone())
        }
        None => Trust::restore(&owner, &context.applier, &mut memory.applied).await,
    };
    memory.kept = trust.is_ok();
    let trust = trust.and_then(|mut trust| trust.renew_own(&owner).map(|()| trust));
    let trust = match trust {
        Ok(trust) => memory.trust.insert(trust),
        Err(failure) => {
            if let Some(conditions) = unreached(&before.conditions, generation, &failure) {
                let observed_generation = Some(generation);
                let status = TrainingSwarmStatus { observed_generation, conditions, ..before.clone() };
                if before != status {
                    crate::status::write::<TrainingSwarm>(&context.client, key, &status).await?;
                }
            }
            return Err(failure);
        }
    };
    let identity = Arc::clone(&trust.identity);

    // Observe.
    let unseen = memory.making.unseen(&context.caches, key, Instant::now());
    let view = context.caches.view(key, &owner.uid, &unseen);
    context.monitor.follow(key, targets(&owner, &view, &identity));
    let answers = context.monitor.answers(key);

    // Decide.
    let known =
        Known { view: &view, answers: &answers, now: Instant::now(), silence: context.config.silence_max() };
    let decision = decide(&desired, generation, &known, memory);

    // Apply, and report even when that failed: the status then says what is in the way.
    give_orders(key, &view, &decision, context);
    let mut events = decision.events.clone();
    let written = write::all(&owner, &desired, &view, &decision, context, memory, &mut events).await;
    let mut facts = decision.facts.clone();
    if let Err(failure) = &written {
        facts.waiting = Some(failure.sentence());
        facts.trouble = facts.trouble.or(failure.trouble());
    }
    let last = memory.last.as_ref();
    let status = status::build(swarm, &before, last, &facts, decision.ready_by_kind, &context.config);
    events.extend(status::events(&before, &status));
    if before != status {
        crate::status::write::<TrainingSwarm>(&context.client, key, &status).await?;
    }
    context.publish(&swarm.object_ref(&()), &events).await;
    context.measure(key, facts.peers_ready, &events);
    // What rests has been told and counted when it was tried.
    written.or_else(|failure| if failure.is_held() { Ok(()) } else { Err(failure) })?;
    let pause = if decision.lifecycle == Lifecycle::Rest { SETTLED } else { PROGRESS };
    // Spread, so that many swarms do not move in step.
    Ok(Action::requeue(pause - pause / 4 * u32::try_from(random() % 1000).unwrap_or(0) / 1000))
}

/// Tells peers of which the node has notice to hand over, and the conductor when the run is to stop.
fn give_orders(key: &SwarmKey, view: &SwarmView, decision: &Decision, context: &Context) {
    for peer in view.workers.values() {
        // SIGTERM tells a pod that is being deleted; only a reclaim that Kubernetes does not carry out needs a word from us.
        let drain = matches!(peer.phase, Phase::Draining(_)) && !peer.deleting;
        context.monitor.order(key, &peer.name, Order { drain, ..Order::default() });
    }
    for conductor in view.conductors.keys() {
        context.monitor.order(key, conductor, Order { suspend: decision.suspend, ..Order::default() });
    }
}
