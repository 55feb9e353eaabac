//! Conditions of a swarm that serves. Pure: facts and the conditions of before in, conditions out.
//!
//! `Ready` every layer is served and a gateway answers · `Degraded` it serves below plan · `ModelLoaded` every layer is held.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use crate::status::conditions::Account;
use crate::status::facts::InferenceFacts;

/// What only a swarm that serves has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServingFacts {
    /// Layers of the model; 0 while nobody has read it.
    pub layers: u32,
    /// Layers that some ready peer holds.
    pub served: u32,
    /// Layers that at least as many other peers hold as asked for.
    pub shadowed: u32,
    /// Layers that should have shadows.
    pub shadows_wanted: u32,
    /// Gateways planned.
    pub gateways_desired: u32,
    /// Gateways that answer.
    pub gateways_ready: u32,
}

impl InferenceFacts<ServingFacts> {
    fn serves(&self) -> bool {
        !self.suspended
            && self.kind.layers > 0
            && self.kind.served == self.kind.layers
            && self.kind.gateways_ready > 0
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
            && self.kind.shadowed >= self.kind.shadows_wanted
            && self.kind.gateways_ready >= self.kind.gateways_desired
    }

    fn missing(&self) -> String {
        let mut parts = vec![
            self.peers_in_words(),
            format!("{} of {} gateways ready", self.kind.gateways_ready, self.kind.gateways_desired),
        ];
        if self.kind.layers > 0 {
            parts.push(format!("{} of {} layers served", self.kind.served, self.kind.layers));
            parts.push(format!("{} of {} shadowed", self.kind.shadowed, self.kind.shadows_wanted));
        }
        parts.extend(self.to_come());
        parts.join(", ")
    }
}

/// All five conditions. `observed`: the generation that `before` speaks about.
#[must_use]
pub fn conditions(
    facts: &InferenceFacts<ServingFacts>,
    before: &[Condition],
    observed: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let serves = facts.serves();
    let missing = facts.missing();
    let all_served = facts.kind.layers > 0 && facts.kind.served == facts.kind.layers;
    let ready = match &facts.trouble {
        // What is asked for is there: as a Deployment without replicas is Available.
        _ if facts.suspended && facts.pods == 0 => {
            (true, "Suspended", "spec.suspend is true, and no pods run".to_owned())
        }
        _ if facts.suspended => (false, "Suspending", "spec.suspend is true: pods end".to_owned()),
        _ if serves => (true, "Serving", format!("all {} layers are served", facts.kind.layers)),
        Some((reason, message)) => (false, reason.as_str(), message.clone()),
        None if facts.kind.layers == 0 => (false, "ReadingModel", missing.clone()),
        None if all_served => (false, "WaitingForGateway", missing.clone()),
        None => (false, "WaitingForPeers", missing.clone()),
    };
    let loaded = if all_served {
        (true, "AllLayersHeld", format!("all {} layers are held", facts.kind.layers))
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
        let facts = InferenceFacts::<ServingFacts>::default().with(|f| {
            f.generation = 1;
            f.peers_desired = 3;
            f.kind.gateways_desired = 2;
        });
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
        let lost = whole().with(|f| {
            f.peers_ready = 2;
            f.kind.shadowed = 20;
        });
        let after = conditions(&lost, &before, Some(1), at(9));
        let after = status(&after);
        assert_eq!(after[0], ("Ready", "True", "Serving"));
        assert_eq!(after[1].1, "False");
        assert_eq!(after[3], ("Degraded", "True", "BelowPlan"));
    }

    #[test]
    fn an_edit_reconciles_until_everything_is_there() {
        let before = conditions(&whole(), &[], None, at(1));
        let scaled = whole().with(|f| {
            f.generation = 2;
            f.peers_desired = 5;
        });
        let first = conditions(&scaled, &before, Some(1), at(2));
        assert_eq!(first[1].status, "True");
        let second = conditions(&scaled.clone().with(|f| f.peers_ready = 4), &first, Some(2), at(3));
        assert_eq!(second[1].status, "True");
        let done = conditions(&scaled.with(|f| f.peers_ready = 5), &second, Some(2), at(4));
        assert_eq!((done[1].status.as_str(), done[3].status.as_str()), ("False", "False"));
    }

    #[test]
    fn trouble_stalls_with_its_reason_and_a_serving_swarm_goes_on() {
        let trouble = Some(("ModelDigestMismatch".to_owned(), "the file has another sha256".to_owned()));
        let stalled = InferenceFacts::<ServingFacts>::default().with(|f| {
            f.generation = 1;
            f.trouble = trouble.clone();
        });
        let found = conditions(&stalled, &[], None, at(1));
        assert_eq!(status(&found)[0], ("Ready", "False", "ModelDigestMismatch"));
        assert_eq!(status(&found)[1].1, "False");
        assert_eq!(status(&found)[2], ("Stalled", "True", "ModelDigestMismatch"));
        let serving = conditions(&whole().with(|f| f.trouble = trouble), &[], Some(1), at(1));
        assert_eq!(serving[0].status, "True");
    }

    #[test]
    fn suspended_is_settled_when_no_pod_is_left() {
        let draining = whole().with(|f| f.suspended = true);
        assert_eq!(conditions(&draining, &[], None, at(1))[1].status, "True");
        let gone = draining.with(|f| f.pods = 0);
        let found = conditions(&gone, &[], Some(1), at(2));
        assert_eq!(status(&found)[0], ("Ready", "True", "Suspended"));
        assert_eq!(found[1].status, "False");
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let first = conditions(&whole(), &[], None, at(1));
        let second = conditions(&whole().with(|f| f.generation = 2), &first, Some(1), at(5));
        assert_eq!(second[0].last_transition_time, first[0].last_transition_time);
        assert_eq!(second[0].observed_generation, Some(2));
        let lost = conditions(&whole().with(|f| f.kind.served = 20), &second, Some(2), at(9));
        assert_eq!(lost[0].last_transition_time, Time(at(9)));
    }
}
