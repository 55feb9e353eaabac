//! What a record of figures says about where they come from.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Processor, cores and kernel of this machine.
#[must_use]
pub fn machine() -> Value {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':')).map(|(_, v)| v.trim());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({"cpu": model.unwrap_or("unknown"), "cores": cores, "kernel": kernel.trim()})
}

/// Commit of the working copy that `folder` lies in; `None` when it lies in none, or git is not there.
#[must_use]
pub fn commit(folder: &Path) -> Option<String> {
    let output =
        Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(folder).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| commit.trim().to_owned())
}
