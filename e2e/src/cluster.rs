//! The local cluster: a thin handle on `e2e/cluster/cluster`.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// User and group of workers in their pods.
const WORKER_USER: u32 = 65532;

/// A running local cluster. Dropping it, or the end of this process however it comes, removes the cluster unless [`Cluster::keep`] was
/// called.
pub struct Cluster {
    name: String,
    nodes: u32,
    /// Removes the cluster as soon as its standard input closes.
    guard: Option<Child>,
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
        let mut cluster = Self { name: name.to_owned(), nodes, guard: None };
        cluster.guard = Some(cluster.guard()?);
        cluster.verb(&["up"])?;
        cluster.verb(&["wait"])?;
        Ok(cluster)
    }

    /// A handle on a cluster that something else started and will take down.
    #[must_use]
    pub fn attach(name: &str, nodes: u32) -> Self {
        Self { name: name.to_owned(), nodes, guard: None }
    }

    /// A process in a group of its own, so that what ends this one does not end it, too.
    fn guard(&self) -> Result<Child> {
        let script = repository().join("e2e/cluster/cluster");
        let mut command = Command::new("bash");
        command
            .args(["-c", r#"read -r _; exec "$0" down --wipe"#])
            .arg(script)
            .env("NAME", &self.name)
            .env("NODES", self.nodes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0);
        command.spawn().context("bash")
    }

    /// Leaves the cluster running when the handle is dropped.
    pub fn keep(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            // It only waits: there is nothing that it could leave behind, and it is gone already when this fails.
            let _ = guard.kill();
            let _ = guard.wait();
        }
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

    /// An empty folder that all nodes see and that goes with the cluster, writable by the pods of workers: a disk of its own for a
    /// PersistentVolume, as the nodes of a local cluster share the disk of this machine.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn fresh_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.state()?.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        self.folder(name)
    }

    /// The same with what is in it.
    ///
    /// # Errors
    /// As [`Cluster::fresh_folder`].
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.state()?.join(name);
        std::fs::create_dir_all(&folder)?;
        std::os::unix::fs::chown(&folder, Some(WORKER_USER), Some(WORKER_USER))?;
        Ok(folder)
    }

    /// The file with which its API server is reached.
    ///
    /// # Errors
    /// When the script does not say where it is.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let printed = self.verb(&["env"])?;
        let config = printed.trim().strip_prefix("export KUBECONFIG=").context("`cluster env` changed")?;
        Ok(PathBuf::from(config))
    }

    /// The folder of the kubelet of `node`, which the kubelet itself knows as `/var/lib/kubelet`.
    ///
    /// # Errors
    /// When the script does not say where it is.
    pub fn kubelet_folder(&self, node: &str) -> Result<PathBuf> {
        Ok(self.state()?.join(node).join("kubelet"))
    }

    /// Where the cluster keeps what it has.
    fn state(&self) -> Result<PathBuf> {
        let config = self.kubeconfig()?;
        let state = config.parent().and_then(|pki| pki.parent()).map(PathBuf::from);
        state.context("the kubeconfig has no folder")
    }

    /// The last `count` lines that `component` (`kubelet`, `containerd`, ...) of `node` has logged about `what`.
    ///
    /// # Errors
    /// When there is no such log.
    pub fn node_log(&self, node: &str, component: &str, what: &str, count: usize) -> Result<Vec<String>> {
        let path = self.state()?.join(node).join("log").join(component);
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(what)).collect();
        Ok(lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect())
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
        self.apply_as("kubectl", manifest)
    }

    /// The same by another field manager.
    ///
    /// # Errors
    /// The API server's refusal, in its own words.
    pub fn apply_as(&self, manager: &str, manifest: &str) -> Result<String> {
        let manager = format!("--field-manager={manager}");
        run(self.command(&["kubectl", "apply", "--server-side", &manager, "-f", "-"]), Some(manifest))
            .context("kubectl apply")
    }

    /// Evicts `pod` of the namespace `default`, as a drain does.
    ///
    /// # Errors
    /// The API server's refusal, such as that of a PodDisruptionBudget.
    pub fn evict(&self, pod: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
        let eviction = format!(
            "{{\"apiVersion\": \"policy/v1\", \"kind\": \"Eviction\", \"metadata\": {{\"name\": \"{pod}\", \"namespace\": \"default\"}}}}"
        );
        run(self.command(&["kubectl", "create", "--raw", &path, "-f", "-"]), Some(&eviction)).map(drop)
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
        let Some(mut guard) = self.guard.take() else { return };
        drop(guard.stdin.take());
        match guard.wait() {
            Ok(status) if status.success() => {}
            outcome => eprintln!("the cluster {} could not be taken down: {outcome:?}", self.name),
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
