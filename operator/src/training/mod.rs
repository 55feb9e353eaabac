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
mod places;
mod run;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod workers;
mod write;

use dunlin_crds::TrainingSwarm;
use dunlin_wire::Role;

use crate::config::Config;
use crate::key::Kind;
use crate::swarm::SwarmKind;

impl SwarmKind for TrainingSwarm {
    const KIND: Kind = Kind::Training;
    const ROLES: &'static [Role] = &[Role::Conductor, Role::Peer, Role::Trainer];
    type Desired = desired::TrainingDesired;
    type State = state::RunState;
    type Own = ();
    type Facts = conditions::TrainingFacts;
    type Plan = lifecycle::Lifecycle;

    fn desired(&self, config: &Config) -> Self::Desired {
        desired::TrainingDesired::new(self, config)
    }

    fn restored(&self) -> Self::State {
        self.status.as_ref().map(state::RunState::restored).unwrap_or_default()
    }
}
