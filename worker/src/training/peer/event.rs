//! What happens to a peer.

use dunlin_protocol::training::peer::Take;
use dunlin_protocol::training::{AverageId, RequestId, StateDigest, Step};
use dunlin_swarm::PeerName;
use dunlin_train::Stage;
use dunlin_train::average::Average;
use dunlin_train::stage::Computed;

use super::super::values::Fault;
use super::unfetched::Unfetched;

/// What happens to a peer.
pub(super) enum Event {
    /// With the microseconds that it took.
    Computed(RequestId, u64, Result<Computed, String>),
    Applied(Step, Result<StateDigest, String>),
    Added(Take, Result<(), String>),
    /// Memory has changed by itself.
    Corrupt(String),
    /// It has not, and that was the last thing to do.
    Sound,
    /// A mate gave what is not right.
    Wrong(PeerName, String),
    /// The state of a stage is here.
    Fetched(u64, Result<Box<Stage>, Unfetched>),
    /// The engine has it, or has followed an update.
    Installed(u64, Result<(Step, StateDigest), String>),
    /// An update that was missed.
    Update(u64, Result<Vec<f32>, String>),
    Averaged(AverageId, Result<(Average, Vec<f64>), Fault>),
    Received(Take, Result<Vec<i64>, Fault>),
    Saved(Step, Result<String, String>),
}
