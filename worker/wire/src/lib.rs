//! Sockets between the processes of a swarm.
//!
//! * [`proto`] generated from proto/dunlin.proto
//! * [`convert`] wire to protocol types and back, checked on arrival
//! * [`tls`] the swarm's own certificates
//! * [`links`] outgoing streams: dialled, kept alive, reported when they break
//! * [`inbound`] incoming streams
//! * [`control`] operator to stage and gateway
//! * [`train`] conductor, peers and trainers of a training swarm

pub mod control;
pub mod convert;
pub mod inbound;
pub mod links;
pub mod tls;
pub mod train;

/// Generated code.
pub mod proto {
    #![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("dunlin.v1");
}

pub use inbound::{Inbound, InboundEvent, StageServer};
pub use links::{LinkEvent, Links, LinksConfig};
pub use tls::{TlsError, TlsFiles};

/// Incoming connections without Nagle's delay: a token is a small packet that somebody waits for.
pub fn incoming(
    listener: tokio::net::TcpListener,
) -> impl tokio_stream::Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    use tokio_stream::StreamExt;
    tokio_stream::wrappers::TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

/// Largest message taken from a peer.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
