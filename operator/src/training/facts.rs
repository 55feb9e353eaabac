//! What is told about a run, from what is known and what was decided about its pods. Pure.

use std::time::Duration;

use super::conditions::TrainingFacts;
use super::desired::TrainingDesired;
use super::lifecycle::{Lifecycle, degraded, finished, pods};
use super::state::RunState;
use super::workers::RunWorkers;
use crate::peers::{Observation, RunPhase};
use crate::pools::scaled;
use crate::roster::Readiness;
use crate::status::facts::InferenceFacts;
use crate::swarm::Evidence;

/// A run whose conductor is being replaced still counts as training for this long.
const CONDUCTOR_PATIENCE: Duration = Duration::from_secs(60);

/// What the conditions are made from. `run`: what the conductor says, if one answers.
pub(super) fn facts(
    desired: &TrainingDesired,
    evidence: &Evidence<'_>,
    run: Option<&Observation>,
    workers: &RunWorkers,
    lifecycle: Lifecycle,
    state: &RunState,
) -> InferenceFacts<TrainingFacts> {
    let view = evidence.view;
    let training = run.is_some_and(|run| run.phase == RunPhase::Training);
    let pending = pods(view).find_map(|w| Some(format!("a pod waits: {}", w.blocked.as_ref()?.why)));
    let crashing = workers.each().into_iter().find_map(|(_, workers)| workers.held.clone());
    let message = run.map(|run| run.message.clone()).filter(|message| !message.is_empty());
    let trained = state.trained.is_some_and(|at| evidence.now.duration_since(at) < CONDUCTOR_PATIENCE);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let wanted = matches!(lifecycle, Lifecycle::Train | Lifecycle::Wait);
    InferenceFacts {
        generation: desired.generation,
        suspended: desired.suspended,
        peers_desired: if wanted { desired.peers() } else { 0 },
        peers_ready: workers.peers.ready(),
        replicas: scaled(&desired.pools).map_or(0, |pool| view.replicas(pool)),
        pods: count(pods(view).count()),
        outdated: count(workers.each().into_iter().map(|(_, workers)| workers.roll.outdated.len()).sum()),
        trouble: trouble(desired, evidence, training, workers, state),
        waiting: crashing.or(pending).or(message),
        kind: TrainingFacts {
            finished: finished(desired, state),
            waits: lifecycle == Lifecycle::Wait,
            ends: lifecycle == Lifecycle::Clear,
            step: state.last.as_ref().map_or(0, |run| run.step),
            steps: desired.steps,
            training,
            trained,
            trainers_desired: if wanted { desired.trainers.iter().map(|p| p.peers).sum() } else { 0 },
            trainers_ready: workers.trainers.ready(),
            degraded: degraded(run, state).map(|d| (d.reason.clone(), d.message.clone())),
        },
    }
}

/// What a user must mend: (CamelCase reason, what to do).
fn trouble(
    desired: &TrainingDesired,
    evidence: &Evidence<'_>,
    training: bool,
    workers: &RunWorkers,
    state: &RunState,
) -> Option<(String, String)> {
    let failed = state.failed.as_ref().filter(|(_, template)| *template == desired.template);
    let failed = failed.map(|(message, _)| ("TrainingFailed".to_owned(), message.clone()));
    let reported = || {
        workers.peers.roster.readiness.iter().find_map(|(name, readiness)| {
            let current = matches!(readiness, Readiness::Ready | Readiness::Coming);
            evidence.report(name).filter(|_| current)?.error.clone()
        })
    };
    let to_mend = || workers.each().into_iter().find_map(|(_, workers)| workers.to_mend.clone());
    // A pod that is missing while the run goes on degrades it.
    let hopeless = || {
        pods(evidence.view)
            .filter_map(|w| w.blocked.as_ref().filter(|_| !training))
            .find_map(|b| Some((b.reason?.to_owned(), format!("a pod cannot start: {}", b.why))))
    };
    failed.or_else(reported).or_else(to_mend).or_else(hopeless)
}
