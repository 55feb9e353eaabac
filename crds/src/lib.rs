//! The API of Dunlin: group `dunlin.dev`, version `v1alpha1`.
//!
//! * [`inference`] the resource `InferenceSwarm`
//! * [`generated`] what is made from it: the chart's CustomResourceDefinition and the reference for readers
//! * [`reference`] Markdown from a CustomResourceDefinition

pub mod generated;
pub mod inference;
pub mod reference;

pub use inference::*;
