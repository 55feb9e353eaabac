//! Swarms that serve a model, as the controller of [`crate::swarm`] knows them.
//!
//! * [`desired`] the manifest in numbers · [`state`] what decisions hand on to one another
//! * [`decide`](mod@decide) which pods stay, go and are missing · [`layout`] who holds which layers
//! * [`facts`], [`conditions`], [`status`] what is told about it · [`write`] the objects

mod conditions;
mod decide;
pub mod desired;
mod facts;
mod layout;
pub mod state;
mod status;
#[cfg(test)]
mod tests;
mod write;

#[cfg(test)]
pub use conditions::{Facts, conditions};

use std::sync::Arc;
use std::time::Duration;

use dunlin_crds::{InferenceSwarm, InferenceSwarmStatus};
use dunlin_wire::Role;
use serde_json::Value;

use crate::apply::holds::Key;
use crate::apply::pods::PoolTemplate;
use crate::config::Config;
use crate::error::Error;
use crate::key::Kind;
use crate::labels::Owner;
use crate::making::Refusals;
use crate::peers::Order;
use crate::status::events::{SwarmEvent, TurnReasons, changes};
use crate::swarm::context::Context;
use crate::swarm::contract::{MemoryOf, ResourcesOf};
use crate::swarm::{Evidence, Pass, Swarm};

/// A settled swarm is looked at again after this long, without any trigger.
const SETTLED: Duration = Duration::from_secs(60);
/// An unsettled one after this long.
const UNSETTLED: Duration = Duration::from_secs(5);
/// What Events call the turns of a swarm.
pub const SERVING: TurnReasons = TurnReasons { ready: "SwarmReady", not_ready: "SwarmNotReady" };

impl Swarm for InferenceSwarm {
    const KIND: Kind = Kind::Inference;
    const ROLES: &'static [Role] = &[Role::Stage];
    type Desired = desired::Desired;
    type State = state::ServingState;
    type Own = state::ServingResources;
    type Facts = conditions::Facts;
    type Plan = decide::Plan;

    fn desired(&self, config: &Config) -> Self::Desired {
        desired::Desired::new(self, config)
    }

    fn decide(
        desired: &Self::Desired,
        evidence: &Evidence<'_>,
        state: Self::State,
    ) -> Result<(decide::Decision, Self::State), String> {
        decide::decide(desired, evidence, state)
    }

    fn unseen(desired: &Self::Desired) -> Self::Facts {
        facts::unseen(desired)
    }

    fn blame(facts: &mut Self::Facts, failure: &Error) {
        facts.waiting = Some(failure.sentence());
        facts.trouble = facts.trouble.take().or(failure.trouble());
    }

    fn next_status(
        &self,
        before: &InferenceSwarmStatus,
        desired: &Self::Desired,
        decision: &decide::Decision,
        state: &Self::State,
        config: &Config,
    ) -> InferenceSwarmStatus {
        status::build(self, before, desired, decision, state.epoch(), config)
    }

    fn turns(before: &InferenceSwarmStatus, after: &InferenceSwarmStatus) -> Vec<SwarmEvent> {
        changes(&before.conditions, &after.conditions, SERVING)
    }

    fn pause(decision: &decide::Decision, state: &Self::State) -> Duration {
        if decision.facts.is_whole() && state.suspects.is_empty() { SETTLED } else { UNSETTLED }
    }

    fn touched(own: &mut Self::Own, owner: &Owner, touched: &[Key]) {
        write::touched(own, owner, touched);
    }

    async fn recover(owner: &Owner, context: &Context, memory: &mut MemoryOf<Self>) -> Result<(), Error> {
        write::recover(owner, context, memory).await
    }

    async fn publish(pass: &Pass<'_, Self>, resources: &mut ResourcesOf<Self>) -> Result<(), Error> {
        write::publish(pass, resources).await
    }

    /// Hands everybody the current topology; the monitor repeats it until it is acknowledged.
    fn orders(pass: &Pass<'_, Self>) -> Result<Vec<(String, Order)>, Error> {
        let Some(topology) = &pass.state.topology else { return Ok(Vec::new()) };
        let json = serde_json::to_string(topology).map_err(|source| Error::json("the topology", source))?;
        let (epoch, json): (_, Arc<str>) = (topology.epoch, json.into());
        let order = |drain| Order { topology: Some((epoch, Arc::clone(&json))), drain, suspend: false };
        let workers = pass.view.workers.values().map(|w| (w.name.clone(), order(w.needs_drain())));
        let gateways = pass.view.gateways.keys().map(|name| (name.clone(), order(false)));
        Ok(workers.chain(gateways).collect())
    }

    fn objects(pass: &Pass<'_, Self>) -> Vec<Value> {
        write::objects(pass)
    }

    async fn deploy(
        pass: &Pass<'_, Self>,
        resources: &mut ResourcesOf<Self>,
        refusals: &mut Refusals,
    ) -> Result<(), Error> {
        write::gateways(pass, resources, refusals).await
    }

    fn pod(pass: &Pass<'_, Self>, _role: Role, pool: &PoolTemplate, name: &str) -> Value {
        let (marked, epoch) = (pass.view.spot_nodes_marked, Some(pass.state.epoch()));
        pass.desired.stage(pass.owner, name, pool, marked, epoch).manifest()
    }
}
