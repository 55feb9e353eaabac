//! Events with stable reasons: what happened to a swarm, for `kubectl describe` and alerts.

use dunlin_wire::Role;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

/// One thing that happened. `reason` is part of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmEvent {
    /// Something was lost or is wrong.
    pub warning: bool,
    /// CamelCase, from a fixed set.
    pub reason: String,
    /// One sentence.
    pub note: String,
    /// The pod it is about; events about different pods are not counted as one.
    pub pod: Option<String>,
}

impl SwarmEvent {
    /// A pod that will never serve again.
    #[must_use]
    pub fn lost(role: Role, name: &str, why: &str) -> Self {
        let noun = noun(role);
        Self {
            warning: true,
            reason: format!("{noun}Lost"),
            note: format!("{} {name} is lost: {why}", noun.to_lowercase()),
            pod: Some(name.into()),
        }
    }

    /// A pod made for one that was lost, or because more are wanted.
    #[must_use]
    pub fn created(role: Role, name: &str, replaces: bool) -> Self {
        let noun = noun(role);
        let (what, why) = if replaces { ("Replaced", " in place of a lost one") } else { ("Created", "") };
        Self {
            warning: false,
            reason: format!("{noun}{what}"),
            note: format!("{} {name} was created{why}", noun.to_lowercase()),
            pod: Some(name.into()),
        }
    }

    /// A pod from before a change that goes because its turn has come.
    #[must_use]
    pub fn rolled(role: Role, name: &str) -> Self {
        let noun = noun(role);
        Self {
            warning: false,
            reason: format!("{noun}Rolled"),
            note: format!("{} {name} is from before the last change and goes", noun.to_lowercase()),
            pod: Some(name.into()),
        }
    }

    /// Pods that the API server does not take.
    #[must_use]
    pub fn refused(sentence: &str) -> Self {
        let note =
            format!("{sentence}; it is tried again once a minute, and at once when the manifest changes");
        Self { warning: true, reason: "PodRefused".into(), note, pod: None }
    }

    /// A peer that has computed at so many percent of the usual speed for minutes.
    #[must_use]
    pub fn slow(name: &str, percent: u32) -> Self {
        Self {
            warning: true,
            reason: "PeerSlow".into(),
            note: format!(
                "peer {name} computes at {percent} % of the speed of the others: see what else runs on its node, or whether \
                 its CPU is limited; if it stays slow it gets fewer layers"
            ),
            pod: Some(name.into()),
        }
    }

    /// Layers move for the sake of speed.
    #[must_use]
    pub fn rebalanced(why: &str) -> Self {
        Self {
            warning: false,
            reason: "SwarmRebalanced".into(),
            note: format!("layers are {why}"),
            pod: None,
        }
    }

    /// As Kubernetes takes it.
    #[must_use]
    pub fn object(&self, namespace: &str) -> Event {
        let pod = |name: &String| ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(name.clone()),
            namespace: Some(namespace.to_owned()),
            ..ObjectReference::default()
        };
        Event {
            type_: if self.warning { EventType::Warning } else { EventType::Normal },
            reason: self.reason.clone(),
            // The API server's limit is 1024 bytes.
            note: Some(self.note.chars().take(900).collect()),
            action: "Reconcile".into(),
            secondary: self.pod.as_ref().map(pod),
        }
    }
}

/// What Events call a pod with `role`.
#[must_use]
pub fn noun(role: Role) -> &'static str {
    match role {
        Role::Conductor => "Conductor",
        Role::Trainer => "Trainer",
        // There are none about others.
        _ => "Peer",
    }
}

/// What Events call the turns of a swarm. Part of the API.
#[derive(Clone, Copy, Debug)]
pub struct TurnReasons {
    /// It became Ready.
    pub ready: &'static str,
    /// It is Ready no more.
    pub not_ready: &'static str,
}

