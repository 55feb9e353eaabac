//! Recoveries that people may still want to see.

use std::collections::VecDeque;

use dunlin_protocol::SessionId;
use dunlin_protocol::gateway::Recovery;

/// Recoveries that are kept.
const KEPT_MAX: usize = 100;

/// A recovery, and when it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The session that went on.
    pub session: SessionId,
    /// When the first token after it came, in milliseconds of the gateway's clock.
    pub at_ms: u64,
    /// From what, and what it cost.
    pub recovery: Recovery,
}

/// The last recoveries of a gateway, the newest first.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<Recovered>);

impl Recent {
    /// Remembers one; the oldest is forgotten when there are too many.
    pub fn push(&mut self, recovered: Recovered) {
        self.0.truncate(KEPT_MAX - 1);
        self.0.push_front(recovered);
    }

    /// All that are remembered, the newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Recovered> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::SessionId;
    use dunlin_protocol::gateway::{Disturbance, Recovery};

    use super::{KEPT_MAX, Recent, Recovered};

    #[test]
    fn the_newest_are_remembered() {
        let mut recent = Recent::default();
        let recovery =
            Recovery { reason: Disturbance::PeerLost, answered: 3, stall_ms: 70, replayed_rows: 40 };
        for at_ms in 0..KEPT_MAX as u64 + 5 {
            recent.push(Recovered { session: SessionId(at_ms), at_ms, recovery: recovery.clone() });
        }
        let kept: Vec<u64> = recent.iter().map(|r| r.at_ms).collect();
        assert_eq!((kept.len(), kept[0], kept[KEPT_MAX - 1]), (KEPT_MAX, KEPT_MAX as u64 + 4, 5));
    }
}
