//! Pods that have a node, and do not run there: images, containers that end, what kubelets say.

use dunlin_terminal::words::{count, span};
use std::collections::BTreeSet;

use super::finding::{Finding, Severity};
use crate::evidence::ClusterEvidence;
use crate::pods::PodFacts;

/// The waits of a container that gets no image.
const NO_IMAGE: &[&str] = &["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"];
/// Those of one that cannot be made.
const NOT_MADE: &[&str] = &["CreateContainerConfigError", "CreateContainerError", "RunContainerError"];
/// Events that say why a pod has no container yet.
const BEFORE: &[&str] = &["FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "NetworkNotReady"];
/// A pod that was evicted longer ago is history: another one has taken its place.
const RECENT_S: i64 = 1800;
/// A signal ends a container with this code more than its number.
const SIGNALLED: i32 = 128;

/// What keeps containers from running.
#[must_use]
pub fn rules(evidence: &ClusterEvidence) -> Vec<Finding> {
    let mut found = nodes(evidence);
    for pod in evidence.pods.iter().filter(|pod| !pod.deleting) {
        let Some(finding) = ended(evidence, pod).or_else(|| waits(evidence, pod)) else { continue };
        match found.iter_mut().find(|f| f.line == finding.line) {
            Some(known) => known.evidence.extend(finding.evidence),
            None => found.push(finding),
        }
    }
    found
}

/// Of a swarm that is Ready somebody else does what this pod does not.
fn severity(evidence: &ClusterEvidence) -> Severity {
    if evidence.swarm.is("Ready") { Severity::Warning } else { Severity::Problem }
}

fn kind(pod: &PodFacts) -> String {
    if pod.pool.is_empty() {
        format!("a {}", pod.noun())
    } else {
        format!("a {} of pool {}", pod.noun(), pod.pool)
    }
}

fn ended(evidence: &ClusterEvidence, pod: &PodFacts) -> Option<Finding> {
    let pool = if pod.pool.is_empty() {
        "gateway.resources".to_owned()
    } else {
        format!("memory.host of pool {}", pod.pool)
    };
    if let Some((reason, message)) = &pod.end {
        let shown = format!("{}: {reason}: {message}", pod.told());
        return match reason.as_str() {
            _ if pod.age_s > RECENT_S && evidence.swarm.is("Ready") => None,
            "Evicted" => {
                let line = format!("the kubelet of {} evicted {}: {message}", pod.node, kind(pod));
                let remedy =
                    "free memory or disk on that node, or request what pods need: memory.disk, memory.host";
                Some(Finding::new(severity(evidence), line, remedy).shown_by([shown]))
            }
            "Terminated" | "NodeShutdown" | "NodeAffinity" | "Preempting" | "Shutdown" => {
                let line = format!("{} went with its node {} ({reason})", kind(pod), pod.node);
                Some(Finding::new(Severity::Note, line, "").shown_by([shown]))
            }
            _ => Some(
                Finding::new(severity(evidence), format!("{} failed: {reason}: {message}", kind(pod)), "")
                    .shown_by([shown]),
            ),
        };
    }
    let ended = pod.ended.as_ref()?;
    if pod.ready || ended.code == 0 {
        return None;
    }
    let shown = format!(
        "{}: {} with code {}, {} so far",
        pod.told(),
        ended.reason,
        ended.code,
        count(restarts(pod), "restart")
    );
    let (line, remedy) = if ended.reason == "OOMKilled" {
        (
            format!("{} was killed because it needed more memory than its limit (OOMKilled)", kind(pod)),
            format!("raise {pool}"),
        )
    } else if ended.words.is_empty() && ended.code > SIGNALLED {
        (
            format!("{} was ended by signal {}", kind(pod), ended.code - SIGNALLED),
            format!("see the Events of node {}", pod.node),
        )
    } else {
        let words = if ended.words.is_empty() {
            format!("code {}, without a word", ended.code)
        } else {
            ended.words.clone()
        };
        let remedy = format!(
            "mend what it names; all of its log: kubectl -n {} logs {} --previous",
            evidence.swarm.namespace, pod.name
        );
        (format!("{} ends with an error: {words}", kind(pod)), remedy)
    };
    Some(Finding::new(severity(evidence), line, remedy).shown_by([shown]))
}

fn restarts(pod: &PodFacts) -> usize {
    usize::try_from(pod.restarts).unwrap_or(0)
}

fn waits(evidence: &ClusterEvidence, pod: &PodFacts) -> Option<Finding> {
    let about = format!("Pod {}", pod.name);
    let events = evidence.events.iter().filter(|e| e.about == about);
    if let Some((reason, message)) = &pod.waiting {
        let shown = format!("{}: {reason}: {message}", pod.told());
        let finding = |line: String, remedy: &str| {
            Some(Finding::new(severity(evidence), line, remedy).shown_by([shown.clone()]))
        };
        if NO_IMAGE.contains(&reason.as_str()) {
            // A kubelet that waits to try again says only that; an Event has what went wrong.
            let pulled = events.clone().find(|e| e.reason == "Failed" && e.message.contains("pull"));
            let why = pulled.map_or(message.as_str(), |e| e.message.as_str());
            return finding(
                format!("{} gets no image: {why}", kind(pod)),
                "correct the image, the registry, or the Secret that it is pulled with",
            );
        }
        if NOT_MADE.contains(&reason.as_str()) {
            return finding(
                format!("the container of {} cannot be made: {message}", kind(pod)),
                "mend what it names",
            );
        }
    }
    if pod.phase != "Pending" || pod.node.is_empty() {
        return None;
    }
    let event = events.into_iter().find(|e| BEFORE.contains(&e.reason.as_str()))?;
    let shown =
        format!("{}: Event {}, {} times, {} ago", pod.told(), event.reason, event.count, span(event.ago_s));
    let (line, remedy) = match event.reason.as_str() {
        "FailedCreatePodSandBox" | "NetworkNotReady" => (
            format!("node {} gives pods no network: {}", pod.node, event.message),
            "see the network plugin on that node",
        ),
        _ => (
            format!("{} cannot mount a volume: {}", kind(pod), event.message),
            "make what it names: a claim, a Secret or a ConfigMap",
        ),
    };
    Some(Finding::new(severity(evidence), line, remedy).shown_by([shown]))
}

/// Nodes that do not report, or are pressed, with pods of the swarm.
fn nodes(evidence: &ClusterEvidence) -> Vec<Finding> {
    let pods = evidence.pods.iter().filter(|p| !p.is_over());
    let used: BTreeSet<&str> = pods.map(|p| p.node.as_str()).collect();
    let nodes = evidence.nodes.iter().flatten().filter(|n| used.contains(n.name.as_str()));
    let finding = |node: &crate::evidence::NodeFacts| {
        let pods = evidence.pods.iter().filter(|p| p.node == node.name).map(PodFacts::told);
        if !node.ready {
            let line = format!("node {} is not ready: {}", node.name, node.message);
            let remedy = "mend or delete the node; the operator replaces its peers by itself where there is room elsewhere";
            Some(Finding::new(severity(evidence), line, remedy).shown_by(pods))
        } else if !node.pressures.is_empty() {
            let line =
                format!("node {} has {}: its kubelet may evict pods", node.name, node.pressures.join(", "));
            Some(Finding::new(Severity::Warning, line, "free memory or disk on that node").shown_by(pods))
        } else {
            None
        }
    };
    nodes.filter_map(finding).collect()
}
