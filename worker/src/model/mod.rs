//! Where the model comes from: a local file or folder, or an HTTP server.

mod http;
mod location;

pub use location::{Location, Problem, problem};
