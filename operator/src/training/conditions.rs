//! Conditions of a run as kstatus reads them. Pure: facts and the conditions of before in, conditions out.
//!
//! `Ready` it trains, or has succeeded · `Reconciling` while a change of the manifest is being carried out · `Stalled` when a user must mend
//! something · `Degraded` it trains below plan · `Succeeded` all steps are done. A loss makes a run Degraded, never Reconciling or not
//! Ready, as long as it trains.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use crate::status::conditions::{Account, ConditionStatement};
use crate::status::facts::InferenceFacts;

/// Why a run is Ready that trains.
pub const TRAINING: &str = "Training";

/// What only a run has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrainingFacts {
    /// All steps asked for are done.
    pub finished: bool,
    /// Pods are to go, and wait for a checkpoint.
    pub waits: bool,
    /// Pods are going.
    pub ends: bool,
    /// Updates done.
    pub step: u64,
    /// Updates asked for.
    pub steps: u64,
    /// The conductor says that it trains.
    pub training: bool,
    /// It did so a short while ago.
    pub trained: bool,
    /// Trainers planned.
    pub trainers_desired: u32,
    /// Trainers that are Ready.
    pub trainers_ready: u32,
    /// What the conductor says is not as it should be while it trains: (CamelCase reason, what and what to do).
    pub degraded: Option<(String, String)>,
}

impl InferenceFacts<TrainingFacts> {
    fn trains(&self) -> bool {
        self.kind.trained && !self.suspended && !self.kind.finished && !self.kind.waits && !self.kind.ends
    }

    /// Everything is as planned, and of the present manifest.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_complete() && (self.outdated == 0 || self.suspended || self.kind.finished)
    }

    /// Everything is as planned, be it from before the last change.
    fn is_complete(&self) -> bool {
        if self.suspended || self.kind.finished {
            return self.pods == 0;
        }
        self.trains()
            && self.kind.training
            && self.peers_ready >= self.peers_desired
            && self.kind.trainers_ready >= self.kind.trainers_desired
    }

    fn missing(&self) -> String {
        let mut parts = vec![
            format!("step {} of {}", self.kind.step, self.kind.steps),
            self.peers_in_words(),
            format!("{} of {} trainers ready", self.kind.trainers_ready, self.kind.trainers_desired),
        ];
        if self.kind.trained && !self.kind.training {
            parts.push("the conductor is being replaced".to_owned());
        }
        parts.extend(self.to_come());
        parts.join(", ")
    }

    fn ready(&self) -> ConditionStatement<'_> {
        let failing =
            self.kind.degraded.iter().map(|(_, message)| format!(": {message}")).collect::<String>();
        let resting = |words: &str| format!("{words} at step {} of {}", self.kind.step, self.kind.steps);
        match &self.trouble {
            _ if self.kind.finished => (true, "Succeeded", format!("all {} steps are done", self.kind.steps)),
            // What is asked for is there: as a Deployment without replicas is Available.
            _ if self.suspended && self.pods == 0 => {
                (true, "Suspended", resting("spec.suspend is true, and no pods run; training rests"))
            }
            _ if self.suspended && self.kind.waits => {
                let words = resting("spec.suspend is true: a checkpoint is being written");
                (false, "Suspending", words + &failing)
            }
            _ if self.suspended => {
                (false, "Suspending", format!("spec.suspend is true: {} pods end", self.pods))
            }
            // Without the step, which is in a field of its own: conditions change seldom.
            _ if self.trains() => (true, TRAINING, "updates are being made".to_owned()),
            Some((reason, message)) => (false, reason, message.clone()),
            None if self.kind.waits => (
                false,
                "Restarting",
                resting("a checkpoint is being written, then pods are made from the new manifest") + &failing,
            ),
            None if self.kind.ends => {
                (false, "Restarting", resting("pods end, then others are made from the new manifest"))
            }
            None if self.peers_ready < self.peers_desired => (false, "WaitingForPeers", self.missing()),
            None => (false, "Starting", self.missing()),
        }
    }

    fn succeeded(&self) -> ConditionStatement<'static> {
        if self.kind.finished {
            return (
                true,
                "AllStepsDone",
                format!("all {} steps are done and in a checkpoint", self.kind.steps),
            );
        }
        let reason = if self.suspended {
            "Suspended"
        } else if self.trouble.is_some() {
            "Failed"
        } else {
            "InProgress"
        };
        (false, reason, "there are steps left".to_owned())
    }
}

