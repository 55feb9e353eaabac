//! What would be wrong with a swarm, planted to see that the checks find it.

/// A mistake that no swarm may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Peers pass sessions on without their adapter.
    LosesAdapters,
    /// An engine frees no page of a session that ends.
    KeepsPages,
    /// An engine counts pages that are given back twice.
    FreesTwice,
    /// Batches are twice as large as there is memory for.
    IgnoresBudget,
}
