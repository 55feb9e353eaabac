//! The objects of a swarm that serves, beside its stages: the published topology, the gateways, and who may evict and reach whom.

use std::sync::Arc;

use dunlin_crds::InferenceSwarm;
use dunlin_wire::Role;
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use super::state::{Published, ServingResources};
use crate::apply::budget::{Guarantee, budget, stages_kept};
use crate::apply::certificates::{files, is_current, leaf_secret, names};
use crate::apply::holds::HoldKey;
use crate::apply::pods::PoolTemplate;
use crate::apply::{network, topology};
use crate::error::Error;
use crate::labels::{Owner, ROLE_GATEWAY, ROLE_STAGE, leaf};
use crate::making::Refusals;
use crate::metrics::SwarmLabels;
use crate::observe::version;
use crate::peers::WorkerOrder;
use crate::swarm::context::Context;
use crate::swarm::contract::{MemoryOf, ResourcesOf};
use crate::swarm::{Pass, Resources, Writer};
use crate::trust::{LOOK, is_old};

impl Writer for InferenceSwarm {
    async fn recover(
        owner: &Owner,
        context: &Context,
        touched: &[HoldKey],
        memory: &mut MemoryOf<Self>,
    ) -> Result<(), Error> {
        let own = &mut memory.resources.own;
        let is_touched = |kind: &str, name: String| touched.contains(&(kind.to_owned(), name));
        let certificate_touched = is_touched("Secret", leaf(&owner.gateway()));
        own.gateway_trusted =
            own.gateway_trusted.filter(|looked| !certificate_touched && looked.elapsed() < LOOK);
        own.published = own.published.take().filter(|_| !is_touched("ConfigMap", owner.topology()));
        if own.published.is_some() {
            return Ok(());
        }
        match context.applier.config_map(&owner.namespace, &owner.topology()).await {
            Ok(map) => {
                let found = map.as_ref().and_then(topology::read);
                own.given = own.given.take().into_iter().chain(found.clone()).max_by_key(|known| known.epoch);
                memory.state.topology = topology::reconciled(memory.state.topology.take(), found);
                let version = map.and_then(|map| map.metadata.resource_version);
                own.published = Some(version.map_or(Published::Nothing, Published::Version));
                Ok(())
            }
            // Workers are still told what was published; nothing new is before it has been read.
            Err(failure) if memory.since.is_some() => {
                warn!(%failure, "the published topology");
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// The topology, as the successor of what we know to be published. When that is not what is published, it is read again before anything
    /// else is done: another operator may be leading.
    async fn publish(pass: &Pass<'_, Self>, resources: &mut ResourcesOf<Self>) -> Result<(), Error> {
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
        resources.own.given = Some(current.clone());
        Ok(())
    }

    /// Hands everybody the published topology; the monitor repeats it until it is acknowledged.
    fn orders(
        pass: &Pass<'_, Self>,
        resources: &ResourcesOf<Self>,
    ) -> Result<Vec<(String, WorkerOrder)>, Error> {
        let Some(topology) = &resources.own.given else { return Ok(Vec::new()) };
        let json = serde_json::to_string(topology).map_err(|source| Error::json("the topology", source))?;
        let (epoch, json): (_, Arc<str>) = (topology.epoch, json.into());
        let order = |drain| WorkerOrder { topology: Some((epoch, Arc::clone(&json))), drain, suspend: false };
        let workers = pass.view.workers.values().map(|w| (w.name.clone(), order(w.needs_drain())));
        let gateways = pass.view.gateways.keys().map(|name| (name.clone(), order(false)));
        Ok(workers.chain(gateways).collect())
    }

    /// Who may reach whom, and what evictions must leave of the stages.
    fn objects(pass: &Pass<'_, Self>) -> Vec<Value> {
        let (owner, config) = (pass.owner, &pass.context.config);
        let mut objects = network::policies(owner, &config.namespace, config.reach(&pass.desired.outside));
        let (plan, gap) = (pass.state.topology.as_ref(), pass.state.gap.is_some());
        let kept = stages_kept(pass.desired.peers(), plan, gap, pass.decision.facts.peers_ready);
        let name = format!("{}-{ROLE_STAGE}", owner.name);
        objects.push(budget(owner, &name, ROLE_STAGE, Guarantee::Available(kept)));
        objects
    }

    /// The gateways' certificate, Service, budget and Deployment.
    async fn deploy(
        pass: &Pass<'_, Self>,
        resources: &mut ResourcesOf<Self>,
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

    fn pod(pass: &Pass<'_, Self>, _role: Role, pool: &PoolTemplate, name: &str) -> Value {
        // Of what is published: later ones that were told of may be somebody else's yet.
        let epoch = Some(pass.state.topology.as_ref().map_or(0, |topology| topology.epoch));
        let marked = pass.view.spot_nodes_marked;
        pass.desired.stage(pass.owner, name, pool, marked, epoch).manifest()
    }
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
    let names = names(owner, Role::Gateway, "");
    let leaf = match &current {
        None => Some(trust.issue(Role::Gateway, &names)?),
        Some(old) if is_old(old) => Some(trust.renew(old, Role::Gateway, &names)?),
        Some(_) => None,
    };
    let there = match leaf {
        None => Some(version(&found.metadata)),
        // Its content is new each time: what rests is any.
        Some(leaf) => {
            let secret = leaf_secret(owner, &name, ROLE_GATEWAY, &leaf);
            refusals.pass(applier.put(&mut resources.applied, &secret, 0).await)?
        }
    };
    if let Some(version) = there {
        resources.own.gateway_trusted = Some(Instant::now());
        resources.applied.found(("Secret".to_owned(), name), version, Instant::now());
    }
    Ok(())
}
