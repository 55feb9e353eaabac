//! What the operator asks of the API server: calls are values ([`server`]), and whoever performs them is a client of a cluster ([`client`]) or a
//! simulation of one.

mod client;
mod server;

pub use client::{ApiClient, call};
pub use server::{ApiAnswer, ApiServer, ApiVerb, is_code, read};
