//! Losses of a local swarm's processes, and how long it takes to be whole again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::chat;
use crate::local::Local;
use crate::wait;

/// A signal to a process that this program has started, or its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It ends at once.
    Kill,
    /// It is told to end.
    Terminate,
    /// It stands still, with all its sockets open.
    Stop,
    /// It goes on.
    Continue,
}

/// Sends a signal.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u64, signal: Signal) -> Result<()> {
    let number = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Terminate => libc::SIGTERM,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    // SAFETY: kill(2) has no preconditions.
    #[allow(unsafe_code, reason = "std cannot signal a process that is not its child")]
    let outcome = unsafe { libc::kill(i32::try_from(pid)?, number) };
    ensure!(outcome == 0, "no process {pid}");
    Ok(())
}

/// Stages in the order of their layers: name and pid.
///
/// # Errors
/// When the gateway does not answer.
pub fn stages(local: &Local) -> Result<Vec<(String, u64)>> {
    let mut peers = swarm(local)?["peers"].as_array().cloned().context("no peers")?;
    peers.sort_by_key(|peer| peer["span"]["start"].as_u64());
    let pids = local.processes()?;
    let found = peers.iter().filter_map(|peer| {
        let name = peer["name"].as_str()?;
        Some((name.to_owned(), *pids.get(name)?))
    });
    Ok(found.collect())
}

/// The gateway's view of the swarm.
///
/// # Errors
/// When it does not answer.
pub fn swarm(local: &Local) -> Result<Value> {
    let (status, body) = chat::get(&format!("{}/swarm", local.url))?;
    ensure!(status == 200, "{status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

/// Waits until all of `peers` stages have their layers and shadows.
///
/// # Errors
/// When that takes longer than `limit`.
pub fn wait_whole(local: &Local, peers: usize, limit: Duration) -> Result<()> {
    let layers = |list: &Value| -> u64 {
        let all = list.as_array().into_iter().flatten();
        all.map(|l| l["end"].as_u64().unwrap_or(0) - l["start"].as_u64().unwrap_or(0)).sum()
    };
    wait::until_true("the swarm is whole", limit, || {
        let swarm = swarm(local)?;
        let all = swarm["peers"].as_array().cloned().unwrap_or_default();
        let whole = all.len() == peers
            && all.iter().all(|p| {
                let wanted = layers(&p["shadows"]) + layers(&serde_json::json!([p["span"]]));
                p["up"] == true && p["state"] == "Ready" && layers(&p["held"]) >= wanted
            });
        Ok((whole, swarm["peers"].to_string()))
    })
}

/// What the gateway counted: (reason, sessions that went on) and rows computed again.
///
/// # Errors
/// When it does not answer.
pub fn recoveries(local: &Local) -> Result<(Vec<(String, u64)>, u64)> {
    let (_, page) = chat::get(&format!("{}/metrics", local.url))?;
    let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    let reasons = page.lines().filter(|line| line.starts_with("dunlin_recoveries_total{")).map(|line| {
        let reason = line.split('"').nth(1).unwrap_or_default();
        (reason.to_owned(), value(line))
    });
    let rows = page.lines().find(|line| line.starts_with("dunlin_replayed_rows_total ")).map_or(0, value);
    Ok((reasons.collect(), rows))
}
