//! The local cluster: a thin handle on `e2e/cluster/cluster`.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A running local cluster. Dropping it takes the cluster down unless [`Cluster::keep`] was called.
pub struct Cluster {
    name: String,
    nodes: u32,
    keep: bool,
}

/// The repository root: the cluster script and the manifests are found from here.
#[must_use]
pub fn repository() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), PathBuf::from)
}

impl Cluster {
    /// Starts a cluster of `nodes` nodes and waits until all are Ready.
    ///
    /// # Errors
    /// When the script fails; its output has gone to the terminal.
    pub fn up(name: &str, nodes: u32) -> Result<Self> {
        let cluster = Self { name: name.to_owned(), nodes, keep: false };
        cluster.verb(&["up"])?;
        cluster.verb(&["wait"])?;
        Ok(cluster)
    }

    /// A handle on a cluster that something else started and will take down.
    #[must_use]
    pub fn attach(name: &str, nodes: u32) -> Self {
        Self { name: name.to_owned(), nodes, keep: true }
    }

    /// Leaves the cluster running when the handle is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Node names, `n1..`.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        (1..=self.nodes).map(|i| format!("n{i}")).collect()
    }

    /// The name the cluster was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(repository().join("e2e/cluster/cluster"));
        command.args(args).env("NAME", &self.name).env("NODES", self.nodes.to_string());
        command
    }

    /// Runs one verb of the cluster script, e.g. `["kill", "n2"]`; output goes to the terminal's stderr on failure only.
    ///
    /// # Errors
    /// When the script exits non-zero, with its output.
    pub fn verb(&self, args: &[&str]) -> Result<String> {
        run(self.command(args), None).with_context(|| format!("cluster {}", args.join(" ")))
    }

    /// `kubectl ARGS`, its standard output.
    ///
    /// # Errors
    /// When kubectl exits non-zero, with its error text.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["kubectl"];
        all.extend_from_slice(args);
        self.verb(&all)
    }

    /// `kubectl ARGS -o json`, parsed.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`], or when the output is no JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get"];
        all.extend_from_slice(args);
        all.extend_from_slice(&["-o", "json"]);
        serde_json::from_str(&self.kubectl(&all)?).context("kubectl printed no JSON")
    }

    /// `kubectl apply -f -` of `manifest`.
    ///
    /// # Errors
    /// The API server's refusal, in its own words.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        run(self.command(&["kubectl", "apply", "--server-side", "-f", "-"]), Some(manifest))
            .context("kubectl apply")
    }

    /// `helm ARGS`.
    ///
    /// # Errors
    /// When helm exits non-zero, with its error text.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["helm"];
        all.extend_from_slice(args);
        self.verb(&all)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.verb(&["down"])
        {
            eprintln!("the cluster {} could not be taken down: {error:#}", self.name);
        }
    }
}

fn run(mut command: Command, stdin: Option<&str>) -> Result<String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().context("cannot start e2e/cluster/cluster")?;
    if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
        pipe.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
