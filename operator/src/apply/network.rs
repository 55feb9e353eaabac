//! Who may talk to whom: default deny for everything of the swarm, then exactly what it needs. What a swarm reads from a URL may be anywhere.

use serde_json::{Value, json};

use crate::key::Kind;
use crate::labels::{KIND, Owner, ROLE_CONDUCTOR, ROLE_GATEWAY, ROLE_PEER, ROLE_STAGE, ROLE_TRAINER, SWARM};

pub use dunlin_crds::names::{GRPC_PORT, HEALTH_PORT, HTTP_PORT};

/// Ports under which pods find names: that of DNS, and that of the pods which answer it on OpenShift.
const DNS_PORTS: [u16; 2] = [53, 5353];

/// What the pods of a swarm may reach.
#[derive(Clone, Copy, Debug)]
pub enum Reach<'a> {
    /// Everything: other policies of the cluster may say otherwise.
    Everything,
    /// Each other, and names; these roles everything, because a manifest has a URL that they read from or write to.
    Inside {
        /// Roles.
        but: &'a [&'static str],
    },
}

impl Reach<'_> {
    /// Rules for what pods of `role` of the swarm may reach; `None` when all is allowed.
    fn rules(self, owner: &Owner, role: &str) -> Option<Value> {
        match self {
            Self::Inside { but } if !but.contains(&role) => {
                let dns =
                    DNS_PORTS.map(|port| ["UDP", "TCP"].map(|name| json!({"port": port, "protocol": name})));
                Some(json!([
                    {"to": [members(owner)], "ports": [{"port": GRPC_PORT, "protocol": "TCP"}]},
                    {"ports": dns.concat()},
                ]))
            }
            _ => None,
        }
    }
}

/// All pods of the swarm.
fn members(owner: &Owner) -> Value {
    json!({"podSelector": {"matchLabels": {SWARM: owner.name, KIND: owner.kind.name()}}})
}

/// NetworkPolicies of the swarm. `operator_namespace`: where the operator runs.
#[must_use]
pub fn policies(owner: &Owner, operator_namespace: &str, reach: Reach<'_>) -> Vec<Value> {
    let inside = json!({
        "from": [
            members(owner),
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
    let policy = |role: &str, ingress: Vec<Value>| policy(owner, role, ingress, reach.rules(owner, role));
    match owner.kind {
        Kind::Inference => vec![policy(ROLE_STAGE, worker), policy(ROLE_GATEWAY, front)],
        Kind::Training => vec![
            policy(ROLE_CONDUCTOR, front),
            policy(ROLE_PEER, worker),
            // Trainers call, and are not called.
            policy(ROLE_TRAINER, vec![metrics]),
        ],
    }
}

fn policy(owner: &Owner, role: &str, ingress: Vec<Value>, egress: Option<Value>) -> Value {
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(&format!("{}-{role}", owner.name), role),
        "spec": {
            "podSelector": {"matchLabels": owner.selector(role)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    });
    if let Some(rules) = egress {
        policy["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
        policy["spec"]["egress"] = rules;
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_typed, owner};
    use k8s_openapi::api::networking::v1::NetworkPolicy;

    /// Of each policy: whether clients are let in, and how many kinds of callers reach gRPC, if any.
    fn open(kind: Kind) -> Vec<(bool, Option<usize>)> {
        let policies = policies(&Owner { kind, ..owner() }, "dunlin-system", Reach::Everything);
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

    /// Roles whose pods reach nothing but each other and names.
    fn shut(kind: Kind, reach: Reach<'_>) -> Vec<String> {
        let policies = policies(&Owner { kind, ..owner() }, "dunlin-system", reach);
        let limited = policies.iter().filter(|policy| {
            assert_typed::<NetworkPolicy>(policy);
            let spec = &policy["spec"];
            let limited = spec["policyTypes"].as_array().unwrap().contains(&json!("Egress"));
            assert_eq!(
                limited,
                spec.get("egress").is_some(),
                "without rules nothing would be reached at all"
            );
            if limited {
                let [inside, names] = &spec["egress"].as_array().unwrap()[..] else { panic!("{spec}") };
                assert_eq!(inside["to"], json!([members(&Owner { kind, ..owner() })]));
                assert!(names["ports"].as_array().unwrap().contains(&json!({"port": 53, "protocol": "UDP"})));
            }
            limited
        });
        limited.map(|p| p["metadata"]["labels"][crate::labels::ROLE].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn who_reads_no_url_reaches_nobody_outside() {
        assert_eq!(shut(Kind::Inference, Reach::Inside { but: &[] }), ["stage", "gateway"]);
        assert_eq!(shut(Kind::Inference, Reach::Inside { but: &[ROLE_STAGE, ROLE_GATEWAY] }), [""; 0]);
        assert_eq!(shut(Kind::Training, Reach::Inside { but: &[ROLE_CONDUCTOR] }), ["train-peer", "trainer"]);
        assert_eq!(shut(Kind::Inference, Reach::Everything), [""; 0]);
    }

    #[test]
    fn only_the_front_is_open_to_clients_and_only_insiders_reach_grpc() {
        assert_eq!(open(Kind::Inference), [(false, Some(2)), (true, Some(2))]);
        assert_eq!(open(Kind::Training), [(true, Some(2)), (false, Some(2)), (false, None)]);
    }
}
