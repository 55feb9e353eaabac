//! What is told about a swarm: the facts that both kinds have, and those of one kind.

use dunlin_crds::PeersStatus;

/// What the conditions of a swarm are made from, and most of its status. `Kind`: what only its kind has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InferenceFacts<Kind> {
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.suspend`.
    pub suspended: bool,
    /// Peers planned.
    pub peers_desired: u32,
    /// Peers that do what they are for.
    pub peers_ready: u32,
    /// Pods of the pool that `/scale` sets the size of.
    pub replicas: u32,
    /// Pods that still run, of any role.
    pub pods: u32,
    /// Pods from before the last change of the manifest or of the image that are still to be replaced.
    pub outdated: u32,
    /// A problem the user has to fix: (CamelCase reason, what to do).
    pub trouble: Option<(String, String)>,
    /// What is being waited for, in Kubernetes' or a worker's words.
    pub waiting: Option<String>,
    /// What only its kind has.
    pub kind: Kind,
}

impl<Kind: Default> InferenceFacts<Kind> {
    /// Those of a swarm that nobody has looked at.
    #[must_use]
    pub fn unseen(generation: i64, suspended: bool, peers_desired: u32, kind: Kind) -> Self {
        // Suspended or not: that nothing is left has not been seen.
        Self { generation, suspended, peers_desired, pods: 1, kind, ..Self::default() }
    }
}

impl<Kind> InferenceFacts<Kind> {
    /// How many peers are ready, in words.
    #[must_use]
    pub fn peers_in_words(&self) -> String {
        format!("{} of {} peers ready", self.peers_ready, self.peers_desired)
    }

    /// What else is still to come, in words: replacements, and what is waited for.
    pub fn to_come(&self) -> impl Iterator<Item = String> {
        let outdated = format!("{} pods are from before the last change and replaced in turn", self.outdated);
        (self.outdated > 0).then_some(outdated).into_iter().chain(self.waiting.clone())
    }

    /// The peers for the status. `ready_by_kind`: on preemptible nodes, and on others.
    #[must_use]
    pub fn peers(&self, ready_by_kind: (u32, u32)) -> PeersStatus {
        PeersStatus {
            desired: self.peers_desired,
            ready: self.peers_ready,
            by_spot: ready_by_kind.0,
            by_on_demand: ready_by_kind.1,
            display: format!("{}/{}", self.peers_ready, self.peers_desired),
        }
    }

    /// The same but for a change.
    #[cfg(test)]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}
