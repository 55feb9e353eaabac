//! Carries out a decision about a run: its objects, new pods, deletions, in the order in which they are needed.

use dunlin_wire::Role;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::decide::Decision;
use super::desired::Desired;
use super::memory::Memory;
use super::post::Post;
use super::run::RUN_FILE;
use crate::apply::budget::{Guarantee, budget};
use crate::apply::certificates::{conductor_names, worker_names};
use crate::apply::network::{self, GRPC_PORT, HTTP_PORT};
use crate::context::Context;
use crate::error::Error;
use crate::labels::{Owner, ROLE_CONDUCTOR, ROLE_PEER, ROLE_TRAINER};
use crate::making::{Maker, Papers, Refusals, delete};
use crate::observe::SwarmView;
use crate::status::events::SwarmEvent;

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
    let mut objects =
        network::policies(owner, &context.config.namespace, context.config.reach(&desired.outside));
    objects.extend([service(owner), disruption_budget(owner, desired)]);
    if decision.configure {
        objects.push(config_map(owner, &desired.config));
    }
    for object in objects {
        refusals.pass(context.applier.ensure(&mut memory.applied, &object).await)?;
    }
    if let Some(trust) = &memory.trust {
        let mut maker = Maker {
            owner,
            generation: decision.facts.generation,
            trust,
            applier: &context.applier,
            making: &mut memory.making,
            holds: &mut memory.applied.holds,
        };
        crew(&mut maker, desired, view, decision, &mut refusals, events).await?;
    }
    for deletions in [&view.strays, &decision.delete] {
        delete(&context.applier, owner, deletions, &mut refusals).await?;
    }
    refusals.end()
}

/// New pods, and certificates of those that wait for theirs.
async fn crew(
    maker: &mut Maker<'_>,
    desired: &Desired,
    view: &SwarmView,
    decision: &Decision,
    refusals: &mut Refusals,
    events: &mut Vec<SwarmEvent>,
) -> Result<(), Error> {
    let (owner, pools) = (maker.owner, desired.templates());
    for (post, creation) in &decision.create {
        let manifest = |name: &str| {
            desired.pod(*post, owner, name, &creation.pool, &pools, view.spot_nodes_marked).manifest()
        };
        let (pool, noun) = (&creation.pool.name, post.noun());
        let went = maker.create(pool, noun, creation.replaces, manifest, events).await;
        if let Some(pod) = refusals.pass(went)? {
            let went = maker.certify(&pod.name_any(), &pod.uid().unwrap_or_default(), papers(*post)).await;
            refusals.pass(went)?;
        }
    }
    for (post, crew) in
        [(Post::Conductor, &view.conductors), (Post::Peer, &view.workers), (Post::Trainer, &view.trainers)]
    {
        for pod in crew.values() {
            refusals.pass(maker.certify_if_due(pod, papers(post)).await)?;
        }
    }
    Ok(())
}

/// What the certificate of a pod says.
fn papers(post: Post) -> Papers {
    let as_worker = |owner: &Owner, name: &str| worker_names(owner, name).to_vec();
    match post {
        Post::Conductor => Papers { label: ROLE_CONDUCTOR, role: Role::Conductor, names: conductor_names },
        Post::Peer => Papers { label: ROLE_PEER, role: Role::Peer, names: as_worker },
        Post::Trainer => Papers { label: ROLE_TRAINER, role: Role::Trainer, names: as_worker },
    }
}

/// The Service under which pods find the conductor, whichever it is, and people its page.
fn service(owner: &Owner) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(&owner.conductor(), ROLE_CONDUCTOR),
        "spec": {
            "selector": owner.selector(ROLE_CONDUCTOR),
            "ports": [
                {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "protocol": "TCP"},
                {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
            ],
        },
    })
}

/// Drains leave a peer for each stage, but never wait for ever: where there are no more peers than that, one may go.
fn disruption_budget(owner: &Owner, desired: &Desired) -> Value {
    let kept = desired.stages.min(desired.peers().saturating_sub(1));
    budget(owner, &format!("{}-{ROLE_PEER}", owner.name), ROLE_PEER, Guarantee::Available(kept))
}

fn config_map(owner: &Owner, config: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owner.metadata(&owner.training(), ""),
        "data": {RUN_FILE: config.to_string()},
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Service};
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;

    use super::*;
    use crate::key::Kind;
    use crate::testing::{assert_typed, config, training_swarm};

    fn owner() -> Owner {
        Owner { kind: Kind::Training, name: "tiny".into(), ..crate::testing::owner() }
    }

    #[test]
    fn objects_are_valid_and_a_drain_never_waits_for_ever() {
        let mut swarm = training_swarm(1);
        assert_typed::<Service>(&service(&owner()));
        let desired = Desired::new(&swarm, &config());
        let budget = disruption_budget(&owner(), &desired);
        assert_typed::<PodDisruptionBudget>(&budget);
        assert_eq!(budget["spec"]["minAvailable"], 2);
        swarm.spec.pools[0].peers.min = 2;
        let tight = disruption_budget(&owner(), &Desired::new(&swarm, &config()));
        assert_eq!(tight["spec"]["minAvailable"], 1);
        let map = config_map(&owner(), &desired.config);
        assert_typed::<ConfigMap>(&map);
        let text = map["data"]["training.json"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), desired.config);
    }
}
