//! Decisions about a swarm, as pure functions that give reasons. Its words are those of [`dunlin_swarm`].
//!
//! * [`wanted`] what a layout is for · [`member`] a peer that may be given layers
//! * [`layout`] which peers should hold which: [`cut`] spans, [`shadow`] copies elsewhere, over the best [`partition`]
//! * [`lint`] what is wrong with a topology · [`report`] a layout for people
//! * [`degrade`] what the swarm is worth after losses: the same for every caller and every order
//! * [`rebalance`](mod@rebalance) which stage of a training swarm a peer serves, and whose state it fetches ahead of need
//! * [`route`] the cheapest way through all layers
//! * [`speed`] how fast peers are beside one another

pub mod cut;
pub mod degrade;
pub mod layout;
pub mod lint;
pub mod member;
pub mod partition;
pub mod rebalance;
pub mod report;
pub mod route;
pub mod shadow;
pub mod speed;
pub mod wanted;

pub use degrade::degrade;
pub use layout::{Layout, May, Reason, Shortage, layout};
pub use lint::{LintFinding, lint};
pub use member::Member;
pub use partition::{Capacity, partition};
pub use rebalance::rebalance;
pub use report::report;
pub use route::route;
pub use wanted::LayoutGoal;
