//! What to replay.

use serde::Serialize;

/// A peer with a notice stops this long before its end, to hand over its gradient sums.
pub const HANDOVER_MS: u64 = 5_000;

/// Who decides where peers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The planner, as in a run.
    Dunlin,
    /// Peers go to a random stage, from the start on, and stay: what a swarm without rebalancing does.
    None,
}

/// What to replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Options {
    /// Stages of the pipeline.
    pub stages: usize,
    /// Time in which a peer fetches one stage's state.
    pub download_ms: u64,
    /// How long before a loss the peer is told; 0: never.
    pub notice_ms: u64,
    /// Length of a step: peers change their stage at its edges.
    pub step_ms: u64,
    /// States beside its own that a peer has memory for.
    pub room: usize,
    /// Runs with different seeds, over which the report is a mean. A seed places the first peers and the steps' edges, and with [`Policy::None`] all joiners.
    pub seeds: u64,
    /// What decides where peers go.
    pub policy: Policy,
    /// Peers are a fluid; otherwise they run the protocol.
    pub fluid: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stages: 4,
            download_ms: 60_000,
            notice_ms: 120_000,
            step_ms: 20_000,
            room: 1,
            seeds: 30,
            policy: Policy::Dunlin,
            fluid: true,
        }
    }
}

impl Options {
    pub(super) fn handover_ms(&self) -> u64 {
        HANDOVER_MS.min(self.notice_ms)
    }
}
