//! What disturbs sessions, and how they went on.

use std::fmt;

/// What disturbed a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disturbance {
    /// The gateway lost a peer of its route.
    PeerLost,
    /// A stage could not reach the next one.
    LinkDown,
    /// A peer of its route is about to go.
    Draining,
    /// A peer of its route is far slower than another one would be.
    Slow,
    /// No sign of life came from any stage, although it waited for nobody, or a token was lost on the way.
    Stalled,
    /// A stage lacked rows that the route supposed to be there.
    NeedReplay,
    /// A stage no longer held its layers, or not yet.
    NotHolding,
    /// A stage did not have the session's adapter yet.
    NoAdapter,
    /// A stage gave its KV pages to older sessions, or had as many sessions as it takes.
    NoPages,
}

impl Disturbance {
    /// Every one of them.
    pub const ALL: [Self; 9] = [
        Self::PeerLost,
        Self::LinkDown,
        Self::Draining,
        Self::Slow,
        Self::Stalled,
        Self::NeedReplay,
        Self::NotHolding,
        Self::NoAdapter,
        Self::NoPages,
    ];

    /// Its name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeerLost => "PeerLost",
            Self::LinkDown => "LinkDown",
            Self::Draining => "Draining",
            Self::Slow => "Slow",
            Self::Stalled => "Stalled",
            Self::NeedReplay => "NeedReplay",
            Self::NotHolding => "NotHolding",
            Self::NoAdapter => "NoAdapter",
            Self::NoPages => "NoPages",
        }
    }

    /// May a peer be to blame without knowing it? What the other disturbances come from is known.
    pub(super) fn is_unexplained(self) -> bool {
        matches!(self, Self::Stalled | Self::NeedReplay)
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A session that went on after it was disturbed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// What disturbed it first.
    pub reason: Disturbance,
    /// Tokens of the answer that were there when it was disturbed.
    pub answered: u32,
    /// From the disturbance to the next token.
    pub stall_ms: u64,
    /// Rows that were computed again, over all hops.
    pub replayed_rows: u64,
}

/// A disturbance that is not over yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disturbed {
    pub since_ms: u64,
    pub reason: Disturbance,
    /// Rows that the attempts since then compute again.
    pub rows: u64,
}
