//! What a pod of a run is for.

/// What a pod is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    /// Keeps the ledger.
    Conductor,
    /// Holds a stage.
    Peer,
    /// Reads data.
    Trainer,
}

impl Post {
    /// As Events call it.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Conductor => "Conductor",
            Self::Peer => "Peer",
            Self::Trainer => "Trainer",
        }
    }
}
