//! The API of Dunlin: group `dunlin.dev`, version `v1alpha1`.
//!
//! * [`amount`] quantities · [`pod`] what pods get beside what they need
//! * [`inference`] the resource `InferenceSwarm` · [`training`] the resource `TrainingSwarm` · [`shared`] what both have
//! * [`names`] labels and names of what the operator makes
//! * [`generated`] what is made from them: the chart's CustomResourceDefinitions and the references for readers
//! * [`reference`] Markdown from a CustomResourceDefinition

pub mod amount;
pub mod generated;
pub mod inference;
pub mod names;
pub mod pod;
pub mod reference;
pub mod shared;
pub mod training;

pub use amount::*;
pub use inference::*;
pub use pod::*;
pub use shared::*;
pub use training::*;
