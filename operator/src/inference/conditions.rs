//! Conditions of a swarm that serves. Pure: facts and the conditions of before in, conditions out.
//!
//! `Ready` every layer is served and a gateway answers · `Degraded` it serves below plan · `ModelLoaded` every layer is held.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use crate::status::conditions::Account;

/// What the conditions are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.suspend`.
    pub suspended: bool,
    /// Layers of the model; 0 while nobody has read it.
    pub layers: u32,
    /// Layers that some ready peer holds.
    pub served: u32,
    /// Layers that at least as many other peers hold as asked for.
    pub shadowed: u32,
    /// Layers that should have shadows.
    pub shadows_wanted: u32,
    /// Peers planned.
    pub peers_desired: u32,
    /// Peers that serve.
    pub peers_ready: u32,
    /// Pods of the pool that `/scale` sets the size of.
    pub replicas: u32,
    /// Pods that still run, of peers or gateways.
    pub pods: u32,
    /// Gateways planned.
    pub gateways_desired: u32,
    /// Gateways that answer.
    pub gateways_ready: u32,
    /// Pods from before the last change of the manifest or of the image that are still to be replaced.
    pub outdated: u32,
    /// A problem the user has to fix: (CamelCase reason, what to do).
    pub trouble: Option<(String, String)>,
    /// What is being waited for, in Kubernetes' or a worker's words.
    pub waiting: Option<String>,
}

impl Facts {
    fn serves(&self) -> bool {
        !self.suspended && self.layers > 0 && self.served == self.layers && self.gateways_ready > 0
    }

    /// Everything is as planned, and of the present manifest.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_complete() && self.outdated == 0
    }

    /// Everything is as planned, be it from before the last change.
    fn is_complete(&self) -> bool {
        if self.suspended {
            return self.pods == 0;
        }
        self.serves()
            && self.peers_ready >= self.peers_desired
            && self.shadowed >= self.shadows_wanted
            && self.gateways_ready >= self.gateways_desired
    }

    fn missing(&self) -> String {
        let mut parts = vec![
            format!("{} of {} peers ready", self.peers_ready, self.peers_desired),
            format!("{} of {} gateways ready", self.gateways_ready, self.gateways_desired),
        ];
        if self.layers > 0 {
            parts.push(format!("{} of {} layers served", self.served, self.layers));
            parts.push(format!("{} of {} shadowed", self.shadowed, self.shadows_wanted));
        }
        if self.outdated > 0 {
            parts
                .push(format!("{} pods are from before the last change and replaced in turn", self.outdated));
        }
        if let Some(waiting) = &self.waiting {
            parts.push(waiting.clone());
        }
        parts.join(", ")
    }
}

