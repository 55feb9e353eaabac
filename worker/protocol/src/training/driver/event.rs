//! What happens to a peer, and what is to be done.

use std::ops::Range;

use dunlin_swarm::PeerName;

use super::super::fetch::{FetchEvent, FetchId, FetchWork};
use super::super::ids::{AskId, AverageId, StageId, Step};
use super::super::message::{Mate, PeerReport, StateDigest, ToPeer};
use super::super::peer::{Call, Job, Refused, RequestId, Take};
use super::super::serve::{ServeEffect, Wanted};

/// What happens to a peer.
#[derive(Clone, Debug, PartialEq)]
pub enum DriverEvent {
    /// The conductor says something.
    Heard(ToPeer),
    /// This peer will be gone.
    Notice {
        /// In so many milliseconds.
        within_ms: u64,
    },
    /// A trainer calls; its tensors are kept by whoever performs.
    Called(RequestId, Call),
    /// The caller is gone.
    HungUp(RequestId),
    /// The engine has computed a call.
    Computed {
        /// Which one.
        request: RequestId,
        /// The loss, at the last stage; or why it cannot be computed.
        outcome: Result<Option<f64>, String>,
        /// Microseconds, without what came before.
        took_us: u64,
    },
    /// The engine has updated: it has so many updates now, and this state.
    Applied(Step, StateDigest),
    /// The engine has added a mate's sums.
    Added(Take),
    /// A mate's sums are here and kept, or do not come.
    Received(Take, bool),
    /// An average is complete here: the squares of its values.
    Averaged(AverageId, Vec<f64>),
    /// An average could not be formed.
    AverageFailed {
        /// Which one.
        id: AverageId,
        /// What happened.
        why: String,
        /// Who did not give what it should, if it was somebody else.
        mate: Option<PeerName>,
    },
    /// The state after so many updates is written, or could not be.
    Written(Step, Result<String, String>),
    /// Memory has changed by itself.
    Corrupt(String),
    /// Somebody asks for values.
    Asked {
        /// The pull.
        ask: AskId,
        /// Who asks.
        by: PeerName,
        /// The stage whose values it wants.
        stage: StageId,
        /// Which of them.
        wanted: Wanted,
    },
    /// Somebody was given what it asked for, or is gone.
    Served(AskId),
    /// What comes of a [`DriverEffect::Fetch`].
    Fetch(FetchEvent),
    /// The time of [`PeerDriver::wake_ms`](super::PeerDriver::wake_ms) has come.
    Deadline,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum DriverEffect {
    /// Tell the conductor; lost while there is no stream, the next hello makes up for it.
    Tell(PeerReport),
    /// Give the engine a job, behind all that it was given before.
    Run(Job),
    /// Answer a call with what was computed for it.
    Reply(RequestId),
    /// End a call without an answer.
    Refuse(RequestId, Refused),
    /// Form an average of these members. What this one contributes is ordered from the engine before anything else is done; an average of the same shard that was
    /// begun before is given up. Then [`DriverEvent::Averaged`] or [`DriverEvent::AverageFailed`].
    Begin(AverageId, Vec<Mate>),
    /// The sums are about to change: averages that are not complete fail, those that are stay for the update and for others.
    CancelAverages,
    /// Nobody needs any average, complete or not, or hears how it ends.
    DropAverages,
    /// Receive a mate's sums. Then [`DriverEvent::Received`].
    Take(Take),
    /// What has come of a mate's sums is not wanted any more.
    Discard(Take),
    /// Write the state as the engine has it when it comes to this, or say what would be written. Then [`DriverEvent::Written`].
    Save {
        /// Updates in it.
        step: Step,
        /// Write nothing.
        check: bool,
    },
    /// Give values to somebody, or nothing.
    Serve(ServeEffect),
    /// Get something of a stage's state. Then [`DriverEvent::Fetch`].
    Fetch(FetchId, FetchWork),
    /// Nobody waits for that, and what has come of it is not needed.
    DropFetched(FetchId),
    /// The updates of these steps need not be kept any more.
    ForgetUpdates(Range<Step>),
    /// Nothing is to be done: people want to know.
    Note(String),
    /// End.
    Retire,
    /// End: what this process has or computes is not right.
    End(String),
}
