//! How the processes of a local swarm that serves are started.

use std::net::SocketAddr;
use std::path::Path;

use clap::ValueEnum;
use dunlin_wire::Role;
use dunlin_worker::memory;
use dunlin_worker::model::NamedAdapter;
use dunlin_worker::stage::device::DeviceChoice;
use tokio::process::Command;

use super::args::LocalArgs;
use crate::processes::process::{Process, child};
use crate::processes::trust::LocalTrust;

/// Starts a stage.
///
/// # Errors
/// When it cannot be started.
#[expect(clippy::too_many_arguments, reason = "who it is, where it listens, and what it computes with")]
pub fn stage(
    worker: &Path,
    args: &LocalArgs,
    trust: &LocalTrust,
    name: &str,
    addr: SocketAddr,
    health: SocketAddr,
    device: DeviceChoice,
) -> anyhow::Result<Process> {
    let certificates = trust.stdin_of(Role::Stage, &[name])?;
    let mut command = served(child(worker, "stage", name, certificates), addr, health, args);
    // An eighth is for the gateway and for whatever else runs here.
    let shared = || {
        let all = memory::limit(None);
        (all - all / 8) / args.peers.max(1) as u64
    };
    let memory = args.memory.unwrap_or_else(shared);
    command.args(["--threads", &args.threads.to_string(), "--memory", &memory.to_string()]);
    if let Some(device) = device.to_possible_value().filter(|_| device != DeviceChoice::Cpu) {
        command.args(["--device", device.get_name()]);
    }
    Process::start(name, addr, command)
}

/// Starts the gateway.
///
/// # Errors
/// When it cannot be started.
pub fn gateway(
    worker: &Path,
    args: &LocalArgs,
    trust: &LocalTrust,
    http: SocketAddr,
    addr: SocketAddr,
) -> anyhow::Result<Process> {
    let certificates = trust.stdin_of(Role::Gateway, &["gateway"])?;
    let command = child(worker, "gateway", "gateway", certificates);
    let mut command = served(command, addr, "127.0.0.1:0".parse()?, args);
    // Within the time between SIGTERM and SIGKILL.
    command.args(["--http", &http.to_string(), "--drain-s", "1"]);
    Process::start("gateway", addr, command)
}

/// With what both are told.
fn served(mut command: Command, addr: SocketAddr, health: SocketAddr, args: &LocalArgs) -> Command {
    command
        .args(["--listen", &addr.to_string(), "--health", &health.to_string(), "--model"])
        .arg(&args.model);
    if args.max_seq_len > 0 {
        command.args(["--max-seq-len", &args.max_seq_len.to_string()]);
    }
    for NamedAdapter { name, path } in &args.adapters.adapters {
        command.args(["--adapter", &format!("{name}={}", path.display())]);
    }
    command
}
