//! What stages are needed for, beside their place in a layout: whether a swarm that serves can do without some of them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::{NumericsClass, layer_set};

use super::desired::InferenceDesired;
use crate::observe::WorkerView;
use crate::peers::WorkerState;
use crate::swarm::Evidence;

/// Who can execute each layer now, by reports of workers: what is read already serves while more is being read.
pub(super) fn held(evidence: &Evidence<'_>, counts: impl Fn(&str) -> bool) -> BTreeMap<u32, u32> {
    let mut holders = BTreeMap::new();
    for name in evidence.view.workers.keys().filter(|name| counts(name)) {
        let Some(report) = evidence.report(name) else { continue };
        if matches!(report.state, WorkerState::Ready | WorkerState::Loading | WorkerState::Draining) {
            for layer in layer_set(&report.held) {
                *holders.entry(layer).or_insert(0) += 1;
            }
        }
    }
    holders
}

/// What the stages of a swarm hold, and for whom.
#[derive(Clone, Copy)]
pub(super) struct Holdings<'a> {
    /// What is wanted.
    pub desired: &'a InferenceDesired,
    /// What is known.
    pub evidence: &'a Evidence<'a>,
    /// Layers of the model; 0 while unknown.
    pub layers: u32,
}

impl Holdings<'_> {
    /// An answer can begin: stages of one arithmetic have all layers together. Others may have been lost and replaced by newer ones.
    pub fn serve(&self) -> bool {
        let mut classes = self.classes().into_iter();
        self.layers > 0 && classes.any(|class| self.has_all(|worker| self.is_of(worker, class)))
    }

    /// Every layer has a holder without `leaving`, and no answer that has begun needs one of them.
    pub fn suffice_without(&self, leaving: &BTreeSet<&str>) -> bool {
        let stays = |worker: &WorkerView| !leaving.contains(worker.name.as_str());
        self.layers > 0 && self.has_all(stays) && !self.is_bound_to(leaving)
    }

    /// No answer goes from one arithmetic to another. So those that have begun with one need peers of it, as long as these have all layers
    /// together: then some of `leaving` must stay until such answers are over. Each ends in time: the gateway has a limit for it.
    pub fn is_bound_to(&self, leaving: &BTreeSet<&str>) -> bool {
        let classes = self.classes();
        // What a gateway that has not answered this leader yet may need is not known.
        if classes.len() > 1 && self.has_silent_gateway() {
            return leaving.iter().any(|name| self.evidence.report(name).is_some());
        }
        self.needed().intersection(&classes).any(|&class| {
            let stays = |worker: &WorkerView| !leaving.contains(worker.name.as_str());
            self.has_all(|worker| self.is_of(worker, class))
                && !self.has_all(|worker| self.is_of(worker, class) && stays(worker))
        })
    }

    /// Those that `counts` have all layers together.
    fn has_all(&self, counts: impl Fn(&WorkerView) -> bool) -> bool {
        let workers = &self.evidence.view.workers;
        let counts = |name: &str| workers[name].template == self.desired.digest && counts(&workers[name]);
        held(self.evidence, counts).len() == self.layers as usize
    }

    /// By its own word.
    fn is_of(&self, worker: &WorkerView, class: Option<NumericsClass>) -> bool {
        self.evidence.report(&worker.name).is_some_and(|report| report.arithmetic == class)
    }

    /// Of all stages.
    fn classes(&self) -> BTreeSet<Option<NumericsClass>> {
        self.classes_of(self.evidence.view.workers.keys().map(String::as_str))
    }

    /// Of these stages, by their own word.
    pub fn classes_of<'n>(&self, names: impl Iterator<Item = &'n str>) -> BTreeSet<Option<NumericsClass>> {
        names.filter_map(|name| Some(self.evidence.report(name)?.arithmetic)).collect()
    }

    /// Classes that gateways need.
    fn needed(&self) -> BTreeSet<Option<NumericsClass>> {
        let reports = self.evidence.view.gateways.keys().filter_map(|name| self.evidence.report(name));
        reports.flat_map(|report| report.needed.iter().copied()).collect()
    }

    fn has_silent_gateway(&self) -> bool {
        let gateways = self.evidence.view.gateways.values();
        !self.evidence.is_late() && gateways.filter(|g| g.running).any(|g| !self.evidence.is_heard(&g.name))
    }
}
