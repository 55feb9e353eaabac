//! Pods that run and do not reach one another.

use std::collections::BTreeMap;

use super::finding::{Finding, Severity};
use crate::evidence::ClusterEvidence;

/// What gateways do not reach.
#[must_use]
pub fn rules(evidence: &ClusterEvidence) -> Vec<Finding> {
    let is_ready = |name: &str| evidence.pods.iter().any(|p| p.name == name && p.ready && !p.deleting);
    let mut unreached: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for gateway in &evidence.gateways {
        for peer in gateway.unreached.iter().filter(|peer| is_ready(peer)) {
            unreached.entry(peer.as_str()).or_default().push(gateway.pod.as_str());
        }
    }
    let severity = if evidence.swarm.is("Ready") { Severity::Warning } else { Severity::Problem };
    let mut found: Vec<Finding> = unreached
        .into_iter()
        .map(|(peer, gateways)| {
            let line = format!("peer {peer} is ready, and {} cannot reach it", gateways.join(", "));
            let remedy = "see NetworkPolicies of the namespace, and the network between their nodes (port 7070): kubectl get networkpolicy";
            Finding::new(severity, line, remedy)
        })
        .collect();
    if !evidence.swarm.is("Ready") {
        let refusing = evidence.gateways.iter().filter_map(|g| Some((&g.pod, g.not_ready.as_ref()?)));
        found.extend(refusing.map(|(pod, why)| {
            Finding::new(Severity::Note, format!("gateway {pod} answers nobody: {why}"), "")
        }));
    }
    found
}
