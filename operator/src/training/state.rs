//! What decisions about a run hand on to one another. What must survive a leader is in the status and in checkpoints.

use std::collections::BTreeSet;

use dunlin_crds::TrainingSwarmStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::time::Instant;

use super::conditions::TRAINING;
use crate::peers::{Observation, ObservedCheckpoint, RunPhase};
use crate::status::conditions::is_true;
use crate::turnover::Turnover;

/// What a decision hands on to the next one.
#[derive(Clone, Debug, Default)]
pub struct RunState {
    /// What the conductor said last; before it has said anything, what the status says.
    pub last: Option<Observation>,
    /// What the present conductor has counted: contributions redone, peers lost, moves.
    counted: Option<[u64; 3]>,
    /// It trained when an earlier leader wrote the status, and not everybody has been heard since.
    pub taken_over: bool,
    /// When a conductor last said that it trains.
    pub trained: Option<Instant>,
    /// Steps of the run that has succeeded.
    pub finished: Option<u64>,
    /// What failed, and the template it failed with.
    pub failed: Option<(String, String)>,
    /// All pods are to go: since when, and whether they have been told to.
    pub stop: Option<Stop>,
    /// Losses of peers, and peers that wait for a node.
    pub peers: Turnover,
    /// Losses of conductors.
    pub conductors: Turnover,
    /// Losses of trainers.
    pub trainers: Turnover,
    /// Trainers that were Ready once.
    pub trainers_served: BTreeSet<String>,
}

/// An orderly end of all pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Since when it is wanted.
    pub since: Instant,
    /// Since when no conductor answers.
    pub unheard: Option<Instant>,
    /// All that was trained is safe, or waiting for that was in vain: pods may go.
    pub released: bool,
}

impl RunState {
    /// Takes over from an earlier leader, by what it wrote into the status.
    #[must_use]
    pub fn restored(status: &TrainingSwarmStatus) -> Self {
        let checkpoint = status.last_checkpoint.as_ref();
        let last = Observation {
            phase: RunPhase::Starting,
            step: status.step,
            steps: status.steps,
            loss: status.loss,
            validation_loss: status.validation_loss,
            redone: status.redone,
            lost: status.lost,
            moves: status.moves,
            last_checkpoint: checkpoint.map(|c| ObservedCheckpoint {
                step: c.step,
                path: c.path.clone(),
                sha256: c.sha256.clone(),
            }),
            ..Observation::default()
        };
        let succeeded = is_true(&status.conditions, "Succeeded");
        let trains = |c: &Condition| c.type_ == "Ready" && c.status == "True" && c.reason == TRAINING;
        Self {
            last: Some(last),
            taken_over: status.conditions.iter().any(trains),
            finished: succeeded.then(|| status.step.max(status.steps)),
            ..Self::default()
        }
    }

    /// Takes note of what a conductor says. `template`: of the manifest.
    pub fn hear(&mut self, run: &Observation, template: &str, now: Instant) {
        match run.phase {
            RunPhase::Training => {
                self.trained = Some(now);
                self.failed = None;
            }
            RunPhase::Succeeded => self.finished = Some(run.steps.max(run.step)),
            RunPhase::Failed => {
                self.trained = None;
                let failed = (run.message.clone(), template.to_owned());
                // That of a run that is about to go is not the new one's.
                self.failed = self.failed.take().or_else(|| self.stop.is_none().then_some(failed));
            }
            _ => {}
        }
        let mut run = self.totalled(run);
        if !run.checkpoints_known && run.degraded.is_none() {
            // It does not know yet whether what was wrong still is.
            run.degraded = self.last.as_ref().and_then(|last| last.degraded.clone());
        }
        // A conductor that starts does not know yet how far the run was.
        let known = self.last.take().filter(|last| run.phase == RunPhase::Starting && run.step < last.step);
        self.last = Some(match known {
            Some(last) => Observation {
                step: last.step,
                steps: last.steps,
                loss: last.loss,
                validation_loss: last.validation_loss,
                tokens_per_second: last.tokens_per_second,
                last_checkpoint: last.last_checkpoint,
                ..run
            },
            None => run,
        });
    }

    /// `run` with the counts of the whole run. A conductor counts from its own start; what came before is in `last`.
    fn totalled(&mut self, run: &Observation) -> Observation {
        let now = [run.redone, run.lost, run.moves];
        let before = self.last.as_ref().map_or([0; 3], |last| [last.redone, last.lost, last.moves]);
        // Fewer than before: another conductor counts. A new leader cannot tell, and takes what is more.
        let grown = |i: usize| match self.counted {
            Some(counted) if now[i] >= counted[i] => before[i].saturating_add(now[i] - counted[i]),
            Some(_) => before[i].saturating_add(now[i]),
            None => before[i].max(now[i]),
        };
        let [redone, lost, moves] = [grown(0), grown(1), grown(2)];
        self.counted = Some(now);
        Observation { redone, lost, moves, ..run.clone() }
    }

    /// Updates that no checkpoint has.
    #[must_use]
    pub fn has_unsaved_steps(&self) -> bool {
        self.last.as_ref().is_some_and(|l| l.step > l.last_checkpoint.as_ref().map_or(0, |c| c.step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_when_another_conductor_counts_from_nothing() {
        let mut state = RunState::default();
        let mut totals = |redone: u64, lost: u64| {
            let run = state.totalled(&Observation { redone, lost, ..Observation::default() });
            state.last = Some(run.clone());
            (run.redone, run.lost)
        };
        assert_eq!(totals(3, 1), (3, 1));
        assert_eq!(totals(5, 1), (5, 1));
        assert_eq!(totals(0, 0), (5, 1), "a new conductor");
        assert_eq!(totals(2, 1), (7, 2));
        assert_eq!(totals(2, 1), (7, 2));
        // A new leader knows the status, and not whether the conductor is the one of before.
        state.counted = None;
        let run = state.totalled(&Observation { redone: 2, lost: 9, ..Observation::default() });
        assert_eq!((run.redone, run.lost), (7, 9));
    }
}
