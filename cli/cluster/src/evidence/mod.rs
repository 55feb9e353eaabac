//! All that is known about a swarm when somebody asks what is wrong with it: plain facts, gathered before anything is judged.
//!
//! * [`facts`] what there is to know · [`gather`](mod@gather) asks for it · [`surroundings`] what all swarms share: operator, nodes, schemas
//! * [`schema`] what a CustomResourceDefinition lacks

pub mod facts;
pub mod gather;
pub mod schema;
pub mod surroundings;

pub use facts::{
    ClaimFacts, ClusterEvidence, EventFacts, GatewayFacts, LeaseFacts, NodeFacts, OperatorFacts, QuotaFacts,
    SwarmFacts,
};
pub use gather::gather;
pub use surroundings::{Surroundings, surroundings};
