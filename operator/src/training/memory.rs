//! What the leader remembers about a run between reconciliations. What must survive it is in the status and in checkpoints.

use std::collections::BTreeSet;

use dunlin_crds::TrainingSwarm;
use tokio::time::Instant;

use crate::apply::Applied;
use crate::context::Created;
use crate::peers::{Checkpoint, Observation, RunPhase};
use crate::status::conditions::is_true;
use crate::trust::Trust;
use crate::turnover::Turnover;

/// Memory of one run.
#[derive(Default)]
pub struct Memory {
    /// Certificates, once the authority is there.
    pub trust: Option<Trust>,
    /// What the conductor said last; before it has said anything, what the status says.
    pub last: Option<Observation>,
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
    /// Pods created that the watch may not have seen.
    pub created: Created,
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

    /// Updates that no checkpoint has.
    #[must_use]
    pub fn has_unsaved_steps(&self) -> bool {
        self.last.as_ref().is_some_and(|l| l.step > l.last_checkpoint.as_ref().map_or(0, |c| c.step))
    }
}
