//! Where a run is in its life: it trains; it waits for a checkpoint because its pods are to go; it is cleared, all pods go; it rests, no pod is
//! left and none is wanted. A changed manifest and `suspend` take the same way: wait, clear, then train again or rest. Pure.

use std::time::Duration;

use super::desired::TrainingDesired;
use super::state::{RunState, Stop};
use crate::observe::{PodPhase, SwarmView, WorkerView};
use crate::peers::observation::{CHECKPOINTS_FAILING, Degraded};
use crate::peers::{Observation, RunPhase};
use crate::swarm::Evidence;

/// Pods that are to go wait so long for a conductor that answers: it, or the one in its place, has a checkpoint written.
const UNHEARD_MAX: Duration = Duration::from_secs(60);
/// And this long for the checkpoint, unless the conductor says that its destination does not take it: that is waited for.
const STOP_MAX: Duration = Duration::from_secs(300);
/// What is done about the pods of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifecycle {
    /// Keep all pods there that are wanted.
    #[default]
    Train,
    /// Keep those that are there until all that was trained is in a checkpoint.
    Wait,
    /// Delete all.
    Clear,
    /// None is there and none is wanted.
    Rest,
}

/// Pods that run or will; one on a node that is gone cannot be waited for.
pub(super) fn living(view: &SwarmView) -> impl Iterator<Item = &WorkerView> {
    pods(view).filter(|w| !matches!(w.phase, PodPhase::Lost(_)))
}

/// Every pod.
pub(super) fn pods(view: &SwarmView) -> impl Iterator<Item = &WorkerView> {
    view.trainers.values().chain(view.workers.values()).chain(view.conductors.values())
}

/// All steps asked for are done.
pub(super) fn finished(desired: &TrainingDesired, state: &RunState) -> bool {
    state.finished.is_some_and(|steps| steps >= desired.steps)
}

/// What is to be done now. `run`: what the conductor says, if one answers.
pub(super) fn lifecycle(
    desired: &TrainingDesired,
    evidence: &Evidence<'_>,
    run: Option<&Observation>,
    state: &mut RunState,
) -> Lifecycle {
    let done = finished(desired, state);
    if living(evidence.view).next().is_none() {
        state.stop = None;
        let rests = desired.suspended || done;
        return match (rests, pods(evidence.view).next()) {
            (true, Some(_)) => Lifecycle::Clear,
            (true, None) => Lifecycle::Rest,
            (false, _) => Lifecycle::Train,
        };
    }
    let phase = run.map(|run| run.phase);
    let outdated = living(evidence.view).any(|w| w.template != desired.template);
    // A suspension that has begun is carried through, whatever the manifest says by now.
    let ending = matches!(phase, Some(RunPhase::Suspending | RunPhase::Suspended));
    if !(desired.suspended || done || outdated || ending || state.stop.is_some()) {
        return Lifecycle::Train;
    }
    let unsaved = state.has_unsaved_steps();
    let failing = degraded(run, state).is_some_and(|d| d.reason == CHECKPOINTS_FAILING);
    let stop = state.stop.get_or_insert(Stop { since: evidence.now, unheard: None, released: false });
    stop.unheard = if phase.is_some() { None } else { stop.unheard.or(Some(evidence.now)) };
    if failing {
        stop.since = evidence.now;
    }
    let saved = match phase {
        Some(RunPhase::Suspended | RunPhase::Succeeded | RunPhase::Failed) => true,
        Some(RunPhase::Training | RunPhase::Suspending) => false,
        Some(RunPhase::Starting) | None => !unsaved,
    };
    let unheard = stop.unheard.is_some_and(|at| evidence.now.duration_since(at) >= UNHEARD_MAX);
    stop.released |= done || saved || unheard || evidence.now.duration_since(stop.since) >= STOP_MAX;
    if stop.released { Lifecycle::Clear } else { Lifecycle::Wait }
}

/// What the conductor says is not as it should be, or said until it was replaced.
pub(super) fn degraded<'a>(run: Option<&Observation>, state: &'a RunState) -> Option<&'a Degraded> {
    run.and(state.last.as_ref())?.degraded.as_ref()
}
