//! Ports for processes that are about to start.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use tokio::net::TcpListener;

/// First port of those that connections are made from, if the kernel does not say.
const EPHEMERAL: u16 = 32768;
/// Lower ones belong to well-known services.
const LOWEST: u16 = 15000;

/// An address nobody listens on; port 0 means any.
///
/// The port is free again until its process listens. So one that any connection may take as its own meanwhile is no good, and none is given
/// twice: they come from below those that the kernel takes for connections, one after the other, from a place that depends on this process.
///
/// # Errors
/// When a port that was asked for is not free, or no port at all.
pub async fn free_addr(addr: SocketAddr) -> anyhow::Result<SocketAddr> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    if addr.port() == 0 {
        let range = u32::from(first_ephemeral().saturating_sub(LOWEST));
        for _ in 0..range {
            let at = std::process::id().wrapping_mul(37).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
            let port = LOWEST + (at % range) as u16;
            if let Ok(free) = bind(SocketAddr::new(addr.ip(), port)).await {
                return Ok(free);
            }
        }
    }
    bind(addr).await.with_context(|| format!("cannot listen on {addr}"))
}

async fn bind(addr: SocketAddr) -> std::io::Result<SocketAddr> {
    TcpListener::bind(addr).await?.local_addr()
}

fn first_ephemeral() -> u16 {
    let said = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    said.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{first_ephemeral, free_addr};

    #[tokio::test]
    async fn ports_are_given_once_and_no_connection_takes_them() {
        let mut ports = BTreeSet::new();
        for _ in 0..100 {
            let port = free_addr("127.0.0.1:0".parse().unwrap()).await.unwrap().port();
            assert!(port < first_ephemeral(), "{port}");
            assert!(ports.insert(port), "{port} was given twice");
        }
    }

    #[tokio::test]
    async fn a_port_that_was_asked_for_is_that_port_or_an_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        assert!(free_addr(taken).await.unwrap_err().to_string().contains(&taken.to_string()));
    }
}