/// All five conditions. `observed`: the generation that `before` speaks about.
#[must_use]
pub fn conditions(
    facts: &Facts,
    before: &[Condition],
    observed: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let serves = facts.serves();
    let missing = facts.missing();
    let all_served = facts.layers > 0 && facts.served == facts.layers;
    let ready = match &facts.trouble {
        // What is asked for is there: as a Deployment without replicas is Available.
        _ if facts.suspended && facts.pods == 0 => {
            (true, "Suspended", "spec.suspend is true, and no pods run".to_owned())
        }
        _ if facts.suspended => (false, "Suspending", "spec.suspend is true: pods end".to_owned()),
        _ if serves => (true, "Serving", format!("all {} layers are served", facts.layers)),
        Some((reason, message)) => (false, reason.as_str(), message.clone()),
        None if facts.layers == 0 => (false, "ReadingModel", missing.clone()),
        None if all_served => (false, "WaitingForGateway", missing.clone()),
        None => (false, "WaitingForPeers", missing.clone()),
    };
    let loaded = if all_served {
        (true, "AllLayersHeld", format!("all {} layers are held", facts.layers))
    } else {
        (false, "LayersMissing", missing.clone())
    };
    let account = Account {
        generation: facts.generation,
        ready,
        at_work: serves,
        settled: serves || facts.suspended,
        complete: facts.is_complete(),
        whole: facts.is_whole(),
        outdated: facts.outdated,
        missing,
        trouble: facts.trouble.as_ref(),
        flaw: None,
        as_planned: "every peer, shadow and gateway of the plan is there",
        idle: ("NotServing", "a swarm that does not serve is not degraded: see Ready"),
        own: ("ModelLoaded", loaded),
    };
    account.conditions(before, observed, now)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::testing::whole;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn status(conditions: &[Condition]) -> Vec<(&str, &str, &str)> {
        conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str())).collect()
    }

    #[test]
    fn the_first_write_has_all_conditions_and_is_in_progress() {
        let facts = Facts { generation: 1, peers_desired: 3, gateways_desired: 2, ..Facts::default() };
        assert_eq!(
            status(&conditions(&facts, &[], None, at(1))),
            [
                ("Ready", "False", "ReadingModel"),
                ("Reconciling", "True", "Progressing"),
                ("Stalled", "False", "NotStalled"),
                ("Degraded", "False", "NotServing"),
                ("ModelLoaded", "False", "LayersMissing"),
            ]
        );
    }

    #[test]
    fn a_loss_degrades_but_neither_unreadies_nor_reconciles() {
        let before = conditions(&whole(), &[], None, at(1));
        assert!(before.iter().any(|c| c.type_ == "Reconciling" && c.status == "False"));
        let lost = Facts { peers_ready: 2, shadowed: 20, ..whole() };
        let after = conditions(&lost, &before, Some(1), at(9));
        let after = status(&after);
        assert_eq!(after[0], ("Ready", "True", "Serving"));
        assert_eq!(after[1].1, "False");
        assert_eq!(after[3], ("Degraded", "True", "BelowPlan"));
    }

    #[test]
    fn an_edit_reconciles_until_everything_is_there() {
        let before = conditions(&whole(), &[], None, at(1));
        let scaled = Facts { generation: 2, peers_desired: 5, ..whole() };
        let first = conditions(&scaled, &before, Some(1), at(2));
        assert_eq!(first[1].status, "True");
        let second = conditions(&Facts { peers_ready: 4, ..scaled.clone() }, &first, Some(2), at(3));
        assert_eq!(second[1].status, "True");
        let done = conditions(&Facts { peers_ready: 5, ..scaled }, &second, Some(2), at(4));
        assert_eq!((done[1].status.as_str(), done[3].status.as_str()), ("False", "False"));
    }

    #[test]
    fn trouble_stalls_with_its_reason_and_a_serving_swarm_goes_on() {
        let trouble = Some(("ModelDigestMismatch".to_owned(), "the file has another sha256".to_owned()));
        let stalled = Facts { generation: 1, trouble: trouble.clone(), ..Facts::default() };
        let found = conditions(&stalled, &[], None, at(1));
        assert_eq!(status(&found)[0], ("Ready", "False", "ModelDigestMismatch"));
        assert_eq!(status(&found)[1].1, "False");
        assert_eq!(status(&found)[2], ("Stalled", "True", "ModelDigestMismatch"));
        let serving = conditions(&Facts { trouble, ..whole() }, &[], Some(1), at(1));
        assert_eq!(serving[0].status, "True");
    }

    #[test]
    fn suspended_is_settled_when_no_pod_is_left() {
        let draining = Facts { suspended: true, ..whole() };
        assert_eq!(conditions(&draining, &[], None, at(1))[1].status, "True");
        let gone = Facts { pods: 0, ..draining };
        let found = conditions(&gone, &[], Some(1), at(2));
        assert_eq!(status(&found)[0], ("Ready", "True", "Suspended"));
        assert_eq!(found[1].status, "False");
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let first = conditions(&whole(), &[], None, at(1));
        let second = conditions(&Facts { generation: 2, ..whole() }, &first, Some(1), at(5));
        assert_eq!(second[0].last_transition_time, first[0].last_transition_time);
        assert_eq!(second[0].observed_generation, Some(2));
        let lost = conditions(&Facts { served: 20, ..whole() }, &second, Some(2), at(9));
        assert_eq!(lost[0].last_transition_time, Time(at(9)));
    }
}
