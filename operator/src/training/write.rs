//! The objects of a run, beside its pods: where they find the conductor, what they read, and who may evict and reach whom.

use dunlin_crds::TrainingSwarm;
use dunlin_wire::Role;
use serde_json::{Value, json};

use super::desired::TrainingDesired;
use super::lifecycle::Lifecycle;
use super::run::RUN_FILE;
use crate::apply::budget::{Guarantee, budget};
use crate::apply::network::{self, GRPC_PORT, HTTP_PORT};
use crate::apply::pods::PoolTemplate;
use crate::error::Error;
use crate::labels::{Owner, ROLE_CONDUCTOR, ROLE_PEER};
use crate::peers::WorkerOrder;
use crate::swarm::contract::ResourcesOf;
use crate::swarm::{Pass, Writer};

impl Writer for TrainingSwarm {
    /// Peers of which the node has notice hand over, and the conductor stops when the run is to.
    fn orders(
        pass: &Pass<'_, Self>,
        _resources: &ResourcesOf<Self>,
    ) -> Result<Vec<(String, WorkerOrder)>, Error> {
        let suspend = pass.decision.plan == Lifecycle::Wait;
        let peers = pass.view.workers.values();
        let peers =
            peers.map(|w| (w.name.clone(), WorkerOrder { drain: w.needs_drain(), ..WorkerOrder::default() }));
        let conductors = pass.view.conductors.keys();
        let conductors =
            conductors.map(|name| (name.clone(), WorkerOrder { suspend, ..WorkerOrder::default() }));
        Ok(peers.chain(conductors).collect())
    }

    /// The configuration is written only while no pod reads another one.
    fn objects(pass: &Pass<'_, Self>) -> Vec<Value> {
        let (owner, desired, config) = (pass.owner, pass.desired, &pass.context.config);
        let mut objects = network::policies(owner, &config.namespace, config.reach(&desired.outside));
        objects.extend([service(owner), disruption_budget(owner, desired)]);
        if pass.decision.plan == Lifecycle::Train {
            objects.push(config_map(owner, &desired.config));
        }
        objects
    }

    fn pod(pass: &Pass<'_, Self>, role: Role, pool: &PoolTemplate, name: &str) -> Value {
        pass.desired.pod(role, pass.owner, name, pool, pass.view.spot_nodes_marked).manifest()
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
fn disruption_budget(owner: &Owner, desired: &TrainingDesired) -> Value {
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
        let desired = TrainingDesired::new(&swarm, &config());
        let budget = disruption_budget(&owner(), &desired);
        assert_typed::<PodDisruptionBudget>(&budget);
        assert_eq!(budget["spec"]["minAvailable"], 2);
        swarm.spec.pools[0].peers.min = 2;
        let tight = disruption_budget(&owner(), &TrainingDesired::new(&swarm, &config()));
        assert_eq!(tight["spec"]["minAvailable"], 1);
        let map = config_map(&owner(), &desired.config);
        assert_typed::<ConfigMap>(&map);
        let text = map["data"]["training.json"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), desired.config);
    }
}
