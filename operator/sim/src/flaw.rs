//! Faults that no operator may have. A simulation that does not notice them checks nothing.

use std::collections::BTreeMap;

use dunlin_operator::peers::{WorkerRecord, WorkerState};
use dunlin_swarm::Topology;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;

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
    /// Its pods are not told of which model they are.
    TellsNoModel,
}

impl Flaw {
    /// What an operator hears of workers that takes them to have what `topology` gives them.
    pub(crate) fn trust(answers: &mut BTreeMap<String, WorkerRecord>, topology: &Topology) {
        for (name, answer) in answers {
            let given = topology.peer(&name.as_str().into());
            let report = answer.report.as_mut().filter(|report| report.state != WorkerState::Draining);
            if let (Some(given), Some(report)) = (given, report) {
                (report.state, report.held) = (WorkerState::Ready, given.hold());
            }
        }
    }

    /// What an operator sees of a node of which it does not read the taints.
    pub(crate) fn forget_notice(event: &mut Event<Node>) {
        if let Event::Apply(node) | Event::InitApply(node) = event {
            node.spec = None;
        }
    }
}
