//! The shell around a trainer: keeps the tensors of the microbatches on their way.

use std::collections::BTreeMap;

use dunlin_protocol::training::{Call, CallId, Microbatch, Step, TrainerCore};
use dunlin_swarm::PeerName;

/// Tensors of a microbatch.
#[derive(Clone, Debug, Default)]
pub(super) struct Tensors {
    pub(super) inputs: Vec<u64>,
    pub(super) above: u64,
}

pub(super) struct TrainerShell {
    pub(super) core: TrainerCore,
    pub(super) stream: Option<u64>,
    pub(super) retired: bool,
    pub(super) tensors: BTreeMap<(Step, Microbatch), Tensors>,
    /// Calls under way.
    pub(super) calls: BTreeMap<CallId, (PeerName, Call)>,
}
