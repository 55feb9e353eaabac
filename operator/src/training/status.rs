//! The status of a run, and what its changes mean. Pure but for the time of conditions that change.

use dunlin_crds::{
    CheckpointStatus, DisplayStatus, PeersStatus, StageStatus, TrainingSwarm, TrainingSwarmStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::conditions::{TrainingFacts, conditions};
use super::decide::TrainingDecision;
use super::desired::TrainingDesired;
use super::places::CHECKPOINTS_DIR;
use super::state::RunState;
use crate::apply::network::HTTP_PORT;
use crate::config::Config;
use crate::labels::{ROLE_PEER, pool_selector};
use crate::peers::observation::CHECKPOINTS_FAILING;
use crate::peers::{Observation, RunPhase};
use crate::status::conditions::is_true;
use crate::status::events::{SwarmEvent, TurnReasons, changes};
use crate::status::facts::InferenceFacts;
use crate::swarm::{Reporter, SwarmStatus};

/// What Events call the turns of a run.
const TURNS: TurnReasons = TurnReasons { ready: "TrainingStarted", not_ready: "TrainingInterrupted" };

impl SwarmStatus for TrainingSwarmStatus {
    fn conditions(&mut self) -> (&mut Vec<Condition>, &mut Option<i64>) {
        (&mut self.conditions, &mut self.observed_generation)
    }

    fn peers(&self) -> &PeersStatus {
        &self.peers
    }
}

impl Reporter for TrainingSwarm {
    fn unseen(desired: &TrainingDesired) -> InferenceFacts<TrainingFacts> {
        let trainers_desired = desired.trainers.iter().map(|p| p.peers).sum();
        let kind = TrainingFacts { steps: desired.steps, trainers_desired, ..TrainingFacts::default() };
        InferenceFacts::unseen(desired.generation, desired.suspended, desired.peers(), kind)
    }

    fn next_status(
        &self,
        before: &TrainingSwarmStatus,
        _desired: &TrainingDesired,
        decision: &TrainingDecision,
        state: &RunState,
        config: &Config,
    ) -> TrainingSwarmStatus {
        let facts = &decision.facts;
        let (name, namespace) = (self.name_any(), self.namespace().unwrap_or_default());
        let run = state.last.clone().unwrap_or_default();
        // Nobody trains while no conductor does.
        let trains = run.phase == RunPhase::Training && facts.kind.training;
        let stages = run.stages.iter().filter(|_| facts.pods > 0).map(|stage| StageStatus {
            stage: stage.stage,
            layers: stage.layers.clone(),
            peers: stage.peers,
            samples_per_second: if trains { stage.samples_per_second } else { 0.0 },
        });
        let tokens_per_second = run.tokens_per_second.filter(|_| trains);
        let display = display(&run, facts, tokens_per_second);
        TrainingSwarmStatus {
            observed_generation: Some(facts.generation),
            conditions: conditions(facts, &before.conditions, before.observed_generation, Timestamp::now()),
            step: run.step,
            steps: facts.kind.steps,
            loss: run.loss,
            validation_loss: run.validation_loss,
            tokens_per_second,
            stages: stages.collect(),
            peers: facts.peers(decision.ready_by_kind),
            last_checkpoint: run.last_checkpoint.map(|checkpoint| CheckpointStatus {
                step: checkpoint.step,
                path: inside(&checkpoint.path),
                sha256: checkpoint.sha256,
            }),
            redone: run.redone,
            lost: run.lost,
            moves: run.moves,
            url: Some(format!("http://{name}-conductor.{namespace}.{}:{HTTP_PORT}/", config.service_domain)),
            replicas: facts.replicas,
            selector: self.spec.pools.first().map(|pool| pool_selector(&name, ROLE_PEER, &pool.name)),
            display,
        }
    }

    fn turns(before: &TrainingSwarmStatus, after: &TrainingSwarmStatus) -> Vec<SwarmEvent> {
        let mut all = changes(&before.conditions, &after.conditions, TURNS);
        let failing = |status: &TrainingSwarmStatus| {
            status
                .conditions
                .iter()
                .find(|c| c.type_ == "Degraded" && c.reason == CHECKPOINTS_FAILING)
                .cloned()
        };
        // Checkpoints have words of their own.
        all.retain(|h| !(h.reason == "SwarmDegraded" && failing(after).is_some()));
        all.retain(|h| !(h.reason == "SwarmRestored" && failing(before).is_some()));
        // Success is no start, and more steps for a run that has succeeded are no interruption.
        let done = |status: &TrainingSwarmStatus| is_true(&status.conditions, "Succeeded");
        all.retain(|event| match event.reason.as_str() {
            reason if reason == TURNS.ready => !done(after),
            reason if reason == TURNS.not_ready => !done(before),
            _ => true,
        });
        let message = |kind: &str| {
            let condition = after.conditions.iter().find(|c| c.type_ == kind);
            condition.map(|c| c.message.clone()).unwrap_or_default()
        };
        let mut tell = |warning: bool, reason: &str, note: String| {
            all.push(SwarmEvent { warning, reason: reason.into(), note, pod: None });
        };
        if let Some(new) =
            after.last_checkpoint.as_ref().filter(|new| before.last_checkpoint.as_ref() != Some(new))
        {
            tell(
                false,
                "CheckpointWritten",
                format!("step {} is in {}, sha256 {}", new.step, new.path, new.sha256),
            );
        }
        if let (Some(now), None) = (failing(after), failing(before)) {
            tell(true, CHECKPOINTS_FAILING, now.message);
        }
        if failing(before).is_some() && failing(after).is_none() && is_true(&after.conditions, "Ready") {
            tell(false, "CheckpointsRestored", "checkpoints are written again".to_owned());
        }
        let suspended = |status: &TrainingSwarmStatus| {
            status.conditions.iter().any(|c| c.type_ == "Ready" && c.reason == "Suspended")
        };
        if suspended(after) && !suspended(before) {
            tell(false, "TrainingSuspended", message("Ready"));
        }
        if done(after) && !done(before) {
            tell(false, "TrainingSucceeded", message("Succeeded"));
        }
        all
    }
}

/// Columns for people.
fn display(
    run: &Observation,
    facts: &InferenceFacts<TrainingFacts>,
    tokens_per_second: Option<f64>,
) -> DisplayStatus {
    let number =
        |value: Option<f64>, places: usize| value.map(|v| format!("{v:.places$}")).unwrap_or_default();
    let stages: Vec<String> =
        run.stages.iter().filter(|_| facts.pods > 0).map(|s| s.peers.to_string()).collect();
    DisplayStatus {
        step: format!("{}/{}", run.step, facts.kind.steps),
        loss: number(run.loss, 3),
        tokens_per_second: number(tokens_per_second, 0),
        stages: stages.join("/"),
    }
}

/// A path of a pod as one inside of the volume.
fn inside(path: &str) -> String {
    path.strip_prefix(CHECKPOINTS_DIR).map_or(path, |rest| rest.trim_start_matches('/')).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Kind;
    use crate::peers::ObservedCheckpoint;
    use crate::peers::observation::ObservedStage;
    use crate::testing::{self, config, kstatus, object, training_swarm};

    fn run(step: u64, checkpoint: Option<u64>) -> Observation {
        Observation {
            phase: RunPhase::Training,
            step,
            steps: 100,
            loss: Some(2.381_25),
            tokens_per_second: Some(1234.4),
            stages: [2, 1]
                .map(|peers| ObservedStage { peers, layers: "0-1".into(), ..ObservedStage::default() })
                .to_vec(),
            last_checkpoint: checkpoint.map(|step| ObservedCheckpoint {
                step,
                path: format!("/checkpoints/tiny/step-{step}"),
                sha256: "abc".into(),
            }),
            ..Observation::default()
        }
    }

    fn facts(training: bool) -> InferenceFacts<TrainingFacts> {
        let kind = TrainingFacts { steps: 100, training, trained: training, ..TrainingFacts::default() };
        InferenceFacts {
            generation: 1,
            peers_desired: 4,
            peers_ready: 4,
            replicas: 5,
            pods: 6,
            kind,
            ..InferenceFacts::default()
        }
    }

    fn status(
        before: Option<TrainingSwarmStatus>,
        run: &Observation,
        facts: &InferenceFacts<TrainingFacts>,
    ) -> TrainingSwarmStatus {
        let decision =
            TrainingDecision { facts: facts.clone(), ready_by_kind: (3, 1), ..TrainingDecision::default() };
        let (swarm, config) = (training_swarm(1), config());
        let (desired, mut state) = (TrainingDesired::new(&swarm, &config), RunState::default());
        state.last = Some(run.clone());
        swarm.next_status(&before.unwrap_or_default(), &desired, &decision, &state, &config)
    }

    #[test]
    fn columns_are_for_people_and_paths_for_the_volume() {
        let found = status(None, &run(40, Some(30)), &facts(true));
        let display = &found.display;
        assert_eq!((display.step.as_str(), display.loss.as_str()), ("40/100", "2.381"));
        assert_eq!((display.tokens_per_second.as_str(), display.stages.as_str()), ("1234", "2/1"));
        assert_eq!(found.peers.display, "4/4");
        assert_eq!(found.last_checkpoint.map(|c| c.path), Some("tiny/step-30".into()));
        assert_eq!(found.url.as_deref(), Some("http://tiny-conductor.default.svc:8080/"));
        let selector = "dunlin.dev/swarm=tiny,dunlin.dev/role=train-peer,dunlin.dev/pool=spot";
        assert_eq!((found.replicas, found.selector.as_deref()), (5, Some(selector)));
    }

    #[test]
    fn who_does_not_train_has_no_speed_and_who_has_no_pods_no_stages() {
        let found = status(
            None,
            &run(40, Some(30)),
            &facts(false).with(|f| {
                f.pods = 0;
                f.suspended = true;
            }),
        );
        assert_eq!(
            (found.tokens_per_second, found.display.stages.as_str(), found.stages.len()),
            (None, "", 0)
        );
        assert_eq!((found.loss, found.display.step.as_str()), (Some(2.381_25), "40/100"));
    }

    #[test]
    fn a_life_of_a_run() {
        let reasons = |before: &TrainingSwarmStatus, after: &TrainingSwarmStatus| {
            TrainingSwarm::turns(before, after).into_iter().map(|h| h.reason).collect::<Vec<_>>()
        };
        let none = TrainingSwarmStatus::default();
        let starts = status(None, &Observation::default(), &facts(false));
        let trains = status(Some(starts.clone()), &run(1, None), &facts(true));
        let saved = status(Some(trains.clone()), &run(30, Some(30)), &facts(true));
        let waits = facts(false).with(|f| {
            f.suspended = true;
            f.kind.waits = true;
        });
        let waits = status(Some(saved.clone()), &run(35, Some(30)), &waits);
        let rests = facts(false).with(|f| {
            f.suspended = true;
            f.pods = 0;
        });
        let rests = status(Some(waits.clone()), &run(36, Some(36)), &rests);
        let done = facts(false).with(|f| {
            f.kind.finished = true;
            f.pods = 0;
        });
        let done = status(Some(rests.clone()), &run(100, Some(36)), &done);
        let trouble = Some(("TrainingFailed".into(), "out of disk".into()));
        let failed =
            status(Some(saved.clone()), &run(30, Some(30)), &facts(false).with(|f| f.trouble = trouble));
        assert!(reasons(&none, &starts).is_empty());
        assert_eq!(reasons(&starts, &trains), ["TrainingStarted"]);
        assert_eq!(reasons(&trains, &saved), ["CheckpointWritten"]);
        assert_eq!(reasons(&saved, &waits), ["TrainingInterrupted"]);
        assert!(!TrainingSwarm::turns(&saved, &waits)[0].warning);
        assert_eq!(reasons(&waits, &rests), ["CheckpointWritten", "TrainingSuspended"]);
        assert_eq!(reasons(&rests, &done), ["TrainingSucceeded"]);
        assert!(reasons(&done, &starts).is_empty(), "more steps");
        assert_eq!(reasons(&saved, &failed), ["TrainingFailed", "TrainingInterrupted"]);
        let degraded = Some(("CheckpointsFailing".into(), "no space left".into()));
        let failing = status(
            Some(saved.clone()),
            &run(31, Some(30)),
            &facts(true).with(|f| f.kind.degraded = degraded),
        );
        assert_eq!(reasons(&saved, &failing), ["CheckpointsFailing"]);
        assert!(TrainingSwarm::turns(&saved, &failing)[0].warning);
        assert_eq!(
            reasons(&failing, &status(Some(failing.clone()), &run(32, Some(30)), &facts(true))),
            ["CheckpointsRestored"]
        );
    }

    #[test]
    #[ignore = "needs kstatus, which is written in Go: make test-kstatus"]
    #[expect(clippy::too_many_lines, reason = "a table of states")]
    fn kstatus_reads_each_state_as_it_is_meant() {
        let whole = facts(true).with(|f| {
            f.kind.trainers_desired = 1;
            f.kind.trainers_ready = 1;
        });
        let idle = whole.clone().with(|f| {
            f.kind.training = false;
            f.kind.trained = false;
        });
        let trouble = Some(("TrainingFailed".to_owned(), "no UTF-8".to_owned()));
        let trains = status(None, &run(40, Some(30)), &whole);
        let config = config();
        let swarm = training_swarm(1);
        let created = crate::swarm::first_status(&swarm, &TrainingDesired::new(&swarm, &config), &config);
        let ask = |generation, deleting, status: &TrainingSwarmStatus| {
            kstatus(&object(Kind::Training, generation, deleting, status))
        };
        assert_eq!(
            kstatus(&object(Kind::Training, 1, false, &testing::unseen(Kind::Training))),
            "InProgress"
        );
        assert_eq!(ask(1, false, &created), "InProgress");
        assert_eq!(ask(2, false, &trains), "InProgress", "an edit that nobody has seen");
        assert_eq!(ask(1, true, &trains), "Terminating");
        for (state, facts, expected) in [
            ("creating", idle.clone().with(|f| f.peers_ready = 0), "InProgress"),
            ("ready", whole.clone(), "Current"),
            ("degraded", whole.clone().with(|f| f.peers_ready = 3), "Current"),
            (
                "edited",
                whole.clone().with(|f| {
                    f.generation = 2;
                    f.kind.waits = true;
                }),
                "InProgress",
            ),
            ("stalled", idle.clone().with(|f| f.trouble = trouble.clone()), "Failed"),
            ("stalled while it trains", whole.with(|f| f.trouble = trouble), "Failed"),
            (
                "suspending",
                idle.clone().with(|f| {
                    f.generation = 2;
                    f.suspended = true;
                    f.kind.waits = true;
                }),
                "InProgress",
            ),
            (
                "suspended",
                idle.clone().with(|f| {
                    f.generation = 2;
                    f.suspended = true;
                    f.pods = 0;
                }),
                "Current",
            ),
            ("finishing", idle.clone().with(|f| f.kind.finished = true), "Current"),
            (
                "finished",
                idle.with(|f| {
                    f.kind.finished = true;
                    f.pods = 0;
                }),
                "Current",
            ),
        ] {
            let found = status(Some(trains.clone()), &run(40, Some(30)), &facts);
            assert_eq!(ask(facts.generation, false, &found), expected, "{state}: {found:?}");
        }
    }
}
