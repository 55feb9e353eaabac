//! Pods that the API server does not take.

use dunlin_terminal::words::span;

use super::finding::{Finding, Severity};
use crate::evidence::ClusterEvidence;

/// A refusal that is older says nothing about now.
const RECENT_S: i64 = 600;

/// What refuses pods.
#[must_use]
pub fn rules(evidence: &ClusterEvidence) -> Vec<Finding> {
    let conditions = evidence.swarm.conditions.iter().filter(|c| c.kind == "Stalled" && c.status == "True");
    let conditions = conditions.filter(|c| c.reason == "PodRefused" || c.reason == "Refused");
    let said = conditions.map(|c| (format!("condition Stalled: {}", c.reason), c.message.clone()));
    let events = evidence.events.iter().filter(|e| e.reason == "PodRefused" || e.reason == "FailedCreate");
    let events = events.filter(|e| e.ago_s <= RECENT_S);
    let events = events
        .map(|e| (format!("Event {} of {}, {} ago", e.reason, e.about, span(e.ago_s)), e.message.clone()));
    let mut found: Vec<Finding> = Vec::new();
    for (shows, message) in said.chain(events) {
        let finding = refusal(evidence, &message);
        match found.iter_mut().find(|f| f.line == finding.line) {
            Some(known) => known.evidence.push(shows),
            None => found.push(finding.shown_by([shows, message])),
        }
    }
    found
}

/// What a refusal says.
fn refusal(evidence: &ClusterEvidence, message: &str) -> Finding {
    let namespace = &evidence.swarm.namespace;
    let problem = |line: String, remedy: String| Finding::new(Severity::Problem, line, remedy);
    if let Some((_, quota)) = message.split_once("exceeded quota: ") {
        let (name, rest) = quota.split_once(", ").unwrap_or((quota, ""));
        let full = evidence.quotas.iter().filter(|q| q.name == name);
        let full = full.map(|q| format!("quota {}: {} of {} {} used", q.name, q.used, q.hard, q.resource));
        return problem(
            format!("quota {name} of namespace {namespace} leaves no room for another pod: {rest}"),
            format!("raise it (kubectl -n {namespace} edit quota {name}), or lower peers, memory or cores of the pools"),
        )
        .shown_by(full);
    }
    if message.contains("violates PodSecurity") {
        return problem(
            format!("Pod Security of namespace {namespace} does not take the swarm's pods: {}", after(message, "violates PodSecurity")),
            "take out of podTemplate what it names, or relax the namespace's pod-security.kubernetes.io/enforce label".into(),
        );
    }
    if let Some((_, rest)) = message.split_once("admission webhook ") {
        let (name, words) = rest.split_once(" denied the request").unwrap_or((rest, ""));
        return problem(
            format!("admission webhook {name} does not take the swarm's pods{words}"),
            "do as it says, for example with podTemplate, or have the policy changed".into(),
        );
    }
    if message.contains("usage per Container") || message.contains("usage per Pod") {
        return problem(
            format!(
                "a LimitRange of namespace {namespace} does not take the swarm's pods: {}",
                after(message, "is forbidden")
            ),
            format!("change it (kubectl -n {namespace} get limitrange), or the resources of the pools"),
        );
    }
    problem(
        format!("the API server does not take the swarm's pods: {message}"),
        "mend what it names: a policy, or a field of the manifest".into(),
    )
}

/// What follows `mark`, without what separates it.
fn after<'a>(message: &'a str, mark: &str) -> &'a str {
    message.split_once(mark).map_or(message, |(_, rest)| rest).trim_start_matches([' ', ':'])
}
