//! What Helm and Flux make of an object: `e2e/kstatus`, the library that both use.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, repository};

/// The program, built.
pub struct Kstatus(PathBuf);

impl Kstatus {
    /// Builds it, unless that has been done.
    ///
    /// # Errors
    /// When Go is missing, or its modules cannot be had.
    pub fn build() -> Result<Self> {
        let script = repository().join("e2e/build-go.sh");
        let output = Command::new(&script)
            .args(["kstatus", "half a minute"])
            .stderr(Stdio::inherit())
            .output()
            .context("e2e/build-go.sh kstatus")?;
        ensure!(output.status.success(), "{}: {}", script.display(), output.status);
        Ok(Self(PathBuf::from(String::from_utf8(output.stdout)?.trim())))
    }

    /// `InProgress`, `Current`, `Failed` or `Terminating`, as of now, and why.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn of(&self, cluster: &Cluster, kind: &str, name: &str) -> Result<(String, String)> {
        let object = cluster.get(&[kind, name])?.to_string();
        let mut child =
            Command::new(&self.0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("kstatus")?;
        child.stdin.take().context("no pipe")?.write_all(object.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kstatus of {object}: {}", output.status);
        let said = String::from_utf8(output.stdout)?;
        let (status, why) = said.trim_end().split_once('\t').context("kstatus says something else")?;
        Ok((status.to_owned(), why.to_owned()))
    }
}
