//! What a pass of the operator has done so far, as far as rules of its order need it.

use dunlin_swarm::Epoch;

use crate::talks::Talks;

/// What a pass has done so far.
#[derive(Debug, Default)]
pub(crate) struct PassSoFar {
    /// Orders that had been given when it began.
    pub orders: u64,
    /// The topology that it has published.
    pub published: Option<Epoch>,
    /// It has deleted a pod.
    pub has_deleted: bool,
    /// It has said what came of it.
    pub has_told: bool,
}

impl PassSoFar {
    /// Of a pass that begins.
    pub fn of(talks: &Talks) -> Self {
        Self { orders: talks.orders(), ..Self::default() }
    }

    /// The topology of `epoch` is published, and the operator knows it.
    pub fn published(&mut self, epoch: Epoch) {
        self.published = Some(epoch);
    }
}
