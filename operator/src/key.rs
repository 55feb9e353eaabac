//! Which swarm: its kind, its namespace and its name.

/// Kind of a swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It serves a model.
    Inference,
    /// It trains one.
    Training,
}

impl Kind {
    /// As Kubernetes knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inference => "InferenceSwarm",
            Self::Training => "TrainingSwarm",
        }
    }

    /// The kind that Kubernetes knows as `name`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Inference, Self::Training].into_iter().find(|kind| kind.name() == name)
    }
}

/// Which swarm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SwarmKey {
    /// InferenceSwarm or TrainingSwarm.
    pub kind: Kind,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}
