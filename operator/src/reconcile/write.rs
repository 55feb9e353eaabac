//! Carries out a decision: the objects of the swarm, new pods, deletions, in the order in which they are needed.

use dunlin_wire::Role;
use tokio::time::Instant;

use super::{Decision, Memory, Published};
use crate::apply::certificates::{gateway_names, is_current, leaf_secret, worker_names};
use crate::apply::gateway::Gateway;
use crate::apply::network::GRPC_PORT;
use crate::apply::pods::{Nodes, WorkerPod, stage_args};
use crate::apply::{network, topology};
use crate::context::Context;
use crate::convert::Desired;
use crate::error::Error;
use crate::labels::{Owner, ROLE_GATEWAY, ROLE_STAGE, leaf, pod_name, random};
use crate::observe::SwarmView;
use crate::status::events::Happening;

/// Everything, most urgent first: replacements before cosmetics.
pub(super) async fn all(
    owner: &Owner,
    desired: &Desired,
    view: &SwarmView,
    decision: &Decision,
    context: &Context,
    memory: &mut Memory,
    happenings: &mut Vec<Happening>,
) -> Result<(), Error> {
    for policy in network::policies(owner, &context.config.namespace) {
        context.applier.ensure(&mut memory.applied, &policy).await?;
    }
    let epoch = memory.topology.as_ref().map_or(0, |t| t.epoch);
    if let Some(current) = &memory.topology {
        let map = topology::config_map(owner, current)
            .map_err(|source| Error::Json { what: "the topology", source })?;
        publish(&map, context, memory).await?;
    }
    for creation in &decision.create {
        let name = pod_name(&owner.name, &creation.pool.name, random());
        let manifest = WorkerPod {
            owner,
            name: &name,
            role: ROLE_STAGE,
            image: &desired.image,
            pool: &creation.pool,
            nodes: Nodes::Own { marked: view.spot_nodes_marked },
            args: stage_args(&creation.pool, &desired.model_args),
            ports: &[("grpc", GRPC_PORT)],
            resources: None,
            mounts: desired.mounts.clone(),
            template: &desired.template,
            epoch: Some(epoch),
        }
        .manifest();
        let Some(trust) = &memory.trust else { return Ok(()) };
        let names = worker_names(owner, &name);
        let (role, created) = ((name.as_str(), ROLE_STAGE, Role::Stage), &mut memory.created);
        trust.create_pod(owner, role, &names, &manifest, &context.applier, created).await?;
        happenings.push(Happening::created("Peer", &name, creation.replaces));
    }
    gateways(owner, desired, context, memory).await?;
    for deletion in &decision.delete {
        context.applier.delete_pod(&owner.namespace, &deletion.name, &deletion.uid, deletion.now).await?;
    }
    Ok(())
}

/// The topology, as the successor of what we know to be published. When that is not what is published, it is read again before anything else
/// is done: another operator may be leading.
async fn publish(map: &serde_json::Value, context: &Context, memory: &mut Memory) -> Result<(), Error> {
    let now = Instant::now();
    if !memory.applied.is_due(map, now) {
        return Ok(());
    }
    let version = match memory.published.take() {
        None => return Err(Error::Unread),
        Some(Published::Nothing) => None,
        Some(Published::Version(version)) => Some(version),
    };
    // Without an answer it may have been written or not: then, too, it must be read.
    let written = context.applier.publish(map, version.as_deref()).await?;
    memory.published = written.map(Published::Version);
    memory.applied.remember(map, now);
    Ok(())
}

/// The gateways' certificate, Service, budget and Deployment.
async fn gateways(
    owner: &Owner,
    desired: &Desired,
    context: &Context,
    memory: &mut Memory,
) -> Result<(), Error> {
    if !memory.gateway_trusted
        && let Some(trust) = &memory.trust
    {
        let name = leaf(&owner.gateway());
        let found = context.applier.secret(&owner.namespace, &name).await?;
        let data = found.and_then(|s| s.data).unwrap_or_default();
        if !is_current(&data, &trust.authority, Role::Gateway) {
            let leaf = trust.issue(Role::Gateway, &gateway_names(owner))?;
            let secret = leaf_secret(owner, &name, ROLE_GATEWAY, &leaf);
            context.applier.apply(&secret).await?;
        }
        memory.gateway_trusted = true;
    }
    let gateway = Gateway {
        owner,
        image: &desired.image,
        replicas: desired.gateways,
        model: &desired.model,
        cache_bytes: desired.gateway_cache_bytes,
        resources: &desired.gateway_resources,
        model_args: &desired.model_args,
        mounts: &desired.mounts,
        template: &desired.template,
    };
    for manifest in gateway.manifests() {
        context.applier.ensure(&mut memory.applied, &manifest).await?;
    }
    Ok(())
}
