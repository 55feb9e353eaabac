//! What a pod and its node say about a peer. Pure: objects in, a judgement out.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Node, Pod, PodCondition, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::deletion::Deletion;
use crate::labels::{CERTIFICATE, CERTIFICATE_ROLE, POD_HASH, POOL, TEMPLATE};
use crate::spot;

/// Characters of an error that are told.
const LAST_ERROR_MAX: usize = 300;
/// A worker's exit code for what another start does not change: see its `exit.rs`.
const NEEDS_USER: i32 = 78;

/// State of a worker pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// Not running yet; the text says what it waits for, when Kubernetes says.
    Pending(Option<String>),
    /// Its container runs.
    Running,
    /// It runs and is about to go: deleted, or its node has notice.
    Draining(&'static str),
    /// It will never serve again.
    Lost(&'static str),
}

/// A worker pod, as far as plans care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Pod name: the peer's name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Pool it was made for.
    pub pool: String,
    /// Fingerprint of what all workers share.
    pub template: String,
    /// Fingerprint of all that it was made from.
    pub hash: String,
    /// Its certificate says its role: without, pods that ask for one do not talk to it.
    pub has_role: bool,
    /// When it was made.
    pub made: Option<Timestamp>,
    /// Node, empty when not scheduled.
    pub node: String,
    /// Zone of the node, empty when unknown.
    pub zone: String,
    /// Pod IP.
    pub ip: Option<String>,
    /// State.
    pub phase: PodPhase,
    /// What keeps it from running.
    pub blocked: Option<Blocked>,
    /// Its readiness probe succeeds.
    pub ready: bool,
    /// The scheduler finds no node for it.
    pub unplaced: bool,
    /// Being deleted already.
    pub deleting: bool,
    /// Its node does not confirm deletions.
    pub node_gone: bool,
    /// What its container said last, if it ended with an error.
    pub last_error: Option<String>,
    /// It ended with something that another start does not change.
    pub needs_user: bool,
}

impl WorkerView {
    /// Its node has notice. SIGTERM tells a pod that is being deleted; only a reclaim that Kubernetes does not carry out needs a word from us.
    #[must_use]
    pub fn needs_drain(&self) -> bool {
        matches!(self.phase, PodPhase::Draining(_)) && !self.deleting
    }

    /// Its deletion.
    #[must_use]
    pub fn deletion(&self) -> Deletion {
        Deletion { name: self.name.clone(), uid: self.uid.clone(), now: self.node_gone }
    }
}

/// What keeps a pod from running, and how it is called when only a user can mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// In Kubernetes' own words, or in those of the container that ended.
    pub why: String,
    /// CamelCase, when waiting does not help.
    pub reason: Option<&'static str>,
}

/// A node, as far as plans care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// `topology.kubernetes.io/zone`.
    pub zone: String,
    /// Carries a spot marker.
    pub spot: bool,
    /// The node's kubelet reports in time.
    pub ready: bool,
    /// The platform said that it will take the node.
    pub notice: bool,
}

/// What the operator keeps of a node.
#[must_use]
pub fn node(node: &Node) -> NodeView {
    let ready = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == "Ready")
        // A node without conditions is being registered.
        .is_none_or(|c| c.status == "True");
    let taints = || node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    NodeView {
        name: node.name_any(),
        zone: node.labels().get("topology.kubernetes.io/zone").cloned().unwrap_or_default(),
        spot: spot::is_spot(node.labels()),
        ready: ready && !taints().any(|t| t.key == "node.kubernetes.io/unreachable"),
        notice: taints().any(|t| spot::is_notice(&t.key)),
    }
}

/// What the operator keeps of a worker pod. `node`: `None` when nodes are not watched or it has none.
#[must_use]
pub fn worker(pod: &Pod, node: Option<&NodeView>) -> WorkerView {
    let label = |key: &str| pod.labels().get(key).cloned().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    WorkerView {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        pool: label(POOL),
        template: label(TEMPLATE),
        hash: label(POD_HASH),
        has_role: has_role(pod),
        made: pod.metadata.creation_timestamp.as_ref().map(|made| made.0),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
        zone: node.map(|n| n.zone.clone()).unwrap_or_default(),
        ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
        phase: phase(pod, node),
        blocked: blocked(&status),
        ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
        unplaced: scheduled(&status).is_some_and(|c| c.reason.as_deref() == Some("Unschedulable")),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        node_gone: node.is_some_and(|n| !n.ready),
        last_error: last_error(&status),
        needs_user: ended(&status).is_some_and(|ended| ended.exit_code == NEEDS_USER),
    }
}

/// Whether the certificate of a pod says its role.
#[must_use]
pub fn has_role(pod: &Pod) -> bool {
    pod.labels().get(CERTIFICATE).is_some_and(|says| says == CERTIFICATE_ROLE)
}

