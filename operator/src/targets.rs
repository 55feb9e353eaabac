//! Whom the operator talks to, and where they are. Pure.

use std::sync::Arc;

use dunlin_wire::{Role, TlsFiles};

use crate::apply::certificates::names;
use crate::apply::network::GRPC_PORT;
use crate::labels::Owner;
use crate::observe::{PodPhase, SwarmView, WorkerView};
use crate::peers::Target;

/// Everybody worth talking to. Peers of a run answer as stages do.
#[must_use]
pub fn targets(owner: &Owner, view: &SwarmView, identity: &Arc<TlsFiles>) -> Vec<Target> {
    let target = |role, name: &String, ip: &Option<String>| {
        Some(Target {
            name: name.clone(),
            role,
            addr: address(ip.as_deref()?, GRPC_PORT),
            server_name: names(owner, role, name).pop()?,
            identity: Arc::clone(identity),
        })
    };
    let asked = |w: &&WorkerView| matches!(w.phase, PodPhase::Running | PodPhase::Draining(_)) || w.node_gone;
    let workers = [Role::Stage, Role::Conductor].into_iter().flat_map(|role| {
        view.of(role).values().filter(asked).filter_map(move |w| target(role, &w.name, &w.ip))
    });
    let gateways = view.gateways.values().filter(|g| g.running);
    workers.chain(gateways.filter_map(|g| target(Role::Gateway, &g.name, &g.ip))).collect()
}

/// `ip:port`, with brackets around IPv6.
#[must_use]
pub fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}
