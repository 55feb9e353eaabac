//! What is known while the conductor asks peers what they hold.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

/// Since when peers report, and whether what they hold was looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathering {
    pub(super) since_ms: Option<u64>,
    /// Nobody is asked to load before that.
    pub(super) not_before_ms: u64,
    /// What peers hold is of no use: everybody loads the checkpoint.
    pub(super) restore: bool,
    /// Those who were there before, when that is known: nobody else is waited for.
    pub(super) awaited: BTreeSet<PeerName>,
    /// A manifest that is being written is waited for until then.
    pub(super) seal_until_ms: u64,
}

impl Gathering {
    /// Does everybody load a checkpoint, or the first values?
    pub(super) fn restores(&self) -> bool {
        self.restore
    }

    pub(super) fn seen(&mut self, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
    }

    pub(super) fn again(&mut self, at_ms: u64) {
        self.not_before_ms = at_ms;
    }
}
