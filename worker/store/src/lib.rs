//! Bytes by place: files here, on HTTP servers and in buckets, for models, training data and checkpoints. Plain functions that block.
//!
//! * [`location`] where bytes are · [`error`] why they cannot be had, and what to do
//! * `http` the one client: times, attempts, what it does not put up with · `request` what a server is asked for
//! * [`server`] names below a place on a server: read, measured, put, deleted · [`s3`] signed requests, for buckets
//! * [`reader`] a file as a stream that goes on where it broke · [`ranged`] a file read by range
//! * [`cache`] a checked copy that is downloaded once for all processes of a machine
//! * [`digest`] SHA-256 · [`progress`] how far a transfer is

pub mod cache;
pub mod digest;
pub mod error;
mod http;
pub mod location;
pub mod progress;
pub mod ranged;
pub mod reader;
mod request;
pub mod s3;
pub mod server;
#[cfg(test)]
mod testing;

pub use error::StoreError;
pub use http::Limits;
pub use location::{HttpLocation, Location};
pub use progress::{Meter, TransferProgress};
pub use ranged::RangedFile;
pub use reader::Reader;
pub use s3::S3Location;
pub use server::Server;
