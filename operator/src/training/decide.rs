//! The whole decision about a run, from what is known to what is done. Pure.

use std::time::Duration;

use dunlin_crds::TrainingSwarm;
use dunlin_wire::Role;

use super::conditions::TrainingFacts;
use super::desired::TrainingDesired;
use super::facts::facts;
use super::lifecycle::{Lifecycle, lifecycle, living, pods};
use super::state::RunState;
use super::workers::RunWorkers;
use crate::observe::{PodPhase, WorkerView};
use crate::peers::Observation;
use crate::swarm::{Evidence, Policy};

/// A run with pods is looked at again after this long: its step and loss are written this often.
const PROGRESS: Duration = Duration::from_secs(2);
/// One without pods after this long.
const SETTLED: Duration = Duration::from_secs(60);

/// What to do about a run.
pub type TrainingDecision = crate::swarm::Decision<TrainingFacts, Lifecycle>;

impl Policy for TrainingSwarm {
    fn decide(
        desired: &TrainingDesired,
        evidence: &Evidence<'_>,
        mut state: RunState,
    ) -> Result<(TrainingDecision, RunState), String> {
        let (view, run) = (evidence.view, heard(evidence));
        if let Some(run) = &run {
            state.hear(run, &desired.template, evidence.now);
        }
        let plan = lifecycle(desired, evidence, run.as_ref(), &mut state);
        let workers = match plan {
            Lifecycle::Train => RunWorkers::new(desired, &desired.template, evidence, &mut state),
            Lifecycle::Wait => {
                let template = living(view).map(|w| w.template.clone()).next().unwrap_or_default();
                RunWorkers::new(desired, &template, evidence, &mut state)
            }
            Lifecycle::Clear | Lifecycle::Rest => RunWorkers::default(),
        };
        let mut decision = TrainingDecision {
            facts: facts(desired, evidence, run.as_ref(), &workers, plan, &state),
            unheard: unheard(evidence, &mut state),
            ready_by_kind: workers.peers.ready_by_kind(&desired.pools, &view.workers),
            plan,
            ..TrainingDecision::default()
        };
        for (role, workers) in workers.each() {
            decision.create.extend(workers.roster.create.iter().map(|c| (role, c.clone())));
            decision.delete.extend(workers.roster.delete.iter().cloned());
            decision.events.extend(workers.events.iter().cloned());
        }
        if plan == Lifecycle::Clear {
            // Those that are being deleted already only when their node does not confirm it.
            let left = pods(view).filter(|w| !w.deleting || w.node_gone);
            decision.delete.extend(left.map(WorkerView::deletion));
        }
        Ok((decision, state))
    }

    fn pause(decision: &TrainingDecision, _state: &RunState) -> Duration {
        if decision.plan == Lifecycle::Rest { SETTLED } else { PROGRESS }
    }
}

/// What the conductor says, if one answers; of two, the one that is not about to go.
fn heard(evidence: &Evidence<'_>) -> Option<Observation> {
    let mut conductors: Vec<&WorkerView> = evidence.view.conductors.values().collect();
    conductors.sort_by_key(|w| (w.deleting, w.phase != PodPhase::Running));
    conductors.into_iter().find_map(|w| {
        let answer = evidence.answers.get(&w.name)?;
        let report = answer.report.as_ref();
        report.filter(|_| !answer.is_silent(evidence.now, evidence.silence))?.run.clone()
    })
}

/// Pods that ran when an earlier leader wrote that the run trains, and that this one has not heard yet. Trainers say nothing to anybody.
fn unheard(evidence: &Evidence<'_>, state: &mut RunState) -> usize {
    let waits = state.taken_over && !evidence.is_late();
    let roles = [Role::Conductor, Role::Peer].into_iter().filter(|_| waits);
    let running =
        roles.flat_map(|role| evidence.view.of(role).values()).filter(|w| w.phase == PodPhase::Running);
    let unheard = running.filter(|w| !evidence.is_heard(&w.name)).count();
    state.taken_over &= unheard > 0;
    unheard
}

#[cfg(test)]
mod tests;