fn ended(status: &PodStatus) -> Option<&ContainerStateTerminated> {
    status.container_statuses.iter().flatten().find_map(|c| c.state.as_ref()?.terminated.as_ref())
}

/// The error that a container ended with: of its last lines, which Kubernetes keeps, what follows the last `Error: `.
fn last_error(status: &PodStatus) -> Option<String> {
    words_of(ended(status)?)
}

fn words_of(ended: &ContainerStateTerminated) -> Option<String> {
    let said = ended.message.as_deref().filter(|_| ended.exit_code != 0)?;
    let error = said.rfind("Error: ").map_or(said, |at| &said[at + "Error: ".len()..]);
    let words = error.split_whitespace().collect::<Vec<_>>().join(" ");
    (!words.is_empty()).then(|| words.chars().take(LAST_ERROR_MAX).collect())
}

fn phase(pod: &Pod, node: Option<&NodeView>) -> PodPhase {
    let status = pod.status.clone().unwrap_or_default();
    let deleting = pod.metadata.deletion_timestamp.is_some();
    match status.phase.as_deref() {
        Some("Failed") => return PodPhase::Lost("its container failed"),
        Some("Succeeded") => return PodPhase::Lost("its container ended"),
        _ => {}
    }
    if node.is_some_and(|n| !n.ready) {
        return PodPhase::Lost("its node is not ready");
    }
    let running = status.phase.as_deref() == Some("Running");
    if deleting && !running {
        return PodPhase::Lost("it was deleted before it ran");
    }
    if deleting {
        return PodPhase::Draining("it is being deleted");
    }
    if node.is_some_and(|n| n.notice) {
        return PodPhase::Draining("its node is being reclaimed");
    }
    if running { PodPhase::Running } else { PodPhase::Pending(blocked(&status).map(|blocked| blocked.why)) }
}

/// What the scheduler says of a pod that it has not placed.
fn scheduled(status: &PodStatus) -> Option<&PodCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False")
}

/// What the scheduler says, and what to do where that is not plain: nodes have GPUs for Kubernetes only once something tells it of them.
fn with_remedy(why: String) -> String {
    if !why.contains("Insufficient nvidia.com/") {
        return why;
    }
    format!(
        "{} Nodes offer GPUs once NVIDIA's GPU operator or its device plugin runs there; otherwise add nodes with GPUs, or take device.nvidia out of the pool",
        why.trim_end()
    )
}

