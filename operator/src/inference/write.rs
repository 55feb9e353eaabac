//! Carries out a decision: the objects of the swarm, new pods, deletions, in the order in which they are needed.

use dunlin_wire::Role;
use kube::ResourceExt;
use serde_json::Value;
use tokio::time::Instant;

use super::decide::Decision;
use super::desired::Desired;
use super::memory::{Memory, Published};
use crate::apply::budget::{Guarantee, budget, stages_kept};
use crate::apply::certificates::{files, gateway_names, is_current, leaf_secret, worker_names};
use crate::apply::holds::Key;
use crate::apply::{network, topology};
use crate::context::Context;
use crate::error::Error;
use crate::labels::{Owner, ROLE_GATEWAY, ROLE_STAGE, leaf};
use crate::making::{Maker, Papers, Refusals, delete};
use crate::observe::{SwarmView, version};
use crate::status::events::SwarmEvent;
use crate::trust::is_old;

/// Everything, most urgent first. A refusal concerns one object: the others are written all the same.
pub(super) async fn all(
    owner: &Owner,
    desired: &Desired,
    view: &SwarmView,
    decision: &Decision,
    context: &Context,
    memory: &mut Memory,
    events: &mut Vec<SwarmEvent>,
) -> Result<(), Error> {
    let mut refusals = Refusals::default();
    if let Some(current) = &memory.topology {
        let map =
            topology::config_map(owner, current).map_err(|source| Error::json("the topology", source))?;
        // What follows was decided for this plan: nothing is done when it could not be published.
        publish(&map, context, memory).await?;
    }
    for policy in network::policies(owner, &context.config.namespace, context.config.reach(&desired.outside))
    {
        refusals.pass(context.applier.ensure(&mut memory.applied, &policy).await)?;
    }
    let budget = stages_budget(owner, desired, decision, memory);
    refusals.pass(context.applier.ensure(&mut memory.applied, &budget).await)?;
    gateways(owner, desired, context, memory, &mut refusals).await?;
    stages(owner, desired, view, decision, context, memory, &mut refusals, events).await?;
    for deletions in [&view.strays, &decision.delete] {
        delete(&context.applier, owner, deletions, &mut refusals).await?;
    }
    refusals.end()
}

/// What evictions must leave of the stages.
fn stages_budget(owner: &Owner, desired: &Desired, decision: &Decision, memory: &Memory) -> Value {
    let (plan, gap) = (memory.topology.as_ref(), memory.gap.is_some());
    let kept = stages_kept(desired.peers(), plan, gap, decision.facts.peers_ready);
    budget(owner, &format!("{}-{ROLE_STAGE}", owner.name), ROLE_STAGE, Guarantee::Available(kept))
}

/// New stages, and certificates of those that wait for theirs.
#[allow(clippy::too_many_arguments, reason = "what a pass knows")]
async fn stages(
    owner: &Owner,
    desired: &Desired,
    view: &SwarmView,
    decision: &Decision,
    context: &Context,
    memory: &mut Memory,
    refusals: &mut Refusals,
    events: &mut Vec<SwarmEvent>,
) -> Result<(), Error> {
    const PAPERS: Papers = Papers {
        label: ROLE_STAGE,
        role: Role::Stage,
        names: |owner, name| worker_names(owner, name).to_vec(),
    };
    let Some(trust) = &memory.trust else { return Ok(()) };
    let epoch = memory.topology.as_ref().map_or(0, |t| t.epoch);
    let mut maker = Maker {
        owner,
        generation: decision.facts.generation,
        trust,
        applier: &context.applier,
        making: &mut memory.making,
        holds: &mut memory.applied.holds,
    };
    for creation in &decision.create {
        let manifest = |name: &str| {
            desired.stage(owner, name, &creation.pool, view.spot_nodes_marked, Some(epoch)).manifest()
        };
        let went = maker.create(&creation.pool.name, "Peer", creation.replaces, manifest, events).await;
        if let Some(pod) = refusals.pass(went)? {
            refusals.pass(maker.certify(&pod.name_any(), &pod.uid().unwrap_or_default(), PAPERS).await)?;
        }
    }
    for pod in view.workers.values() {
        refusals.pass(maker.certify_if_due(pod, PAPERS).await)?;
    }
    Ok(())
}

/// The topology, as the successor of what we know to be published. When that is not what is published, it is read again before anything else
/// is done: another operator may be leading.
async fn publish(map: &Value, context: &Context, memory: &mut Memory) -> Result<(), Error> {
    let now = Instant::now();
    if !memory.applied.is_due(map, now) {
        return Ok(());
    }
    let replaced = match memory.published.take() {
        None => return Err(Error::Unread),
        Some(Published::Nothing) => None,
        Some(Published::Version(version)) => Some(version),
    };
    // Without an answer it may have been written or not: then, too, it must be read.
    let written = context.applier.publish(map, replaced.as_deref()).await?;
    memory.applied.remember(map, version(&written), now);
    memory.published = written.resource_version.map(Published::Version);
    Ok(())
}

/// Writes a Secret whose content is new each time; the version that it becomes.
async fn put(secret: &Value, key: &Key, context: &Context, memory: &mut Memory) -> Result<String, Error> {
    memory.applied.holds.check(key, 0, Instant::now())?;
    let went = context.applier.apply(secret).await;
    let made = memory.applied.holds.note(key.clone(), 0, went, Instant::now())?;
    Ok(version(&made.metadata))
}

/// The gateways' certificate, Service, budget and Deployment.
async fn gateways(
    owner: &Owner,
    desired: &Desired,
    context: &Context,
    memory: &mut Memory,
    refusals: &mut Refusals,
) -> Result<(), Error> {
    if memory.gateway_trusted.is_none()
        && let Some(trust) = &memory.trust
    {
        let name = leaf(&owner.gateway());
        let found = context.applier.secret(&owner.namespace, &name).await?.unwrap_or_default();
        let (meta, data) = (found.metadata, found.data.unwrap_or_default());
        let key = ("Secret".to_owned(), name.clone());
        let current = files(&data).filter(|_| is_current(&data, &trust.authority, Role::Gateway));
        let leaf = match &current {
            None => Some(trust.issue(Role::Gateway, &gateway_names(owner))?),
            Some(old) if is_old(old) => Some(trust.renew(old, Role::Gateway, &gateway_names(owner))?),
            Some(_) => None,
        };
        if let Some(leaf) = leaf {
            let secret = leaf_secret(owner, &name, ROLE_GATEWAY, &leaf);
            if let Some(made) = refusals.pass(put(&secret, &key, context, memory).await)? {
                memory.gateway_trusted = Some(Instant::now());
                memory.applied.found(key, made, Instant::now());
            }
        } else {
            memory.gateway_trusted = Some(Instant::now());
            memory.applied.found(key, version(&meta), Instant::now());
        }
    }
    for manifest in desired.gateway(owner).manifests() {
        refusals.pass(context.applier.ensure(&mut memory.applied, &manifest).await)?;
    }
    Ok(())
}
