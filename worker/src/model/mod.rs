//! Where the model comes from: a file or folder here, on an HTTP server or in a bucket. Its adapters are local folders.

pub mod adapters;
mod place;
mod remote;

pub use adapters::NamedAdapter;
pub use place::{ModelPlace, Problem, problem};
