//! What the leader remembers about swarms of one kind between passes. All of it can be rebuilt: from the cluster, from the status, and from what
//! the workers report.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::resources::Resources;
use crate::key::SwarmKey;

/// Memory of one swarm. What decisions are made from beside it, the pods and the reports, is found anew in each pass.
#[derive(Default)]
pub struct Memory<State, Own> {
    /// What the last decision handed on to the next one.
    pub state: State,
    /// What no decision sees.
    pub resources: Resources<Own>,
    /// When this leader first saw all that a decision is made from.
    pub since: Option<Instant>,
    /// Passes that failed in a row.
    pub failures: u32,
}

/// Memory of every swarm of one kind, each with the UID of its swarm. A pass owns that of its swarm while it lasts: a swarm is never reconciled
/// twice at once.
#[derive(Default)]
pub struct Memories<M>(Mutex<BTreeMap<SwarmKey, (String, M)>>);

impl<M> Memories<M> {
    /// Hands out that of `swarm` with this UID: a swarm that was deleted and made again under its name is another one, even when nobody saw it
    /// go.
    pub fn take(&self, swarm: &SwarmKey, uid: &str) -> Option<M> {
        self.lock().remove(swarm).filter(|(of, _)| of == uid).map(|(_, memory)| memory)
    }

    /// Takes it back.
    pub fn put(&self, swarm: &SwarmKey, uid: String, memory: M) {
        self.lock().insert(swarm.clone(), (uid, memory));
    }

    /// What `ask` says of that of `swarm`.
    pub fn ask<T>(&self, swarm: &SwarmKey, ask: impl FnOnce(&M) -> T) -> Option<T> {
        self.lock().get(swarm).map(|(_, memory)| ask(memory))
    }

    /// Drops that of `swarm`.
    pub fn forget(&self, swarm: &SwarmKey) {
        self.lock().remove(swarm);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SwarmKey, (String, M)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
