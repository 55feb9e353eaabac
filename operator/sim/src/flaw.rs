//! Faults that no operator may have. A simulation that does not notice them checks nothing.

use std::collections::BTreeMap;

use dunlin_operator::observe::{PodPhase, SwarmView};
use dunlin_operator::peers::{WorkerRecord, WorkerState};
use dunlin_swarm::Topology;

/// A fault of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It takes every pod that runs for one that has all that it was given.
    TrustsPods,
    /// A pod whose node has notice is one that stays.
    IgnoresNotice,
    /// A new leader does not read what was published.
    Forgets,
    /// It hands out what it could not publish.
    HandsOut,
}

impl Flaw {
    /// What an operator with this flaw sees of a cluster like this.
    pub(crate) fn shown(
        self,
        mut view: SwarmView,
        mut answers: BTreeMap<String, WorkerRecord>,
        topology: Option<&Topology>,
    ) -> (SwarmView, BTreeMap<String, WorkerRecord>) {
        match self {
            Self::TrustsPods => {
                for worker in view.workers.values().filter(|worker| worker.phase == PodPhase::Running) {
                    let given = topology.and_then(|topology| topology.peer(&worker.name.as_str().into()));
                    let report = answers.get_mut(&worker.name).and_then(|answer| answer.report.as_mut());
                    if let (Some(given), Some(report)) = (given, report) {
                        (report.state, report.held) = (WorkerState::Ready, given.hold());
                    }
                }
            }
            Self::IgnoresNotice => {
                for worker in
                    view.workers.values_mut().filter(|worker| matches!(worker.phase, PodPhase::Draining(_)))
                {
                    worker.phase = PodPhase::Running;
                }
            }
            Self::Forgets | Self::HandsOut => {}
        }
        (view, answers)
    }
}
