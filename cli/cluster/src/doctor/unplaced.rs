//! Pods for which the scheduler finds no node.

use dunlin_terminal::words::{count, span};
use std::collections::BTreeMap;

use super::finding::{Finding, Severity};
use crate::evidence::ClusterEvidence;
use crate::pods::PodFacts;

/// What keeps pods from nodes: one finding for each pool.
#[must_use]
pub fn rules(evidence: &ClusterEvidence) -> Vec<Finding> {
    let mut groups: BTreeMap<(&str, &str), Vec<&PodFacts>> = BTreeMap::new();
    for pod in evidence.pods.iter().filter(|p| p.unschedulable.is_some() && !p.deleting) {
        groups.entry((pod.role.as_str(), pod.pool.as_str())).or_default().push(pod);
    }
    groups.into_values().filter_map(|pods| group(evidence, &pods)).collect()
}

fn group(evidence: &ClusterEvidence, pods: &[&PodFacts]) -> Option<Finding> {
    let first = pods.first()?;
    let said = first.unschedulable.clone().unwrap_or_default();
    let who =
        if first.pool.is_empty() { format!("{}s", first.noun()) } else { format!("pool {}", first.pool) };
    let one = if first.pool.is_empty() {
        format!("a {}", first.noun())
    } else {
        format!("a {} of pool {}", first.noun(), first.pool)
    };
    let total = evidence.nodes.as_ref().map_or(0, Vec::len);
    let (line, remedy) = if evidence.nodes.is_some() && total == 0 {
        ("the cluster has no nodes".to_owned(), "add nodes".to_owned())
    } else if evidence.nodes.is_some() && first.misfits.len() == total {
        let remedy = "label or add nodes as the pool asks for, or change its nodeSelector, capacityType or podTemplate.tolerations";
        (format!("no node matches {who}: {}", told(&first.misfits, total)), remedy.to_owned())
    } else if said.contains("persistentvolumeclaim") || said.contains("PersistentVolumeClaims") {
        (
            format!("{one} waits for its volume: {said}"),
            "make the claim, or a volume that satisfies it".into(),
        )
    } else if said.contains("volume node affinity") {
        (
            format!("{one} finds no node that can mount its volume: {said}"),
            "use a volume that all nodes of the pool can mount (ReadOnlyMany or ReadWriteMany)".into(),
        )
    } else if said.contains("Insufficient") {
        (
            format!("no node has room for {one}, which requests {}: {}", first.requests, lacking(&said)),
            "add nodes, free those that match, or lower device.cpu.request or memory.host of the pool".into(),
        )
    } else {
        (format!("the scheduler finds no node for {one}: {said}"), "mend what it names".into())
    };
    let severity = if evidence.swarm.is("Ready") { Severity::Warning } else { Severity::Problem };
    let waiting = pods.iter().map(|p| format!("{} is Pending for {}", p.told(), span(p.age_s)));
    let misfits = first.misfits.iter().map(|(node, why)| format!("node {node}: {why}"));
    let scheduler = format!("the scheduler says: {said}");
    Some(Finding::new(severity, line, remedy).shown_by(waiting.chain([scheduler]).chain(misfits)))
}

/// `none of the 4 nodes is labelled disk=ssd`, or how many have which reason.
fn told(misfits: &[(String, String)], total: usize) -> String {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, why) in misfits {
        *reasons.entry(why.as_str()).or_default() += 1;
    }
    let mut reasons: Vec<(&str, usize)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, nodes)| std::cmp::Reverse(*nodes));
    match reasons[..] {
        [(why, _)] => match why.strip_prefix("it is not labelled ") {
            Some(label) if total == 1 => format!("the only node is not labelled {label}"),
            Some(label) => format!("none of the {total} nodes is labelled {label}"),
            None => format!("of each of the {}, {why}", count(total, "node")),
        },
        _ => {
            let each = reasons.iter().map(|(why, nodes)| format!("of {}, {why}", count(*nodes, "node")));
            each.collect::<Vec<_>>().join("; ")
        }
    }
}

/// `Insufficient memory on 3 of 4 nodes` of the scheduler's message.
fn lacking(said: &str) -> String {
    let of = said.split(" nodes are available").next().and_then(|n| n.rsplit('/').next()).unwrap_or_default();
    let reasons = said.split_once(": ").map_or(said, |(_, rest)| rest);
    // What follows the first sentence is about preemption.
    let reasons = reasons.split(". ").next().unwrap_or(reasons).split(", ");
    let told = reasons.filter_map(|reason| {
        let (nodes, lacks) = reason.split_once(" Insufficient ")?;
        Some(format!("too little {} on {} of {of} nodes", lacks.trim_end_matches('.'), nodes.trim()))
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() { said.to_owned() } else { told.join(", ") }
}
