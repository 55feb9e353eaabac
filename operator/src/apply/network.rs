//! Who may talk to whom: default deny for everything of the swarm, then exactly what it needs.

use serde_json::{Value, json};

use crate::labels::{
    KIND, Kind, Owner, ROLE_CONDUCTOR, ROLE_GATEWAY, ROLE_PEER, ROLE_STAGE, ROLE_TRAINER, SWARM,
};

/// gRPC between workers, and from the operator.
pub const GRPC_PORT: u16 = 7070;
/// Probes and metrics of a worker.
pub const HEALTH_PORT: u16 = 9090;
/// The gateways' OpenAI API.
pub const HTTP_PORT: u16 = 8080;

/// NetworkPolicies of the swarm. `operator_namespace`: where the operator runs.
#[must_use]
pub fn policies(owner: &Owner, operator_namespace: &str) -> Vec<Value> {
    let inside = json!({
        "from": [
            {"podSelector": {"matchLabels": {SWARM: owner.name, KIND: owner.kind.name()}}},
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}},
                "podSelector": {"matchLabels": {
                    "app.kubernetes.io/name": "dunlin",
                    "app.kubernetes.io/component": "operator",
                }},
            },
        ],
        "ports": [{"port": GRPC_PORT, "protocol": "TCP"}],
    });
    let metrics = json!({"ports": [{"port": HEALTH_PORT, "protocol": "TCP"}]});
    let clients = json!({"ports": [{"port": HTTP_PORT, "protocol": "TCP"}]});
    let (worker, front) = (vec![inside.clone(), metrics.clone()], vec![inside, metrics.clone(), clients]);
    match owner.kind {
        Kind::Inference => vec![policy(owner, ROLE_STAGE, worker), policy(owner, ROLE_GATEWAY, front)],
        Kind::Training => vec![
            policy(owner, ROLE_CONDUCTOR, front),
            policy(owner, ROLE_PEER, worker),
            // Trainers call, and are not called.
            policy(owner, ROLE_TRAINER, vec![metrics]),
        ],
    }
}

fn policy(owner: &Owner, role: &str, ingress: Vec<Value>) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(&format!("{}-{role}", owner.name), role),
        "spec": {
            "podSelector": {"matchLabels": owner.selector(role)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_typed, owner};
    use k8s_openapi::api::networking::v1::NetworkPolicy;

    /// Of each policy: whether clients are let in, and how many kinds of callers reach gRPC, if any.
    fn open(kind: Kind) -> Vec<(bool, Option<usize>)> {
        let policies = policies(&Owner { kind, ..owner() }, "dunlin-system");
        let told = policies.iter().map(|policy| {
            assert_typed::<NetworkPolicy>(policy);
            let rule = |port: u16| {
                let rules = policy["spec"]["ingress"].as_array().unwrap();
                rules.iter().find(|r| r["ports"][0]["port"] == port)
            };
            assert!(rule(HEALTH_PORT).is_some());
            let grpc = rule(GRPC_PORT).map(|r| r["from"].as_array().unwrap().len());
            (rule(HTTP_PORT).is_some(), grpc)
        });
        told.collect()
    }

    #[test]
    fn only_the_front_is_open_to_clients_and_only_insiders_reach_grpc() {
        assert_eq!(open(Kind::Inference), [(false, Some(2)), (true, Some(2))]);
        assert_eq!(open(Kind::Training), [(true, Some(2)), (false, Some(2)), (false, None)]);
    }
}
