//! How platforms mark preemptible nodes: labels to select by, taints to tolerate.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// (platform, label of a preemptible node, its value)
const MARKERS: &[(&str, &str, &str)] = &[
    ("Karpenter", "karpenter.sh/capacity-type", "spot"),
    ("EKS", "eks.amazonaws.com/capacityType", "SPOT"),
    ("GKE", "cloud.google.com/gke-spot", "true"),
    ("GKE preemptible", "cloud.google.com/gke-preemptible", "true"),
    ("AKS", "kubernetes.azure.com/scalesetpriority", "spot"),
    ("OKE", "oci.oraclecloud.com/oke-is-preemptible", "true"),
];

/// Taints that announce that a node is about to go: a worker on it should hand over.
const NOTICES: &[&str] = &[
    "cloud.google.com/impending-node-termination",
    "aws-node-termination-handler/spot-itn",
    "aws-node-termination-handler/asg-lifecycle-termination",
    "karpenter.sh/disrupted",
    "ToBeDeletedByClusterAutoscaler",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.kubernetes.io/out-of-service",
];

/// How long a pod stays bound to a node that Kubernetes finds not ready or unreachable, in seconds; as long as any pod's, by default. A node that
/// reports late may serve well: that a peer is lost is decided by its silence, and the operator deletes it then.
const UNREACHABLE_S: i64 = 300;

/// Whether node labels mark a preemptible node.
#[must_use]
pub fn is_spot(labels: &BTreeMap<String, String>) -> bool {
    MARKERS.iter().any(|(_, key, value)| labels.get(*key).is_some_and(|v| v == value))
}

/// Whether a taint with this key announces the end of its node.
#[must_use]
pub fn is_notice(taint: &str) -> bool {
    NOTICES.contains(&taint)
}

/// Tolerations of a worker; those of preemptible nodes only when `spot`.
#[must_use]
pub fn tolerations(spot: bool) -> Vec<Value> {
    let mut all: Vec<Value> = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .iter()
        .map(|key| {
            json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": UNREACHABLE_S})
        })
        .collect();
    if spot {
        all.extend(MARKERS.iter().map(|(_, key, value)| {
            json!({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
        }));
    }
    all
}

/// Node affinity of a pool. `None` when the user's own selector already speaks about the kind of capacity.
///
/// `marked`: some node of the cluster carries a marker. Without any, a required rule could never be met, so it is a preference.
#[must_use]
pub fn node_affinity(spot: bool, selector: &BTreeMap<String, String>, marked: bool) -> Option<Value> {
    if MARKERS.iter().any(|(_, key, _)| selector.contains_key(*key)) {
        return None;
    }
    if !spot {
        return Some(json!({
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [not_spot()]}
        }));
    }
    let terms: Vec<Value> = MARKERS
        .iter()
        .map(|(_, key, value)| json!({"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}))
        .collect();
    Some(if marked {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}})
    } else {
        let preferred: Vec<Value> =
            terms.into_iter().map(|term| json!({"weight": 100, "preference": term})).collect();
        json!({"preferredDuringSchedulingIgnoredDuringExecution": preferred})
    })
}

/// Gateways hold the journals of their sessions: steady nodes are better, any will do.
#[must_use]
pub fn prefer_steady() -> Value {
    json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 50, "preference": not_spot()}]})
}

/// Node affinity of a pod that may run on the nodes of any of several pools: rather steady ones, and only those that some pool's selector
/// takes. A pool without selector takes any.
#[must_use]
pub fn any_of(selectors: &[&BTreeMap<String, String>]) -> Value {
    let mut affinity = prefer_steady();
    if selectors.iter().all(|s| !s.is_empty()) {
        let term = |selector: &&BTreeMap<String, String>| {
            let expressions =
                selector.iter().map(|(key, value)| json!({"key": key, "operator": "In", "values": [value]}));
            json!({"matchExpressions": expressions.collect::<Vec<_>>()})
        };
        let terms: Vec<Value> = selectors.iter().map(term).collect();
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = json!({"nodeSelectorTerms": terms});
    }
    affinity
}

fn not_spot() -> Value {
    let expressions: Vec<Value> = MARKERS
        .iter()
        .map(|(_, key, value)| json!({"key": key, "operator": "NotIn", "values": [value]}))
        .collect();
    json!({"matchExpressions": expressions})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn every_platform_is_recognised() {
        for (platform, key, value) in MARKERS {
            assert!(is_spot(&labels(key, value)), "{platform}");
        }
        assert!(!is_spot(&labels("karpenter.sh/capacity-type", "on-demand")));
        assert!(is_notice("karpenter.sh/disrupted") && !is_notice("example.com/dedicated"));
    }

    #[test]
    fn a_selector_about_capacity_replaces_the_affinity() {
        assert!(node_affinity(true, &labels("cloud.google.com/gke-spot", "true"), true).is_none());
        assert!(node_affinity(true, &labels("kubernetes.io/arch", "amd64"), true).is_some());
    }

    #[test]
    fn spot_is_required_where_nodes_are_marked_and_preferred_where_none_is() {
        let required = node_affinity(true, &BTreeMap::new(), true).unwrap_or_default();
        let terms = &required["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        assert_eq!(terms.as_array().map(Vec::len), Some(MARKERS.len()));
        let soft = node_affinity(true, &BTreeMap::new(), false).unwrap_or_default();
        assert!(soft.get("requiredDuringSchedulingIgnoredDuringExecution").is_none());
    }

    #[test]
    fn nodes_of_any_pool_are_those_of_some_selector() {
        let (a, b, none) = (labels("pool", "a"), labels("pool", "b"), BTreeMap::new());
        let key = "requiredDuringSchedulingIgnoredDuringExecution";
        let terms = any_of(&[&a, &b])[key]["nodeSelectorTerms"].clone();
        assert_eq!(terms.as_array().map(Vec::len), Some(2));
        assert_eq!(
            terms[1]["matchExpressions"][0],
            json!({"key": "pool", "operator": "In", "values": ["b"]})
        );
        assert!(any_of(&[&a, &none]).get(key).is_none());
    }

    #[test]
    fn on_demand_pods_do_not_tolerate_spot_taints() {
        assert_eq!(tolerations(false).len(), 2);
        assert_eq!(tolerations(true).len(), 2 + MARKERS.len());
    }

    #[test]
    fn a_node_that_reports_late_does_not_cost_its_peers() {
        for toleration in &tolerations(false) {
            assert_eq!(toleration["tolerationSeconds"], 300, "the default of every pod");
        }
    }
}
