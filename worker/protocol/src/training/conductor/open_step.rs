//! A step that is open: its keys, and what of it nobody does yet.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use crate::training::ids::Microbatch;
use crate::training::ledger::Ledger;

/// A step whose microbatches are being done.
#[derive(Clone, Debug, Default)]
pub(super) struct Open {
    /// Of every stage.
    pub ledgers: Vec<Ledger>,
    /// Microbatches that no trainer has.
    pub todo: BTreeSet<Microbatch>,
    /// Microbatches that nobody can compute, by the word of these trainers, one for each time.
    pub failed: BTreeMap<Microbatch, Vec<PeerName>>,
    /// Contributions that were computed again.
    pub redone: u32,
}

impl Open {
    pub(super) fn new(stages: u32, microbatches: u32) -> Self {
        Self {
            ledgers: vec![Ledger::new(microbatches); stages as usize],
            todo: (0..microbatches).collect(),
            failed: BTreeMap::new(),
            redone: 0,
        }
    }
}
