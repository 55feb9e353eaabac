//! What was measured for the planner.

use crate::training::ids::StageId;

/// What was measured for the planner.
pub struct Measured {
    /// Time in which the state of each stage was fetched.
    fetch_ms: Vec<u64>,
    /// The last edge of a step, and the time from the one before.
    edge_ms: Option<u64>,
    step_ms: Option<u64>,
    /// Time that peers that are gone were there, and how many they are.
    lived_ms: u64,
    gone: u64,
}

impl Measured {
    /// As long as nothing was measured, a state is fetched in so many milliseconds.
    pub fn new(stages: u32, fetch_ms: u64) -> Self {
        Self { fetch_ms: vec![fetch_ms; stages as usize], edge_ms: None, step_ms: None, lived_ms: 0, gone: 0 }
    }

    /// A step was decided.
    pub fn edge(&mut self, now_ms: u64) {
        if let Some(before) = self.edge_ms.replace(now_ms) {
            self.step_ms = Some(now_ms - before);
        }
    }

    /// When the last step was decided.
    pub fn edge_ms(&self) -> Option<u64> {
        self.edge_ms
    }

    /// How long the last step took.
    pub fn step_ms(&self) -> Option<u64> {
        self.step_ms
    }

    /// Was a step decided within the time that the last one took, or `least_ms`?
    pub fn is_after_edge(&self, now_ms: u64, least_ms: u64) -> bool {
        let patience = self.step_ms.unwrap_or_default().max(least_ms);
        self.edge_ms.is_some_and(|at| now_ms < at + patience)
    }

    /// The state of a stage was fetched in so many milliseconds.
    pub fn fetched(&mut self, stage: StageId, took_ms: u64) {
        if let Some(usual) = self.fetch_ms.get_mut(stage as usize) {
            *usual = (*usual + took_ms) / 2;
        }
    }

    /// Time in which the state of each stage is fetched.
    pub fn fetch_ms(&self) -> &[u64] {
        &self.fetch_ms
    }

    /// A peer is gone that was there for so long.
    pub fn peer_gone(&mut self, lived_ms: u64) {
        self.lived_ms += lived_ms;
        self.gone += 1;
    }

    /// How long a peer lives, when those that are there are so old altogether, and one was thought to live for so long.
    pub fn life_ms(&self, present_ms: u64, thought_ms: u64) -> u64 {
        (thought_ms + self.lived_ms + present_ms) / (1 + self.gone)
    }
}
