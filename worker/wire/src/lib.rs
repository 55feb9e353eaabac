//! Sockets between the processes of a swarm.
//!
//! * [`proto`] generated from proto/dunlin.proto
//! * [`convert`] wire to protocol types and back, checked on arrival
//! * [`tls`], [`authority`] the swarm's own certificates, and who issues them
//! * [`identity`], [`connection`] who calls, as the certificate of its connection says
//! * [`access`] who may call what · [`signed`] statements that others can check and pass on
//! * [`runtime`] threads of their own for sockets, and the pulse of the loop behind them
//! * [`queue`] queues bounded by bytes
//! * `keepalive` how streams are kept, of sessions and of training · [`links`] outgoing streams: dialled, reported when they break
//! * [`inbound`] incoming streams
//! * [`control`] operator to stage and gateway · [`topology`] what it tells them
//! * [`train`] conductor, peers and trainers of a training swarm · [`training`] what they say

pub mod access;
pub mod authority;
pub mod connection;
pub mod control;
pub mod convert;
pub mod identity;
pub mod inbound;
mod keepalive;
pub mod links;
mod present;
pub mod proto;
pub mod queue;
pub mod runtime;
mod services;
pub mod signed;
mod streams;
pub mod tls;
pub mod topology;
pub mod train;
pub mod training;

pub use authority::{Authority, Validity};
pub use connection::{incoming, incoming_in_plain_text};
pub use identity::{Caller, Role};
pub use inbound::{Inbound, InboundEvent, InboundIdentity, StageServer, Vitals};
pub use links::{LinkEvent, Links, LinksConfig};
pub use runtime::{Pulse, WireRuntime};
pub use signed::{Signable, Signed};
pub use tls::{Credentials, TlsError, TlsFiles};
