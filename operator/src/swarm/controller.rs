//! One reconciliation of one swarm, and when to try again.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;
use tokio::time::Instant;
use tracing::instrument;

use super::context::Context;
use super::contract::{MemoryOf, Swarm};
use super::memory::{Memories, Memory};
use super::pass::pass;
use crate::error::Error;
use crate::key::SwarmKey;

/// Reconciles the swarms of one kind.
pub struct Controller<S: Swarm> {
    /// What all swarms share.
    pub context: Arc<Context>,
    /// What is remembered about those of this kind.
    pub memories: Memories<MemoryOf<S>>,
}

impl<S: Swarm> Controller<S> {
    /// One that remembers nothing.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, memories: Memories::default() }
    }

    /// Brings one swarm closer to what its manifest asks for.
    ///
    /// # Errors
    /// What kept it from doing so; [`Self::retry`] says when to try again.
    pub async fn reconcile(swarm: Arc<S>, this: Arc<Self>) -> Result<Action, Error> {
        let pause = Self::pass(swarm, this).await?;
        Ok(pause.map_or_else(Action::await_change, Action::requeue))
    }

    /// The same; how long until the swarm is looked at again though nothing is new, `None` for ever.
    ///
    /// # Errors
    /// What kept it from doing so; [`Self::pause`] says when to try again.
    #[instrument(skip_all, fields(namespace = swarm.namespace(), swarm = swarm.name_any()))]
    pub async fn pass(swarm: Arc<S>, this: Arc<Self>) -> Result<Option<Duration>, Error> {
        let (started, key) = (Instant::now(), key(swarm.as_ref()));
        if swarm.meta().deletion_timestamp.is_some() {
            // Owner references delete the children; making new ones would only get in the way. Claims with checkpoints are not ours.
            this.forget(&key);
            return Ok(None);
        }
        let uid = swarm.uid().unwrap_or_default();
        let new = || Memory { state: swarm.restored(), ..Memory::default() };
        let mut memory = this.memories.take(&key, &uid).unwrap_or_else(new);
        let result = pass(swarm.as_ref(), &key, &this.context, &mut memory).await;
        memory.failures = if result.is_ok() { 0 } else { memory.failures.saturating_add(1) };
        this.memories.put(&key, uid, memory);
        this.context.metrics.reconciled(started.elapsed(), result.as_ref().err().map(Error::category));
        result.map(Some)
    }

    /// When to try again after an error.
    #[must_use]
    pub fn retry(swarm: Arc<S>, failure: &Error, this: Arc<Self>) -> Action {
        Action::requeue(this.pause(swarm.as_ref(), failure))
    }

    /// How long to wait after an error.
    #[must_use]
    pub fn pause(&self, swarm: &S, failure: &Error) -> Duration {
        let key = key(swarm);
        let attempt = self.memories.ask(&key, |memory| memory.failures).unwrap_or(1);
        self.context.retry(&key, failure, attempt)
    }

    /// Drops everything that is kept about a deleted swarm.
    pub fn forget(&self, swarm: &SwarmKey) {
        self.memories.forget(swarm);
        self.context.forget(swarm);
    }
}

fn key<S: Swarm>(swarm: &S) -> SwarmKey {
    let (namespace, name) = (swarm.namespace().unwrap_or_default(), swarm.name_any());
    SwarmKey { kind: S::KIND, namespace, name }
}
