//! Where the model comes from: a local file or folder, or an HTTP server. Its adapters are local folders.

pub mod adapters;
mod http;
mod location;

pub use adapters::NamedAdapter;
pub use location::{Location, Problem, problem};
