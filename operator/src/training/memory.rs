//! What the leader remembers about a run between reconciliations. What must survive it is in the status and in checkpoints.

use std::collections::BTreeSet;

use dunlin_crds::TrainingSwarm;
use tokio::time::Instant;

use crate::apply::Applied;
use crate::making::Making;
use crate::peers::{Checkpoint, Observation, RunPhase};
use crate::status::conditions::is_true;
use crate::trust::Trust;
use crate::turnover::Turnover;

/// Memory of one run.
#[derive(Default)]
pub struct Memory {
    /// Certificates, once the authority is there.
    pub trust: Option<Trust>,
    /// The Secret with the authority is as it was.
    pub kept: bool,
    /// What the conductor said last; before it has said anything, what the status says.
    pub last: Option<Observation>,
    /// What the present conductor has counted: contributions redone, peers lost, moves.
    counted: Option<[u64; 3]>,
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
    /// Objects written.
    pub applied: Applied,
    /// Pods in the making.
    pub making: Making,
    /// Reconciliations that failed in a row.
    pub failures: u32,
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

impl Memory {
    /// Takes over from an earlier leader, by what it wrote into the status.
    pub fn restore(&mut self, swarm: &TrainingSwarm) {
        let Some(status) = swarm.status.as_ref().filter(|_| self.last.is_none()) else { return };
        if is_true(&status.conditions, "Succeeded") {
            self.finished = Some(status.step.max(status.steps));
        }
        let checkpoint = status.last_checkpoint.as_ref();
        self.last = Some(Observation {
            phase: RunPhase::Starting,
            step: status.step,
            steps: status.steps,
            loss: status.loss,
            validation_loss: status.validation_loss,
            redone: status.redone,
            lost: status.lost,
            moves: status.moves,
            last_checkpoint: checkpoint.map(|c| Checkpoint {
                step: c.step,
                path: c.path.clone(),
                sha256: c.sha256.clone(),
            }),
            ..Observation::default()
        });
    }

    /// `run` with the counts of the whole run. A conductor counts from its own start; what came before is in `last`.
    pub fn totalled(&mut self, run: &Observation) -> Observation {
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
        let mut memory = Memory::default();
        let mut told = |redone: u64, lost: u64| {
            let run = memory.totalled(&Observation { redone, lost, ..Observation::default() });
            memory.last = Some(run.clone());
            (run.redone, run.lost)
        };
        assert_eq!(told(3, 1), (3, 1));
        assert_eq!(told(5, 1), (5, 1));
        assert_eq!(told(0, 0), (5, 1), "a new conductor");
        assert_eq!(told(2, 1), (7, 2));
        assert_eq!(told(2, 1), (7, 2));
        // A new leader knows the status, and not whether the conductor is the one of before.
        memory.counted = None;
        let run = memory.totalled(&Observation { redone: 2, lost: 9, ..Observation::default() });
        assert_eq!((run.redone, run.lost), (7, 9));
    }
}
