//! Whom the operator talks to, and where they are. Pure.

use std::sync::Arc;

use dunlin_wire::TlsFiles;

use crate::apply::certificates::{conductor_names, gateway_names, worker_names};
use crate::apply::network::GRPC_PORT;
use crate::labels::Owner;
use crate::observe::{Phase, SwarmView, WorkerView};
use crate::peers::{Role, Target};

/// Everybody worth talking to.
#[must_use]
pub fn targets(owner: &Owner, view: &SwarmView, identity: &Arc<TlsFiles>) -> Vec<Target> {
    let target = |name: &str, ip: &str, role, server_name: String| Target {
        name: name.to_owned(),
        role,
        addr: address(ip, GRPC_PORT),
        server_name,
        identity: Arc::clone(identity),
    };
    let asked = |w: &&WorkerView| matches!(w.phase, Phase::Running | Phase::Draining(_)) || w.node_gone;
    let workers = view.workers.values().filter(asked).filter_map(|w| {
        let [_, name] = worker_names(owner, &w.name);
        Some(target(&w.name, w.ip.as_deref()?, Role::Stage, name))
    });
    let conductors = view.conductors.values().filter(asked).filter_map(|w| {
        let name = conductor_names(owner, &w.name).pop()?;
        Some(target(&w.name, w.ip.as_deref()?, Role::Conductor, name))
    });
    let gateways = view.gateways.values().filter(|g| g.running).filter_map(|g| {
        let name = gateway_names(owner).pop()?;
        Some(target(&g.name, g.ip.as_deref()?, Role::Gateway, name))
    });
    workers.chain(conductors).chain(gateways).collect()
}

/// `ip:port`, with brackets around IPv6.
#[must_use]
pub fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}
