//! What was measured for the planner.

/// What was measured for the planner.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Time in which the state of each stage was fetched.
    pub(super) fetch_ms: Vec<u64>,
    /// The last edge of a step, and the time from the one before.
    pub(super) edge_ms: Option<u64>,
    pub(super) step_ms: Option<u64>,
    /// Time that peers that are gone were there, and how many they are.
    pub(super) lived_ms: u64,
    pub(super) gone: u64,
}

impl Measured {
    pub(super) fn new(stages: u32, fetch_ms: u64) -> Self {
        Self { fetch_ms: vec![fetch_ms; stages as usize], edge_ms: None, step_ms: None, lived_ms: 0, gone: 0 }
    }

    /// Was a step decided within the time that the last one took, or `least_ms`?
    pub(super) fn is_after_edge(&self, now_ms: u64, least_ms: u64) -> bool {
        let patience = self.step_ms.unwrap_or_default().max(least_ms);
        self.edge_ms.is_some_and(|at| now_ms < at + patience)
    }

    /// When the last step was decided.
    pub(super) fn edge_ms(&self) -> Option<u64> {
        self.edge_ms
    }

    pub(super) fn peer_gone(&mut self, lived_ms: u64) {
        self.lived_ms += lived_ms;
        self.gone += 1;
    }
}
