//! Swarms that serve a model, as the controller of [`crate::swarm`] knows them.
//!
//! * [`desired`] the manifest in numbers · [`state`] what decisions hand on to one another
//! * [`decide`](mod@decide) which pods stay, go and are missing · [`layout`] who holds which layers · [`needed`] whom it can do without
//! * [`facts`], [`conditions`], [`status`] what is told about it · [`write`] the objects

mod conditions;
mod decide;
pub mod desired;
mod facts;
mod layout;
mod needed;
pub mod state;
mod status;
#[cfg(test)]
mod tests;
mod write;

#[cfg(test)]
pub use conditions::{ServingFacts, conditions};
#[cfg(test)]
pub use status::SERVING;

use dunlin_crds::InferenceSwarm;
use dunlin_wire::Role;

use crate::config::Config;
use crate::key::Kind;
use crate::swarm::SwarmKind;

impl SwarmKind for InferenceSwarm {
    const KIND: Kind = Kind::Inference;
    const ROLES: &'static [Role] = &[Role::Stage];
    type Desired = desired::InferenceDesired;
    type State = state::ServingState;
    type Own = state::ServingResources;
    type Facts = conditions::ServingFacts;
    type Plan = decide::LayoutSummary;

    fn desired(&self, config: &Config) -> Self::Desired {
        desired::InferenceDesired::new(self, config)
    }

    /// The topology is in a ConfigMap of its own; somebody may have deleted that.
    fn restored(&self) -> Self::State {
        let epoch_seen = self.status.as_ref().map_or(0, |status| status.epoch);
        Self::State { epoch_seen, ..Self::State::default() }
    }
}
