//! Generated code.
#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]

tonic::include_proto!("dunlin.v1");

/// What is said on the streams to a conductor.
pub mod training {
    tonic::include_proto!("dunlin.v1.training");
}
