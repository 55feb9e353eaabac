//! What a worker says of itself.

use std::collections::BTreeSet;
use std::time::Duration;

use dunlin_swarm::{Epoch, Layers, ModelSizes, NumericsClass};
use tokio::time::Instant;

use super::observation::Observation;

/// What a worker is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkerState {
    /// Reads the model's header.
    #[default]
    Starting,
    /// Reads its layers.
    Loading,
    /// Serves.
    Ready,
    /// Serves and is about to go.
    Draining,
    /// Cannot serve; see the error.
    Failed,
}

/// One answer of a worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerReport {
    /// What it is doing.
    pub state: WorkerState,
    /// Newest epoch it obeys.
    pub epoch: Epoch,
    /// Layers it can execute.
    pub held: Vec<Layers>,
    /// Measured rows per second through one layer; 0 while not measured.
    pub rows_per_s_per_layer: f64,
    /// The model, once its header is read.
    pub model: Option<ModelSizes>,
    /// Digest of its model's source; empty when it does not say it.
    pub model_digest: String,
    /// Which bits it computes, if it says so.
    pub arithmetic: Option<NumericsClass>,
    /// Room for weights and KV cache in bytes, once the model's header is read.
    pub room_bytes: Option<u64>,
    /// (reason, message) of what a user must mend.
    pub error: Option<(String, String)>,
    /// Peers that a gateway found lost.
    pub lost: BTreeSet<String>,
    /// Classes of peers that answers of a gateway need, which end with no other than they have begun with, and that the next one would take.
    pub needed: BTreeSet<Option<NumericsClass>>,
    /// How far a conductor's run is.
    pub run: Option<Observation>,
}

impl WorkerReport {
    /// Whether it differs from `old` in what plans or the status are made from; sessions and small changes of speed do not count.
    #[must_use]
    pub fn is_news_after(&self, old: &Self) -> bool {
        old.state != self.state
            || old.epoch != self.epoch
            || old.held != self.held
            || old.model != self.model
            || old.error != self.error
            || old.lost != self.lost
            || old.needed != self.needed
            || old.run.as_ref().map(Observation::without_progress)
                != self.run.as_ref().map(Observation::without_progress)
    }
}

/// What is known about one worker.
#[derive(Clone, Debug, Default)]
pub struct WorkerRecord {
    /// Its newest report.
    pub report: Option<WorkerReport>,
    /// When it last answered.
    pub at: Option<Instant>,
    /// It said Ready at some time.
    pub was_ready: bool,
    /// How fast it computes beside the others of its swarm, 1 being usual; `None` while too little is known.
    pub speed: Option<f64>,
}

impl WorkerRecord {
    /// Takes a report; whether that is news: after silence, or in what it says.
    pub fn take(&mut self, report: WorkerReport, silence: Duration, now: Instant) -> bool {
        let news =
            self.is_silent(now, silence) || self.report.as_ref().is_none_or(|old| report.is_news_after(old));
        self.was_ready |= report.state == WorkerState::Ready;
        self.at = Some(now);
        self.report = Some(report);
        news
    }

    /// It was Ready once and has not answered for `limit`.
    #[must_use]
    pub fn is_silent(&self, now: Instant, limit: Duration) -> bool {
        self.was_ready && self.at.is_some_and(|at| now.duration_since(at) >= limit)
    }
}
