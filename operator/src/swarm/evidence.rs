//! What a decision about a swarm is made from, beside its manifest.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::{SwarmView, WorkerView};
use crate::peers::WorkerRecord;
use crate::peers::report::WorkerReport;
use crate::roster::{LOADING_PATIENCE, RoleEvidence};

/// What is known about a swarm at one moment.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// Pods.
    pub view: &'a SwarmView,
    /// Reports.
    pub answers: &'a BTreeMap<String, WorkerRecord>,
    /// When this leader first looked at the swarm.
    pub since: Instant,
    /// Now.
    pub now: Instant,
    /// Silence that means loss.
    pub silence: Duration,
}

impl<'a> Evidence<'a> {
    /// What is known of `workers`, as long as nothing is out of the ordinary with them.
    #[must_use]
    pub fn of(&self, workers: &'a BTreeMap<String, WorkerView>) -> RoleEvidence<'a> {
        RoleEvidence::plain(workers, self.answers, self.now, self.silence)
    }

    /// The newest report of a worker.
    #[must_use]
    pub fn report(&self, name: &str) -> Option<&'a WorkerReport> {
        self.answers.get(name)?.report.as_ref()
    }

    /// It said Ready at some time.
    #[must_use]
    pub fn was_ready(&self, name: &str) -> bool {
        self.answers.get(name).is_some_and(|answer| answer.was_ready)
    }

    /// It has said something to this leader.
    #[must_use]
    pub fn is_heard(&self, name: &str) -> bool {
        self.answers.get(name).is_some_and(|answer| answer.at.is_some())
    }

    /// Whoever has not answered this leader by now has had the time.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.now.duration_since(self.since) >= self.silence * LOADING_PATIENCE
    }
}
