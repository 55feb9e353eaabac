//! The roles of a training swarm: sockets, threads and tensors around the state machines of `dunlin_protocol::training`.
//!
//! * [`conductor`] owns the ledger, shows a page
//! * [`peer`] computes a stage
//! * [`trainer`] drives microbatches
//! * [`local`] all of them as processes on this machine

pub mod conductor;
pub mod local;
pub mod peer;
pub mod trainer;

use std::path::Path;

use anyhow::Context;
use dunlin_train::TrainingConfig;
use dunlin_wire::{LinksConfig, proto};

use crate::cli::ProcessArgs;
use crate::stage::tls;

/// Reads and checks the configuration of a run.
///
/// # Errors
/// When it cannot be read or makes no sense.
pub fn read_config(path: &Path) -> anyhow::Result<TrainingConfig> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    TrainingConfig::from_yaml(&text).with_context(|| format!("in {}", path.display()))
}

/// How this process makes connections.
///
/// # Errors
/// When its certificates cannot be used.
pub fn links(process: &ProcessArgs) -> anyhow::Result<LinksConfig> {
    let hello = proto::Hello { name: process.name.clone(), incarnation: 0, gateway: false };
    Ok(LinksConfig::new(hello, tls(process)?))
}

/// The address others reach this process at: `advertise`, or where it listens.
pub fn advertised(process: &ProcessArgs, listening: std::net::SocketAddr) -> String {
    process.advertise.clone().unwrap_or_else(|| listening.to_string())
}
