//! What the manifest names that is not there, and what the operator says about it.

use dunlin_terminal::words::{count, span};

use super::finding::{Finding, Severity};
use crate::evidence::ClusterEvidence;

/// What to do about a reason of Stalled.
const REMEDIES: &[(&str, &str)] = &[
    (
        "ModelUnreachable",
        "correct spec.model.source, or make the server reachable from the namespace; stages try again by themselves",
    ),
    ("ModelDigestMismatch", "correct spec.model.source.http.sha256, or the file"),
    ("ModelInvalid", "use a model that docs/models.md lists"),
    ("AdapterUnreachable", "correct the adapter's source, or put its folder there"),
    ("AdapterInvalid", "correct the adapter, or take it out of spec.adapters"),
    ("OutOfMemory", "raise memory.host, add peers, or lower model.maxSequenceLength, as the message says"),
    ("EngineFailed", "give the node's pods more threads or memory; see the log of the peer"),
    (
        "TrainingFailed",
        "mend what the message names; a changed manifest starts again from the last checkpoint",
    ),
    ("CannotStart", "mend what the message names; a changed manifest is tried at once"),
    ("ImageUnavailable", "correct the image, or the Secret that it is pulled with"),
    ("PodRefused", "mend what the message names: a quota, a policy, or a field of the manifest"),
    ("Refused", "mend what the message names; the operator's rights are those of the chart"),
];
/// Reasons that tell of pods.
const OF_PODS: &[&str] = &["CannotStart", "ImageUnavailable", "PodRefused", "Refused"];

/// Claims and Secrets that are not there.
#[must_use]
pub fn names(evidence: &ClusterEvidence) -> Vec<Finding> {
    let namespace = &evidence.swarm.namespace;
    let mut found = Vec::new();
    for claim in &evidence.claims {
        let (name, class) =
            (&claim.name, if claim.class.is_empty() { "the default class" } else { &claim.class });
        found.push(match claim.phase.as_str() {
            "" => Finding::new(
                Severity::Problem,
                format!("the manifest names claim {name}, and there is none in namespace {namespace}"),
                format!("make a PersistentVolumeClaim {name} there, or correct claimName"),
            ),
            // A claim that is bound with the first pod that uses it waits for that pod.
            phase => Finding::new(
                Severity::Warning,
                format!("claim {name} is {phase}: no volume of {class} is bound to it"),
                format!("kubectl -n {namespace} describe pvc {name} says what it waits for"),
            ),
        });
    }
    for secret in &evidence.secrets_missing {
        found.push(Finding::new(
            Severity::Problem,
            format!("Secret {secret} is not there: pods that need it do not start"),
            format!("make Secret {secret} in namespace {namespace}; one whose name ends with -tls or -ca the operator makes"),
        ));
    }
    found
}

/// What the operator says must be mended.
#[must_use]
pub fn stalled(evidence: &ClusterEvidence) -> Option<Finding> {
    let stalled = evidence.swarm.condition("Stalled").filter(|c| c.status == "True")?;
    let remedy = REMEDIES
        .iter()
        .find(|(reason, _)| *reason == stalled.reason)
        .map_or("mend what the message names", |(_, r)| r);
    let finding = Finding::new(Severity::Problem, stalled.message.as_str(), remedy);
    Some(finding.shown_by([format!("condition Stalled: {}, for {}", stalled.reason, span(stalled.since_s))]))
}

/// Whether that is about pods, of which more may be known.
#[must_use]
pub fn is_about_pods(evidence: &ClusterEvidence) -> bool {
    evidence
        .swarm
        .condition("Stalled")
        .is_some_and(|c| c.status == "True" && OF_PODS.contains(&c.reason.as_str()))
}

/// What a swarm that needs no mending waits for.
#[must_use]
pub fn waiting(evidence: &ClusterEvidence) -> Vec<Finding> {
    let swarm = &evidence.swarm;
    let note = |line: String| Finding::new(Severity::Note, line, "");
    if swarm.suspended {
        let line = if evidence.pods.is_empty() {
            "it is suspended, and no pods run"
        } else {
            "it is suspended, and pods end"
        };
        return vec![Finding::new(Severity::Note, line, "set spec.suspend to false to go on")];
    }
    let mut found = Vec::new();
    if swarm.observed.is_some_and(|observed| (0..swarm.generation).contains(&observed)) {
        found.push(note("the operator has not acted on the last change of the manifest yet".into()));
    }
    if swarm.is("Ready") {
        if let Some(degraded) = swarm.condition("Degraded").filter(|c| c.status == "True") {
            let does = if swarm.id.starts_with("training") { "trains" } else { "serves" };
            let line = format!("it {does} with less than planned: {}", degraded.message);
            found.push(Finding::new(
                Severity::Warning,
                line,
                "nothing while it heals; see Pending pods when it stays so",
            ));
        }
        return found;
    }
    let starting: Vec<_> = evidence
        .pods
        .iter()
        .filter(|p| p.phase == "Running" && !p.ready && !p.deleting && p.noun() == "peer")
        .collect();
    let oldest = starting.iter().map(|p| p.age_s).max();
    let message = swarm.condition("Ready").map(|c| c.message.clone());
    if let Some(oldest) = oldest {
        let pods = starting.iter().map(|p| p.told());
        let line = format!(
            "{} not ready yet, for {}: layers are being read",
            count(starting.len(), "peer"),
            span(oldest)
        );
        found.push(note(line).shown_by(message.into_iter().chain(pods)));
    } else if let Some(message) = message {
        found.push(note(message));
    }
    found
}
