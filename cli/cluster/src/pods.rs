//! What a pod says about itself, as far as it matters to whoever asks what is wrong. Pure.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt;
use serde::Serialize;

use dunlin_crds::names::{POOL, ROLE};

/// Most characters of what a container said.
const WORDS_MAX: usize = 300;

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PodFacts {
    /// Its name: one life of a peer.
    pub name: String,
    /// `stage`, `gateway`, `conductor`, `train-peer`, `trainer`.
    pub role: String,
    /// Pool that it was made for; empty for what is in none.
    pub pool: String,
    /// Its node; empty when it has none.
    pub node: String,
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    pub phase: String,
    /// Its probe succeeds.
    pub ready: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// Seconds since it was made.
    pub age_s: i64,
    /// What the scheduler says of a pod that it has not placed.
    pub unschedulable: Option<String>,
    /// What its containers request together: `cpu 2, memory 512Mi`.
    pub requests: String,
    /// Reason and message of a container that waits.
    pub waiting: Option<(String, String)>,
    /// How its container ended last.
    pub ended: Option<Ended>,
    /// How often the container was started again.
    pub restarts: i32,
    /// Reason and message of the whole pod's end: `Evicted`, `NodeShutdown`.
    pub end: Option<(String, String)>,
    /// Nodes that it may not run on, each with the reason.
    pub misfits: Vec<(String, String)>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ended {
    /// `OOMKilled`, `Error`, `Completed`.
    pub reason: String,
    /// Its exit code.
    pub code: i32,
    /// The error that it said, or its last line.
    pub words: String,
}

impl PodFacts {
    /// `pod` at the time `now_s`.
    #[must_use]
    pub fn of(pod: &Pod, now_s: i64) -> Self {
        let label = |key: &str| pod.labels().get(key).cloned().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let condition = |kind: &str, is: &str| {
            status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == is)
        };
        let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let containers: Vec<&ContainerStatus> = containers.collect();
        let waits = |c: &&ContainerStatus| {
            let waiting = c.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.clone().filter(|r| r != "PodInitializing")?;
            Some((reason, waiting.message.clone().unwrap_or_default()))
        };
        let ended = |c: &&ContainerStatus| ended(c.state.as_ref()).or_else(|| ended(c.last_state.as_ref()));
        let reason = status.reason.clone().filter(|_| status.phase.as_deref() == Some("Failed"));
        let unschedulable = condition("PodScheduled", "False");
        Self {
            name: pod.name_any(),
            role: label(ROLE),
            pool: label(POOL),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
            ready: condition("Ready", "True").is_some(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            age_s: pod.creation_timestamp().map_or(0, |made| now_s - made.0.as_second()),
            unschedulable: unschedulable
                .map(|c| c.message.clone().or_else(|| c.reason.clone()).unwrap_or_default()),
            requests: requests(pod),
            waiting: containers.iter().find_map(waits),
            ended: containers.iter().find_map(ended),
            restarts: containers.iter().map(|c| c.restart_count).sum(),
            end: reason.map(|reason| (reason, status.message.clone().unwrap_or_default())),
            phase: status.phase.clone().unwrap_or_default(),
            misfits: Vec::new(),
        }
    }

    /// `pod smollm2-spot-abcde on n1`.
    #[must_use]
    pub fn told(&self) -> String {
        if self.node.is_empty() {
            format!("pod {}", self.name)
        } else {
            format!("pod {} on {}", self.name, self.node)
        }
    }

    /// What a person calls it: `peer`, `gateway`.
    #[must_use]
    pub fn noun(&self) -> &str {
        match self.role.as_str() {
            "stage" | "train-peer" => "peer",
            "" => "pod",
            role => role,
        }
    }

    /// It will never serve again, and is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase == "Failed" || self.phase == "Succeeded"
    }
}

fn ended(state: Option<&ContainerState>) -> Option<Ended> {
    let ended = state?.terminated.as_ref()?;
    Some(Ended {
        reason: ended.reason.clone().unwrap_or_default(),
        code: ended.exit_code,
        words: words(ended.message.as_deref().unwrap_or_default()),
    })
}

/// The error that a container ended with: of its last lines, which Kubernetes keeps, what follows the last `Error: `, otherwise the last.
#[must_use]
pub fn words(said: &str) -> String {
    let last = || said.trim_end().lines().next_back().unwrap_or_default();
    let error = said.rfind("Error: ").map_or_else(last, |at| &said[at + "Error: ".len()..]);
    error.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(WORDS_MAX).collect()
}

fn requests(pod: &Pod) -> String {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let requests = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref()).flatten();
    requests.map(|(resource, amount)| format!("{resource} {}", amount.0)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn facts(status: Value) -> PodFacts {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {POOL: "spot", ROLE: "stage"}, "creationTimestamp": "1970-01-01T00:01:00Z"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "512Mi"}}}]},
            "status": status,
        });
        PodFacts::of(&serde_json::from_value(pod).unwrap(), 90)
    }

    fn container(state: Value, last: Value) -> Value {
        json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 2, "state": state, "lastState": last}])
    }

    #[test]
    fn a_pod_tells_why_it_waits_and_how_it_ended() {
        let pending = facts(json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes are available"}
        ]}));
        assert_eq!(pending.unschedulable.as_deref(), Some("0/4 nodes are available"));
        assert_eq!(
            (pending.age_s, pending.requests.as_str(), pending.noun()),
            (30, "cpu 2, memory 512Mi", "peer")
        );
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
        let oom = json!({"terminated": {"reason": "OOMKilled", "exitCode": 137}});
        let crashing = facts(json!({"phase": "Running", "containerStatuses": container(waiting, oom)}));
        assert_eq!(crashing.waiting, Some(("CrashLoopBackOff".into(), "back-off".into())));
        assert_eq!(crashing.ended.map(|e| (e.reason, e.code)), Some(("OOMKilled".into(), 137)));
        assert_eq!(crashing.restarts, 2);
        let evicted = facts(json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}));
        assert_eq!(evicted.end, Some(("Evicted".into(), "low on memory".into())));
        assert!(evicted.is_over());
    }

    #[test]
    fn last_words_are_the_error_or_the_last_line() {
        assert_eq!(
            words("{\"level\":\"INFO\"}\nError: cannot read\n\nCaused by:\n    HTTP 404\n"),
            "cannot read Caused by: HTTP 404"
        );
        assert_eq!(words("one\ntwo\n"), "two");
        assert_eq!(words(&"x".repeat(999)).len(), WORDS_MAX);
    }
}
