//! The tool as a program.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::scenarios::bench::Bench;

/// `dunlin ARGS`, which was built beside this program, as the cluster's administrator.
pub(super) fn dunlin(bench: &Bench<'_>, args: &[&str]) -> Result<Output> {
    dunlin_as(&bench.cluster.kubeconfig()?, args)
}

/// The same as whoever `kubeconfig` is of.
pub(super) fn dunlin_as(kubeconfig: &Path, args: &[&str]) -> Result<Output> {
    let program = std::env::current_exe()?.with_file_name("dunlin");
    let mut command = Command::new(&program);
    command.args(args).env("KUBECONFIG", kubeconfig);
    command.output().with_context(|| format!("{}: run `make build` first", program.display()))
}

pub(super) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The JSON of a command that ends well.
pub(super) fn json(bench: &Bench<'_>, args: &[&str]) -> Result<Value> {
    let output = dunlin(bench, &[args, &["--output", "json"]].concat())?;
    ensure!(output.status.success(), "{args:?}: {}: {}", output.status, text(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}
