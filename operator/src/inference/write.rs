//! The objects of a swarm that serves, beside its stages: the published topology, the gateways, and who may evict and reach whom.

use dunlin_crds::InferenceSwarm;
use dunlin_wire::Role;
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use super::state::{Published, ServingResources, ServingState};
use crate::apply::budget::{Guarantee, budget, stages_kept};
use crate::apply::certificates::{files, gateway_names, is_current, leaf_secret};
use crate::apply::holds::Key;
use crate::apply::{network, topology};
use crate::error::Error;
use crate::labels::{Owner, ROLE_GATEWAY, ROLE_STAGE, leaf};
use crate::making::Refusals;
use crate::metrics::SwarmLabels;
use crate::observe::version;
use crate::swarm::context::Context;
use crate::swarm::memory::Memory;
use crate::swarm::{Pass, Resources};
use crate::trust::{LOOK, is_old};

/// Forgets what somebody else has touched, and certificates that were looked at long ago.
pub(super) fn touched(own: &mut ServingResources, owner: &Owner, touched: &[Key]) {
    let is_touched = |kind: &str, name: String| touched.contains(&(kind.to_owned(), name));
    if is_touched("ConfigMap", owner.topology()) {
        own.published = None;
    }
    let certificate_touched = is_touched("Secret", leaf(&owner.gateway()));
    own.gateway_trusted =
        own.gateway_trusted.filter(|looked| !certificate_touched && looked.elapsed() < LOOK);
}

/// Reads the published topology when we do not know that it is ours.
pub(super) async fn recover(
    owner: &Owner,
    context: &Context,
    memory: &mut Memory<ServingState, ServingResources>,
) -> Result<(), Error> {
    if memory.resources.own.published.is_some() {
        return Ok(());
    }
    match context.applier.config_map(&owner.namespace, &owner.topology()).await {
        Ok(map) => {
            let found = map.as_ref().and_then(topology::read);
            memory.state.topology = topology::reconciled(memory.state.topology.take(), found);
            let version = map.and_then(|map| map.metadata.resource_version);
            memory.resources.own.published = Some(version.map_or(Published::Nothing, Published::Version));
            Ok(())
        }
        // Workers are still told what we know; nothing is published before it has been read.
        Err(failure) if memory.since.is_some() => {
            warn!(%failure, "the published topology");
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// The topology, as the successor of what we know to be published. When that is not what is published, it is read again before anything else
/// is done: another operator may be leading.
pub(super) async fn publish(
    pass: &Pass<'_, InferenceSwarm>,
    resources: &mut Resources<ServingResources>,
) -> Result<(), Error> {
    let (metrics, key) = (&pass.context.metrics, pass.owner.key());
    let epoch = i64::try_from(pass.state.epoch()).unwrap_or(i64::MAX);
    metrics.epoch.get_or_create(&SwarmLabels::of(&key)).set(epoch);
    let Some(current) = &pass.state.topology else { return Ok(()) };
    let map = topology::config_map(pass.owner, current).map_err(|e| Error::json("the topology", e))?;
    let now = Instant::now();
    if !resources.applied.is_due(&map, now) {
        return Ok(());
    }
    let replaced = match resources.own.published.take() {
        None => return Err(Error::Unread),
        Some(Published::Nothing) => None,
        Some(Published::Version(version)) => Some(version),
    };
    // Without an answer it may have been written or not: then, too, it must be read.
    let written = pass.context.applier.publish(&map, replaced.as_deref()).await?;
    resources.applied.remember(&map, version(&written), now);
    resources.own.published = written.resource_version.map(Published::Version);
    Ok(())
}

/// Who may reach whom, and what evictions must leave of the stages.
pub(super) fn objects(pass: &Pass<'_, InferenceSwarm>) -> Vec<Value> {
    let (owner, config) = (pass.owner, &pass.context.config);
    let mut objects = network::policies(owner, &config.namespace, config.reach(&pass.desired.outside));
    let (plan, gap) = (pass.state.topology.as_ref(), pass.state.gap.is_some());
    let kept = stages_kept(pass.desired.peers(), plan, gap, pass.decision.facts.peers_ready);
    let name = format!("{}-{ROLE_STAGE}", owner.name);
    objects.push(budget(owner, &name, ROLE_STAGE, Guarantee::Available(kept)));
    objects
}

/// The gateways' certificate, Service, budget and Deployment.
pub(super) async fn gateways(
    pass: &Pass<'_, InferenceSwarm>,
    resources: &mut Resources<ServingResources>,
    refusals: &mut Refusals,
) -> Result<(), Error> {
    if resources.own.gateway_trusted.is_none() {
        certify(pass, resources, refusals).await?;
    }
    for manifest in pass.desired.gateway(pass.owner).manifests() {
        refusals.pass(pass.context.applier.ensure(&mut resources.applied, &manifest).await)?;
    }
    Ok(())
}

/// Looks at the certificate that all gateways share, and makes or renews it when it is none or old.
async fn certify(
    pass: &Pass<'_, InferenceSwarm>,
    resources: &mut Resources<ServingResources>,
    refusals: &mut Refusals,
) -> Result<(), Error> {
    let Some(trust) = resources.trust.clone() else { return Ok(()) };
    let (owner, applier) = (pass.owner, &pass.context.applier);
    let name = leaf(&owner.gateway());
    let found = applier.secret(&owner.namespace, &name).await?.unwrap_or_default();
    let data = found.data.unwrap_or_default();
    let current = files(&data).filter(|_| is_current(&data, &trust.authority, Role::Gateway));
    let leaf = match &current {
        None => Some(trust.issue(Role::Gateway, &gateway_names(owner))?),
        Some(old) if is_old(old) => Some(trust.renew(old, Role::Gateway, &gateway_names(owner))?),
        Some(_) => None,
    };
    let key = ("Secret".to_owned(), name.clone());
    let there = match leaf {
        None => Some(version(&found.metadata)),
        Some(leaf) => {
            let secret = leaf_secret(owner, &name, ROLE_GATEWAY, &leaf);
            // Its content is new each time, so it rests by itself.
            let held = resources.applied.holds.check(&key, 0, Instant::now());
            let went = match held {
                Ok(()) => {
                    let went = applier.apply(&secret).await;
                    resources.applied.holds.note(key.clone(), 0, went, Instant::now())
                }
                Err(failure) => Err(failure),
            };
            refusals.pass(went.map(|made| version(&made.metadata)))?
        }
    };
    if let Some(version) = there {
        resources.own.gateway_trusted = Some(Instant::now());
        resources.applied.found(key, version, Instant::now());
    }
    Ok(())
}
