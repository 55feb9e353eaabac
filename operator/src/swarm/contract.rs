//! What a kind of swarm is to the controller: a [`SwarmKind`], with a [`Policy`] that decides, a [`Reporter`] that tells and a [`Writer`].

use std::fmt::Debug;
use std::future::{Future, ready};
use std::time::Duration;

use dunlin_crds::PeersStatus;
use dunlin_wire::Role;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use kube::core::object::HasStatus;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::context::Context;
use super::evidence::Evidence;
use super::memory::Memory;
use super::resources::Resources;
use crate::apply::holds::HoldKey;
use crate::apply::pods::PoolTemplate;
use crate::config::Config;
use crate::deletion::Deletion;
use crate::error::Error;
use crate::key::Kind;
use crate::labels::Owner;
use crate::making::Refusals;
use crate::observe::SwarmView;
use crate::peers::WorkerOrder;
use crate::roster::Creation;
use crate::status::events::SwarmEvent;
use crate::status::facts::InferenceFacts;

/// What is done about a swarm. `Kind`: the facts that only its kind has; `Plan`: what only its kind decides.
#[derive(Clone, Debug, Default)]
pub struct Decision<Kind, Plan> {
    /// Pods to make, each with its role.
    pub create: Vec<(Role, Creation)>,
    /// Pods to delete.
    pub delete: Vec<Deletion>,
    /// For the status.
    pub facts: InferenceFacts<Kind>,
    /// Pods that did what they are for under an earlier leader and that this one has not heard yet: the status knows more than [`Self::facts`].
    pub unheard: usize,
    /// What happened.
    pub events: Vec<SwarmEvent>,
    /// Ready peers in pools on preemptible nodes and in others.
    pub ready_by_kind: (u32, u32),
    /// What only this kind decides.
    pub plan: Plan,
}

/// The decision about a swarm of kind `S`.
pub type DecisionOf<S> = Decision<<S as SwarmKind>::Facts, <S as SwarmKind>::Plan>;
/// What is remembered about one.
pub type MemoryOf<S> = Memory<<S as SwarmKind>::State, <S as SwarmKind>::Own>;
/// What no decision about one sees.
pub type ResourcesOf<S> = Resources<<S as SwarmKind>::Own>;

/// One pass over one swarm, from the decision on: everything is read, nothing changes.
pub struct Pass<'a, S: SwarmKind> {
    /// The swarm as the owner of its children.
    pub owner: &'a Owner,
    /// `metadata.generation` of its manifest.
    pub generation: i64,
    /// What that asks for.
    pub desired: &'a S::Desired,
    /// Its pods.
    pub view: &'a SwarmView,
    /// What is done about it.
    pub decision: &'a DecisionOf<S>,
    /// What the next decision starts from.
    pub state: &'a S::State,
    /// What all swarms share.
    pub context: &'a Context,
}

/// A kind of swarm: what of it has which type, and what its manifest asks for.
pub trait SwarmKind:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + HasStatus<Status: SwarmStatus>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Which kind.
    const KIND: Kind;
    /// Roles of its pods that the operator makes one by one, the most urgent first.
    const ROLES: &'static [Role];
    /// What a manifest asks for, in numbers.
    type Desired: Send + Sync;
    /// What a decision hands on to the next one: since when something is as it is, what was told, what was planned.
    type State: Clone + Default + Send + Sync;
    /// Resources that only this kind has.
    type Own: Default + Send + Sync;
    /// Facts that only this kind has.
    type Facts: Default + Send + Sync;
    /// What only this kind decides.
    type Plan: Default + Send + Sync;

    /// What the manifest asks for.
    fn desired(&self, config: &Config) -> Self::Desired;

    /// What a new leader starts from: what the status says of decisions of an earlier one.
    fn restored(&self) -> Self::State;
}

/// Decides about swarms of a kind. Pure.
pub trait Policy: SwarmKind {
    /// Decides, from what is known and from what the last decision handed on.
    ///
    /// # Errors
    /// The finding of the plan's own check: a bug, nothing may be applied and nothing is handed on.
    fn decide(
        desired: &Self::Desired,
        evidence: &Evidence<'_>,
        state: Self::State,
    ) -> Result<(DecisionOf<Self>, Self::State), String>;

    /// When to look again at a swarm of which nobody reports anything new.
    fn pause(decision: &DecisionOf<Self>, state: &Self::State) -> Duration;
}

/// The status of a kind of swarm, as far as all have the same.
pub trait SwarmStatus: Clone + Default + PartialEq + Serialize + Send + Sync {
    /// Its conditions, and the generation of the manifest that it speaks about.
    fn conditions(&mut self) -> (&mut Vec<Condition>, &mut Option<i64>);
    /// Its peers.
    fn peers(&self) -> &PeersStatus;
}

/// Tells about swarms of a kind. Pure but for the time of conditions that change.
pub trait Reporter: SwarmKind {
    /// Facts about a swarm that nobody has looked at.
    fn unseen(desired: &Self::Desired) -> InferenceFacts<Self::Facts>;

    /// What the status should say. `before`: what it says.
    fn next_status(
        &self,
        before: &Self::Status,
        desired: &Self::Desired,
        decision: &DecisionOf<Self>,
        state: &Self::State,
        config: &Config,
    ) -> Self::Status;

    /// What the change of the status means.
    fn turns(before: &Self::Status, after: &Self::Status) -> Vec<SwarmEvent>;
}

/// Writes what only a kind of swarm has, and says what its workers are told.
pub trait Writer: SwarmKind {
    /// Forgets what somebody has `touched`, and reads back what an earlier leader has published.
    fn recover(
        _owner: &Owner,
        _context: &Context,
        _touched: &[HoldKey],
        _memory: &mut MemoryOf<Self>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(Ok(()))
    }

    /// Publishes what orders follow from. Nothing else is written when that fails: orders then follow from what was published before, and none are
    /// given when another leader has published.
    fn publish(
        _pass: &Pass<'_, Self>,
        _resources: &mut ResourcesOf<Self>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(Ok(()))
    }

    /// What workers should know and do, by pod name: of what is published, and nothing else.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    fn orders(
        pass: &Pass<'_, Self>,
        resources: &ResourcesOf<Self>,
    ) -> Result<Vec<(String, WorkerOrder)>, Error>;

    /// Objects that are there before any pod.
    fn objects(pass: &Pass<'_, Self>) -> Vec<Value>;

    /// Makes pods that the operator does not make one by one, and what they need.
    fn deploy(
        _pass: &Pass<'_, Self>,
        _resources: &mut ResourcesOf<Self>,
        _refusals: &mut Refusals,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(Ok(()))
    }

    /// The manifest of the pod `name` with `role` in `pool`.
    fn pod(pass: &Pass<'_, Self>, role: Role, pool: &PoolTemplate, name: &str) -> Value;
}

/// All of it: what the controller can reconcile.
pub trait Swarm: Policy + Reporter + Writer {}

impl<S: Policy + Reporter + Writer> Swarm for S {}