/// What the change from `before` to `after` means.
#[must_use]
pub fn changes(before: &[Condition], after: &[Condition], reasons: TurnReasons) -> Vec<SwarmEvent> {
    let find = |list: &[Condition], kind: &str| list.iter().find(|c| c.type_ == kind).cloned();
    let became = |kind: &str, status: &str| {
        let new = find(after, kind).filter(|c| c.status == status)?;
        let old = find(before, kind).is_some_and(|c| c.status == status);
        (!old).then_some(new)
    };
    // A suspended swarm is Ready, as it is what is asked for, and does nothing.
    let at_work =
        |list: &[Condition]| find(list, "Ready").filter(|c| c.status == "True" && c.reason != "Suspended");
    let (ready, was_ready) = (at_work(after).is_some(), at_work(before).is_some());
    let was_degraded = find(before, "Degraded").is_some_and(|c| c.status == "True");
    let event = |warning, reason: &str, condition: Condition| SwarmEvent {
        warning,
        reason: reason.into(),
        note: condition.message,
        pod: None,
    };
    let mut all = Vec::new();
    if let Some(condition) = became("Stalled", "True") {
        all.push(event(true, &condition.reason.clone(), condition));
    }
    if !was_ready && let Some(condition) = at_work(after) {
        all.push(event(false, reasons.ready, condition));
    }
    if was_ready
        && !ready
        && let Some(condition) = find(after, "Ready")
    {
        let asked_for = ["Suspended", "Suspending", "Restarting"].contains(&condition.reason.as_str());
        all.push(event(!asked_for, reasons.not_ready, condition));
    }
    if ready
        && was_ready
        && let Some(condition) = became("Degraded", "True")
    {
        all.push(event(true, "SwarmDegraded", condition));
    }
    if ready
        && was_degraded
        && let Some(condition) = became("Degraded", "False")
    {
        all.push(event(false, "SwarmRestored", condition));
    }
    all
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::inference::{SERVING, ServingFacts, conditions};
    use crate::status::facts::InferenceFacts;

    fn facts(served: u32, ready: u32, trouble: bool) -> Vec<Condition> {
        let kind = ServingFacts {
            layers: 30,
            served,
            gateways_desired: 1,
            gateways_ready: 1,
            ..ServingFacts::default()
        };
        let facts = InferenceFacts {
            generation: 1,
            peers_desired: 3,
            peers_ready: ready,
            trouble: trouble.then(|| ("ModelInvalid".into(), "not a GGUF file".into())),
            kind,
            ..InferenceFacts::default()
        };
        conditions(&facts, &[], Some(1), Timestamp::UNIX_EPOCH)
    }

    fn reasons(before: &[Condition], after: &[Condition]) -> Vec<String> {
        changes(before, after, SERVING).into_iter().map(|h| h.reason).collect()
    }

    #[test]
    fn a_life_of_a_swarm() {
        let (none, starting, whole) = (vec![], facts(0, 0, false), facts(30, 3, false));
        let (degraded, down) = (facts(30, 2, false), facts(20, 2, false));
        assert!(reasons(&none, &starting).is_empty());
        assert_eq!(reasons(&starting, &whole), ["SwarmReady"]);
        assert_eq!(reasons(&whole, &degraded), ["SwarmDegraded"]);
        assert!(reasons(&degraded, &degraded).is_empty());
        assert_eq!(reasons(&degraded, &whole), ["SwarmRestored"]);
        assert_eq!(reasons(&whole, &down), ["SwarmNotReady"]);
        assert_eq!(reasons(&starting, &facts(0, 0, true)), ["ModelInvalid"]);
        let suspended = |pods| {
            let facts = InferenceFacts::<ServingFacts>::default().with(|f| {
                f.generation = 2;
                f.suspended = true;
                f.pods = pods;
            });
            conditions(&facts, &[], Some(1), Timestamp::UNIX_EPOCH)
        };
        let (ends, rests) = (suspended(3), suspended(0));
        assert_eq!(reasons(&whole, &ends), ["SwarmNotReady"]);
        assert!(!changes(&whole, &ends, SERVING)[0].warning, "it was asked for");
        assert!(reasons(&ends, &rests).is_empty() && reasons(&rests, &starting).is_empty());
        assert_eq!(reasons(&rests, &whole), ["SwarmReady"]);
    }
}