/// All five conditions. `observed`: the generation that `before` speaks about.
#[must_use]
pub fn conditions(
    facts: &InferenceFacts<TrainingFacts>,
    before: &[Condition],
    observed: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let trains = facts.trains();
    let settled = trains || facts.suspended || facts.kind.finished;
    let account = Account {
        generation: facts.generation,
        ready: facts.ready(),
        at_work: trains,
        settled,
        complete: facts.is_complete(),
        whole: facts.is_whole(),
        outdated: facts.outdated,
        missing: facts.missing(),
        trouble: facts.trouble.as_ref().filter(|_| !facts.kind.finished),
        flaw: facts.kind.degraded.as_ref(),
        as_planned: "every peer and trainer of the plan is there",
        idle: ("NotTraining", "a run that does not train is not degraded: see Ready"),
        own: ("Succeeded", facts.succeeded()),
    };
    account.conditions(before, observed, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> InferenceFacts<TrainingFacts> {
        let kind = TrainingFacts {
            steps: 100,
            training: true,
            trained: true,
            trainers_desired: 1,
            trainers_ready: 1,
            ..TrainingFacts::default()
        };
        InferenceFacts {
            generation: 1,
            peers_desired: 4,
            peers_ready: 4,
            pods: 6,
            kind,
            ..InferenceFacts::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn described(
        facts: &InferenceFacts<TrainingFacts>,
        before: &[Condition],
        observed: Option<i64>,
    ) -> Vec<Condition> {
        conditions(facts, before, observed, at(1))
    }

    fn words(conditions: &[Condition]) -> Vec<(&str, &str, &str)> {
        conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str())).collect()
    }

    #[test]
    fn the_first_write_has_all_conditions_and_is_in_progress() {
        let facts = InferenceFacts::<TrainingFacts>::default().with(|f| {
            f.generation = 1;
            f.kind.steps = 100;
            f.peers_desired = 4;
        });
        assert_eq!(
            words(&described(&facts, &[], None)),
            [
                ("Ready", "False", "WaitingForPeers"),
                ("Reconciling", "True", "Progressing"),
                ("Stalled", "False", "NotStalled"),
                ("Degraded", "False", "NotTraining"),
                ("Succeeded", "False", "InProgress"),
            ]
        );
    }

    #[test]
    fn a_lost_peer_or_conductor_degrades_but_neither_unreadies_nor_reconciles() {
        let before = described(&whole(), &[], None);
        assert_eq!(words(&before)[1], ("Reconciling", "False", "Observed"));
        for lost in [whole().with(|f| f.peers_ready = 3), whole().with(|f| f.kind.training = false)] {
            let after = described(&lost, &before, Some(1));
            assert_eq!(words(&after)[0], ("Ready", "True", "Training"));
            assert_eq!(words(&after)[1].1, "False");
            assert_eq!(words(&after)[3], ("Degraded", "True", "BelowPlan"));
        }
        let gone = whole().with(|f| {
            f.kind.training = false;
            f.kind.trained = false;
        });
        assert_eq!(words(&described(&gone, &before, Some(1)))[0], ("Ready", "False", "Starting"));
    }

    #[test]
    fn suspension_is_in_progress_until_no_pod_is_left() {
        let waits = whole().with(|f| {
            f.generation = 2;
            f.suspended = true;
            f.kind.waits = true;
        });
        let first = described(&waits, &described(&whole(), &[], None), Some(1));
        assert_eq!(
            words(&first)[..2],
            [("Ready", "False", "Suspending"), ("Reconciling", "True", "Progressing")]
        );
        let gone = waits.with(|f| {
            f.kind.waits = false;
            f.pods = 0;
            f.kind.training = false;
            f.kind.step = 7;
        });
        let last = described(&gone, &first, Some(2));
        assert_eq!(words(&last)[..2], [("Ready", "True", "Suspended"), ("Reconciling", "False", "Observed")]);
        assert!(last[0].message.contains("step 7 of 100"), "{}", last[0].message);
        assert_eq!(words(&last)[4], ("Succeeded", "False", "Suspended"));
    }

    #[test]
    fn what_the_conductor_says_degrades_a_run_that_goes_on() {
        let failing = Some(("CheckpointsFailing".to_owned(), "no space left".to_owned()));
        let found = described(
            &whole().with(|f| f.kind.degraded = failing.clone()),
            &described(&whole(), &[], None),
            Some(1),
        );
        assert_eq!(words(&found)[0], ("Ready", "True", "Training"));
        assert_eq!(words(&found)[3], ("Degraded", "True", "CheckpointsFailing"));
        assert_eq!(found[3].message, "no space left");
        assert_eq!((words(&found)[1].1, words(&found)[2].1), ("False", "False"));
        let starts = whole().with(|f| {
            f.kind.degraded = failing;
            f.kind.training = false;
            f.kind.trained = false;
        });
        assert_eq!(words(&described(&starts, &[], Some(1)))[3], ("Degraded", "False", "NotTraining"));
    }

    #[test]
    fn success_is_ready_and_stays() {
        let done = whole().with(|f| {
            f.kind.finished = true;
            f.kind.training = false;
            f.pods = 0;
        });
        let found = described(&done, &[], Some(1));
        assert_eq!(words(&found)[0], ("Ready", "True", "Succeeded"));
        assert_eq!(words(&found)[4], ("Succeeded", "True", "AllStepsDone"));
        assert!(found[1..4].iter().all(|c| c.status == "False"));
        assert_eq!(described(&done.with(|f| f.generation = 2), &found, Some(1))[1].status, "False");
    }

    #[test]
    fn trouble_stalls_with_its_reason() {
        let trouble = Some(("TrainingFailed".to_owned(), "the data is no UTF-8".to_owned()));
        let found = described(
            &whole().with(|f| {
                f.trouble = trouble.clone();
                f.kind.training = false;
                f.kind.trained = false;
            }),
            &[],
            Some(1),
        );
        assert_eq!(words(&found)[0], ("Ready", "False", "TrainingFailed"));
        assert_eq!((words(&found)[1].1, words(&found)[2]), ("False", ("Stalled", "True", "TrainingFailed")));
        assert_eq!(words(&found)[4], ("Succeeded", "False", "Failed"));
        let trains = described(&whole().with(|f| f.trouble = trouble), &[], Some(1));
        assert_eq!(
            (words(&trains)[0].1, words(&trains)[2].1),
            ("True", "True"),
            "one peer's trouble is not the run's"
        );
    }

    #[test]
    fn a_changed_manifest_restarts_and_reconciles() {
        let before = described(&whole(), &[], None);
        let found = described(
            &whole().with(|f| {
                f.generation = 2;
                f.kind.waits = true;
            }),
            &before,
            Some(1),
        );
        assert_eq!(
            words(&found)[..2],
            [("Ready", "False", "Restarting"), ("Reconciling", "True", "Progressing")]
        );
    }
}
