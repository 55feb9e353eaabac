//! The living stream of each name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

use crate::identity::Caller;

/// Streams by the name that their callers go by. A process that dials again replaces its own stream; nobody replaces another's.
pub(crate) struct Present<K, V>(Arc<Mutex<Streams<K, V>>>);

struct Streams<K, V> {
    living: BTreeMap<K, Living<V>>,
    entered: u64,
}

struct Living<V> {
    caller: Caller,
    entry: u64,
    value: V,
}

impl<K, V> Clone for Present<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Present<K, V> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Streams { living: BTreeMap::new(), entered: 0 })))
    }
}

impl<K: Ord + Clone, V> Present<K, V> {
    fn lock(&self) -> MutexGuard<'_, Streams<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `caller` is here as `name` until what is returned is dropped.
    ///
    /// # Errors
    /// When somebody with another certificate is here under that name, or more than `streams_max` are here.
    pub fn enter(
        &self,
        name: K,
        caller: &Caller,
        value: V,
        streams_max: usize,
    ) -> Result<Entry<K, V>, Status> {
        let mut streams = self.lock();
        match streams.living.get(&name) {
            Some(living) if !living.caller.is_same_holder(caller) => {
                let why = format!(
                    "{caller} is here already, with another certificate: a name is that of one process as long as it lives"
                );
                return Err(Status::permission_denied(why));
            }
            None if streams.living.len() >= streams_max => {
                return Err(Status::resource_exhausted(format!(
                    "{streams_max} streams are open, and no more are taken"
                )));
            }
            _ => {}
        }
        streams.entered += 1;
        let entry = streams.entered;
        streams.living.insert(name.clone(), Living { caller: caller.clone(), entry, value });
        Ok(Entry { present: self.clone(), name, entry })
    }

    /// What belongs to the stream of `name`.
    pub fn with<R>(&self, name: &K, act: impl FnOnce(&V) -> R) -> Option<R> {
        self.lock().living.get(name).map(|living| act(&living.value))
    }
}

/// A stream that is here. Dropping it takes it away, unless the same caller has another one by now.
pub(crate) struct Entry<K: Ord + Clone, V> {
    present: Present<K, V>,
    name: K,
    entry: u64,
}

impl<K: Ord + Clone, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        let mut streams = self.present.lock();
        if streams.living.get(&self.name).is_some_and(|living| living.entry == self.entry) {
            streams.living.remove(&self.name);
        }
    }
}