/// Why a pod does not run.
#[must_use]
pub fn blocked(status: &PodStatus) -> Option<Blocked> {
    if let Some(why) = scheduled(status).and_then(|c| c.message.clone()) {
        return Some(Blocked { why: with_remedy(why), reason: None });
    }
    let statuses = status.container_statuses.iter().flatten();
    let (container, waiting) = statuses
        .filter_map(|c| Some((c, c.state.as_ref()?.waiting.as_ref()?)))
        .find(|(_, waiting)| waiting.reason.as_deref() != Some("ContainerCreating"))?;
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let reason = match waiting.reason.as_deref() {
        Some("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull") => {
            Some("ImageUnavailable")
        }
        Some("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            Some("CannotStart")
        }
        Some("CrashLoopBackOff") if last.is_some_and(|last| last.exit_code == NEEDS_USER) => {
            Some("CannotStart")
        }
        _ => None,
    };
    let said = last.filter(|_| waiting.reason.as_deref() == Some("CrashLoopBackOff")).and_then(words_of);
    let why = match said {
        Some(said) => format!("its container ends: {said}"),
        None => {
            [&waiting.reason, &waiting.message].into_iter().flatten().cloned().collect::<Vec<_>>().join(": ")
        }
    };
    Some(Blocked { why, reason })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value, deleting: bool) -> Pod {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "uid": "u", "labels": {POOL: "spot"}},
            "spec": {"containers": [], "nodeName": "n1"},
            "status": status,
        });
        if deleting {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(pod).unwrap()
    }

    fn ready_node() -> NodeView {
        NodeView { name: "n1".into(), ready: true, ..NodeView::default() }
    }

    #[test]
    fn a_pod_that_finds_no_gpu_says_what_would_help() {
        let message = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu. no new claims to deallocate.";
        let status = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},
        ]});
        let blocked = worker(&pod(status, false), None).blocked.unwrap();
        assert!(blocked.why.starts_with(message), "{}", blocked.why);
        assert!(blocked.why.contains("NVIDIA's GPU operator or its device plugin"), "{}", blocked.why);
    }

    #[test]
    fn phases() {
        let running = json!({"phase": "Running"});
        let cases = [
            (pod(running.clone(), false), ready_node(), PodPhase::Running),
            (pod(running.clone(), true), ready_node(), PodPhase::Draining("it is being deleted")),
            (pod(json!({"phase": "Failed"}), false), ready_node(), PodPhase::Lost("its container failed")),
            (
                pod(json!({"phase": "Pending"}), true),
                ready_node(),
                PodPhase::Lost("it was deleted before it ran"),
            ),
            (
                pod(running.clone(), true),
                NodeView { ready: false, ..ready_node() },
                PodPhase::Lost("its node is not ready"),
            ),
            (
                pod(running, false),
                NodeView { notice: true, ..ready_node() },
                PodPhase::Draining("its node is being reclaimed"),
            ),
            (pod(json!({"phase": "Pending"}), false), ready_node(), PodPhase::Pending(None)),
        ];
        for (pod, node, expected) in cases {
            assert_eq!(worker(&pod, Some(&node)).phase, expected);
        }
    }

    #[test]
    fn a_pending_pod_says_what_it_waits_for() {
        let unscheduled = pod(
            json!({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "message": "0/4 nodes are available"}
            ]}),
            false,
        );
        assert_eq!(
            worker(&unscheduled, None).phase,
            PodPhase::Pending(Some("0/4 nodes are available".into()))
        );
        let pulling = pod(
            json!({"phase": "Pending", "containerStatuses": [{
                "name": "stage", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
            }]}),
            false,
        );
        let expected = PodPhase::Pending(Some("ImagePullBackOff: no such image".into()));
        assert_eq!(worker(&pulling, None).phase, expected);
    }

    #[test]
    fn what_waiting_does_not_help_is_told_apart() {
        let waiting = |reason: &str, last: Value| {
            let pod = pod(
                json!({"phase": "Running", "containerStatuses": [{
                    "name": "gateway", "image": "x", "imageID": "", "ready": false, "restartCount": 3,
                    "state": {"waiting": {"reason": reason, "message": "words"}}, "lastState": last,
                }]}),
                false,
            );
            blocked(&pod.status.unwrap()).map(|blocked| (blocked.why, blocked.reason))
        };
        let described = |why: &str, reason| Some((why.to_owned(), reason));
        let none = json!({});
        assert_eq!(waiting("ContainerCreating", none.clone()), None);
        let image = Some("ImageUnavailable");
        assert_eq!(waiting("ErrImagePull", none.clone()), described("ErrImagePull: words", image));
        let config = Some("CannotStart");
        let expected = described("CreateContainerConfigError: words", config);
        assert_eq!(waiting("CreateContainerConfigError", none), expected);
        let ended = |code: i32| json!({"terminated": {"exitCode": code, "message": "Error: no template"}});
        let expected = |reason| described("its container ends: no template", reason);
        assert_eq!(waiting("CrashLoopBackOff", ended(1)), expected(None));
        assert_eq!(waiting("CrashLoopBackOff", ended(78)), expected(config));
    }

    #[test]
    fn a_container_that_ended_with_an_error_has_last_words() {
        let pod_that_ended = |code: i32, message: &str| {
            let state = json!({"terminated": {"exitCode": code, "message": message}});
            let status = json!({"phase": "Failed", "containerStatuses": [{
                "name": "trainer", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state
            }]});
            worker(&pod(status, false), None)
        };
        let ended = |code: i32, message: &str| pod_that_ended(code, message).last_error;
        assert!(pod_that_ended(78, "").needs_user && !pod_that_ended(1, "").needs_user);
        let log = "{\"level\":\"INFO\"}\nError: cannot use the data\n\nCaused by:\n    HTTP 404\n";
        assert_eq!(ended(1, log).as_deref(), Some("cannot use the data Caused by: HTTP 404"));
        assert_eq!(ended(137, "killed"), Some("killed".to_owned()));
        assert_eq!(ended(0, log), None, "it ended well");
        assert_eq!(ended(1, ""), None);
        assert_eq!(ended(1, &"x".repeat(999)).map(|w| w.len()), Some(LAST_ERROR_MAX));
    }

    #[test]
    fn nodes_tell_readiness_notice_and_kind() {
        let made = |taints: Value, ready: &str| {
            let value = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": "n1", "labels": {
                    "karpenter.sh/capacity-type": "spot", "topology.kubernetes.io/zone": "a"
                }},
                "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            node(&serde_json::from_value(value).unwrap())
        };
        let plain = made(json!([]), "True");
        assert!(plain.ready && plain.spot && !plain.notice && plain.zone == "a");
        assert!(!made(json!([]), "Unknown").ready);
        assert!(
            !made(json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]), "True").ready
        );
        assert!(made(json!([{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]), "True").notice);
    }
}
