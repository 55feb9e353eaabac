//! What the cluster looks like: caches fed by watches, and one immutable [`SwarmView`] per swarm made from them.
//!
//! * [`watches`] what fills the caches, with [`index`] the pods by swarm, [`children`] the other objects of swarms and [`nodes`] the nodes among them
//! * [`pods`] what a pod and its node say about a peer · [`owner`] whose an object is · [`view`] all of it about one swarm

mod children;
mod index;
mod nodes;
mod owner;
pub mod pods;
pub mod view;
mod watches;

pub use children::{Seen, version};
pub use pods::{PodPhase, WorkerView};
pub use view::SwarmView;
pub use watches::{Caches, Scope, run};
