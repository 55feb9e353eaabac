//! What happens to a peer.

use dunlin_protocol::training::fetch::FetchId;
use dunlin_protocol::training::peer::Take;
use dunlin_protocol::training::{AverageId, RequestId, StateDigest, Step};
use dunlin_train::average::Average;
use dunlin_train::stage::ComputedCall;

use super::super::values::Fault;
use super::fetched::Outcome;

/// What happens to a peer.
pub(super) enum Event {
    /// With the microseconds that it took.
    Computed(RequestId, u64, Result<ComputedCall, String>),
    Applied(Step, Result<StateDigest, String>),
    Added(Take, Result<(), String>),
    /// Memory has changed by itself.
    Corrupt(String),
    /// It has not, and that was the last thing to do.
    Sound,
    /// Something of a stage's state.
    Fetched(FetchId, Outcome),
    Averaged(AverageId, Result<(Average, Vec<f64>), Fault>),
    Received(Take, Result<Vec<i64>, Fault>),
    Saved(Step, Result<String, String>),
}
