//! Who may talk to whom: default deny for everything of the swarm, then exactly what it needs.

use serde_json::{Value, json};

use crate::labels::{Owner, ROLE_GATEWAY, ROLE_STAGE, SWARM};

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
            {"podSelector": {"matchLabels": {SWARM: owner.name}}},
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
    vec![
        policy(owner, ROLE_STAGE, vec![inside.clone(), metrics.clone()]),
        policy(owner, ROLE_GATEWAY, vec![inside, metrics, clients]),
    ]
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

    #[test]
    fn only_gateways_are_open_to_clients_and_only_insiders_reach_grpc() {
        let policies = policies(&owner(), "dunlin-system");
        for policy in &policies {
            assert_typed::<NetworkPolicy>(policy);
            let rules = policy["spec"]["ingress"].as_array().unwrap();
            let grpc = rules.iter().find(|r| r["ports"][0]["port"] == GRPC_PORT).unwrap();
            assert_eq!(grpc["from"].as_array().map(Vec::len), Some(2));
        }
        let open: Vec<bool> = policies
            .iter()
            .map(|p| {
                p["spec"]["ingress"].as_array().unwrap().iter().any(|r| r["ports"][0]["port"] == HTTP_PORT)
            })
            .collect();
        assert_eq!(open, [false, true]);
    }
}
