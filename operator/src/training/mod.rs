//! Swarms that train, as the controller of [`crate::swarm`] knows them.
//!
//! * [`desired`] the manifest: the [`run`] as workers read it, the [`places`] of what it reads and writes, a pod for each role
//! * [`decide`](mod@decide) where the run is in its [`lifecycle`](mod@lifecycle), and what that means for its [`workers`] · [`state`] what decisions hand on
//! * [`facts`], [`conditions`], [`status`] what is told about it · [`write`] the objects

mod conditions;
mod decide;
mod desired;
mod facts;
mod lifecycle;
#[cfg(test)]
mod lives;
mod places;
mod run;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod workers;
mod write;

use std::time::Duration;

use dunlin_crds::{TrainingSwarm, TrainingSwarmStatus};
use dunlin_wire::Role;
use serde_json::Value;

use crate::apply::pods::PoolTemplate;
use crate::config::Config;
use crate::error::Error;
use crate::key::Kind;
use crate::peers::Order;
use crate::status::events::SwarmEvent;
use crate::swarm::{Evidence, Pass, Swarm};
use lifecycle::Lifecycle;

/// A run with pods is looked at again after this long: its step and loss are written this often.
const PROGRESS: Duration = Duration::from_secs(2);
/// One without pods after this long.
const SETTLED: Duration = Duration::from_secs(60);

impl Swarm for TrainingSwarm {
    const KIND: Kind = Kind::Training;
    const ROLES: &'static [Role] = &[Role::Conductor, Role::Peer, Role::Trainer];
    type Desired = desired::Desired;
    type State = state::RunState;
    type Own = ();
    type Facts = conditions::Facts;
    type Plan = Lifecycle;

    fn desired(&self, config: &Config) -> Self::Desired {
        desired::Desired::new(self, config)
    }

    fn restored(&self) -> Self::State {
        self.status.as_ref().map(state::RunState::restored).unwrap_or_default()
    }

    fn decide(
        desired: &Self::Desired,
        evidence: &Evidence<'_>,
        state: Self::State,
    ) -> Result<(decide::Decision, Self::State), String> {
        Ok(decide::decide(desired, evidence, state))
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
        before: &TrainingSwarmStatus,
        _desired: &Self::Desired,
        decision: &decide::Decision,
        state: &Self::State,
        config: &Config,
    ) -> TrainingSwarmStatus {
        status::build(self, before, state.last.as_ref(), decision, config)
    }

    fn turns(before: &TrainingSwarmStatus, after: &TrainingSwarmStatus) -> Vec<SwarmEvent> {
        status::turns(before, after)
    }

    fn pause(decision: &decide::Decision, _state: &Self::State) -> Duration {
        if decision.plan == Lifecycle::Rest { SETTLED } else { PROGRESS }
    }

    /// Peers of which the node has notice hand over, and the conductor stops when the run is to.
    fn orders(pass: &Pass<'_, Self>) -> Result<Vec<(String, Order)>, Error> {
        let suspend = pass.decision.plan == Lifecycle::Wait;
        let peers = pass.view.workers.values();
        let peers = peers.map(|w| (w.name.clone(), Order { drain: w.needs_drain(), ..Order::default() }));
        let conductors = pass.view.conductors.keys();
        let conductors = conductors.map(|name| (name.clone(), Order { suspend, ..Order::default() }));
        Ok(peers.chain(conductors).collect())
    }

    fn objects(pass: &Pass<'_, Self>) -> Vec<Value> {
        write::objects(pass)
    }

    fn pod(pass: &Pass<'_, Self>, role: Role, pool: &PoolTemplate, name: &str) -> Value {
        pass.desired.pod(role, pass.owner, name, pool, pass.view.spot_nodes_marked).manifest()
    }
}
