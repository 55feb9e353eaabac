//! The steps of one pass over one swarm.

use std::mem::take;
use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use super::contract::{Decision, DecisionOf, MemoryOf, Pass, Swarm, SwarmStatus};
use super::evidence::Evidence;
use super::memory::Memory;
use super::write;
use crate::config::Config;
use crate::error::Error;
use crate::key::SwarmKey;
use crate::labels::Owner;
use crate::observe::SwarmView;
use crate::status::conditions::unreached;
use crate::targets::targets;
use crate::trust::authority_key;

/// Pause while pods of an earlier leader have not been heard yet; each answer ends it.
const UNHEARD: Duration = Duration::from_secs(1);

/// Observes, decides, applies, and reports even when something could not be applied: the status then says what is in the way. Returns how long until
/// the swarm is looked at again though nothing is new.
pub(super) async fn pass<S: Swarm>(
    swarm: &S,
    key: &SwarmKey,
    context: &Context,
    memory: &mut MemoryOf<S>,
) -> Result<Duration, Error> {
    let owner = Owner::new(key, swarm, &context.config.inherited_labels);
    let generation = swarm.meta().generation.unwrap_or_default();
    let desired = swarm.desired(&context.config);
    let mut before = swarm.status().cloned().unwrap_or_default();
    if before.conditions().0.is_empty() {
        // Before anything can fail: without conditions the swarm would count as settled.
        let first = first_status(swarm, &desired, &context.config);
        tell::<S>(key, context, &before, &first).await?;
        before = first;
    }
    let (view, mut decision) = match look::<S>(key, &owner, &desired, context, memory).await {
        Ok(seen) => seen,
        Err(failure) => {
            let mut status = before.clone();
            let (conditions, observed) = status.conditions();
            if let Some(unreached) = unreached(conditions, generation, &failure) {
                (*conditions, *observed) = (unreached, Some(generation));
            }
            tell::<S>(key, context, &before, &status).await?;
            return Err(failure);
        }
    };

    let mut events = take(&mut decision.events);
    let Memory { state, resources, .. } = memory;
    let (desired, state) = (&desired, &*state);
    let pass =
        Pass::<S> { owner: &owner, generation, desired, view: &view, decision: &decision, state, context };
    let written = write::all(key, &pass, resources, &mut events).await;
    if decision.unheard > 0 {
        // A new leader does not say of a swarm at work that it is not: it looks again when everybody has answered, or has had the time.
        context.publish(&swarm.object_ref(&()), &events).await;
        return written.map(|()| UNHEARD);
    }
    // A conflict is over with the next pass.
    if let Err(failure) = written.as_ref()
        && !failure.is_conflict()
    {
        let facts = &mut decision.facts;
        facts.waiting = Some(failure.sentence());
        facts.trouble = facts.trouble.take().or(failure.trouble());
    }
    let status = swarm.next_status(&before, desired, &decision, state, &context.config);
    events.extend(S::turns(&before, &status));
    tell::<S>(key, context, &before, &status).await?;
    context.publish(&swarm.object_ref(&()), &events).await;
    context.measure(key, status.peers().ready, &events);
    // What rests has been told and counted when it was tried.
    written.or_else(|failure| if failure.is_held() { Ok(()) } else { Err(failure) })?;
    let pause = S::pause(&decision, state);
    // Spread, so that a thousand swarms do not move in step.
    Ok(pause - pause / 4 * u32::try_from(context.applier.draw() % 1000).unwrap_or(0) / 1000)
}

/// Writes the status where it is another than `before`.
async fn tell<S: Swarm>(
    key: &SwarmKey,
    context: &Context,
    before: &S::Status,
    status: &S::Status,
) -> Result<(), Error> {
    if before == status {
        return Ok(());
    }
    crate::status::write::<S>(context.api.as_ref(), key, status).await
}

/// What the status says of a swarm that nobody has looked at.
pub fn first_status<S: Swarm>(swarm: &S, desired: &S::Desired, config: &Config) -> S::Status {
    let decision = Decision { facts: S::unseen(desired), ..Decision::default() };
    swarm.next_status(&S::Status::default(), desired, &decision, &S::State::default(), config)
}

/// Observes and decides. What somebody else has touched, and what an earlier leader left, is taken up first.
async fn look<S: Swarm>(
    key: &SwarmKey,
    owner: &Owner,
    desired: &S::Desired,
    context: &Context,
    memory: &mut MemoryOf<S>,
) -> Result<(SwarmView, DecisionOf<S>), Error> {
    let resources = &mut memory.resources;
    let children = context.caches.children(key);
    let touched = resources.applied.forget_touched(&children, Instant::now());
    resources.kept &= !touched.contains(&authority_key(owner));
    let trust = resources.trust(owner, &context.applier).await;
    // Whatever becomes of the authority: what is touched is told once.
    S::recover(owner, context, &touched, memory).await?;
    let trust = trust?;

    let unseen = memory.resources.making.unseen(&context.caches, key, Instant::now());
    let mut view = context.caches.view(key, &owner.uid, &unseen);
    let gateways = ("Deployment".to_owned(), owner.gateway());
    view.gateways_refused = children.failure(&gateways).map(str::to_owned);
    context.monitor.follow(key, targets(owner, &view, &trust.identity));
    let answers = context.monitor.answers(key);
    let (now, silence) = (Instant::now(), context.config.silence_max());
    let since = *memory.since.get_or_insert(now);
    let evidence = Evidence { view: &view, answers: &answers, since, now, silence };
    let (decision, state) = S::decide(desired, &evidence, memory.state.clone()).map_err(Error::Plan)?;
    memory.state = state;
    Ok((view, decision))
}
