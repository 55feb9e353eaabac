//! What is known about a run, and what must not be said twice.

use std::collections::BTreeMap;

use dunlin_swarm::{Epoch, Topology};

/// What is known about a run.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// What was published, by epoch.
    pub published: BTreeMap<Epoch, Topology>,
    /// What was published last.
    pub epoch: Epoch,
    pub made: u32,
    pub deleted: u32,
    /// Nothing was lost since everything was as planned.
    pub unharmed: bool,
    /// What was lost or cut off may still be replaced until then, although everything is as planned.
    pub harmed_until_ms: u64,
    /// Since when some layer has no server.
    pub unserved_since_ms: Option<u64>,
    /// Since when everything is as planned, and what was made, deleted and published by then.
    pub settled: Option<(u64, u32, u32, Epoch)>,
    /// Since when no answer runs or waits.
    pub answered_ms: Option<u64>,
    /// The last change of the swarm's model.
    pub model_change: Option<ModelChange>,
    pub over: bool,
}

/// A change of the swarm's model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelChange {
    pub at_ms: u64,
    /// Incidents until then, this one among them.
    pub incidents: u32,
    /// Everything was as planned.
    pub from_calm: bool,
}

impl Record {
    /// The run goes on.
    pub fn is_open(&self) -> bool {
        !self.over
    }

    /// Somebody is handed `topology`; what is wrong with that. A new leader knows of nothing but what is published: what is not, and is obeyed, shares
    /// its epoch with another one as soon as somebody else leads.
    pub fn obeyed(&self, topology: &Topology) -> Option<String> {
        match self.published.get(&topology.epoch) {
            Some(known) if known == topology => None,
            Some(_) => Some(format!("there are two topologies of epoch {}", topology.epoch)),
            None => Some(format!("epoch {} is handed out, and nobody has published it", topology.epoch)),
        }
    }

    /// `topology` is published; what is wrong with that.
    pub fn published(&mut self, topology: &Topology) -> Option<String> {
        let before = std::mem::replace(&mut self.epoch, topology.epoch);
        let known = self.published.entry(topology.epoch).or_insert_with(|| topology.clone());
        (before > topology.epoch || *known != *topology)
            .then(|| format!("epoch {} is published after epoch {before}", topology.epoch))
    }

    /// Some stage is lost, or will be.
    pub fn harm(&mut self) {
        self.unharmed = false;
    }

    /// Somebody does not reach a stage until then, and it may be replaced.
    pub fn harm_until(&mut self, until_ms: u64) {
        self.unharmed = false;
        self.harmed_until_ms = self.harmed_until_ms.max(until_ms);
    }

    pub fn made(&mut self) {
        self.made += 1;
    }

    pub fn deleted(&mut self) {
        self.deleted += 1;
    }
}
