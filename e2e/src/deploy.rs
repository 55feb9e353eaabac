//! From nothing to a serving swarm: images into the nodes, the chart by Helm, the examples by kubectl.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cluster::{Cluster, repository};
use crate::swarm::Swarm;
use crate::wait;

/// Namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "dunlin-system";
/// The swarm of `examples/smollm2.yaml`.
pub const EXAMPLE: &str = "smollm2";
/// The model name it serves.
pub const EXAMPLE_MODEL: &str = "smollm2-135m";
/// Volumes of each storage class.
const VOLUMES: u32 = 4;
/// How long pods of the installation may take to be Ready.
const INSTALL_LIMIT: Duration = Duration::from_secs(120);

/// Where `make images` puts the image archives.
#[must_use]
pub fn image_dir() -> PathBuf {
    std::env::var_os("DUNLIN_IMAGES").map_or_else(|| repository().join("target/images"), PathBuf::from)
}

/// Loads every image archive of `directory` into every node.
///
/// # Errors
/// When there is none, or a node refuses it.
pub fn load_images(cluster: &Cluster, directory: &Path) -> Result<()> {
    let mut archives: Vec<PathBuf> = std::fs::read_dir(directory)
        .with_context(|| format!("{}: run `make images` first", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "tar"))
        .collect();
    archives.sort();
    if archives.is_empty() {
        bail!("no image archives in {}: run `make images` first", directory.display());
    }
    for archive in &archives {
        cluster.verb(&["load-image", &archive.to_string_lossy()])?;
    }
    Ok(())
}

/// Has the API server enforce Pod Security `restricted` on everything that is installed and made from here on.
///
/// # Errors
/// When the API server does not answer.
pub fn enforce_restricted(cluster: &Cluster) -> Result<()> {
    for namespace in ["default", OPERATOR_NAMESPACE] {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: \
             {{pod-security.kubernetes.io/enforce: restricted}}}}}}"
        ))?;
    }
    Ok(())
}

/// `helm upgrade --install` of the chart with the locally built images, waiting until the operator is up.
///
/// # Errors
/// When Helm fails.
pub fn install_chart(cluster: &Cluster, extra: &[&str]) -> Result<()> {
    let chart = repository().join("charts/dunlin");
    let chart = chart.to_string_lossy();
    let mut args = vec![
        "upgrade",
        "--install",
        "dunlin",
        &chart,
        "--namespace",
        OPERATOR_NAMESPACE,
        "--create-namespace",
        "--wait",
        "--timeout",
        "120s",
        "--set",
        "image.operator.repository=registry.local/dunlin-operator,image.operator.tag=dev",
        "--set",
        "image.worker.repository=registry.local/dunlin-worker,image.worker.tag=dev",
    ];
    args.extend_from_slice(extra);
    cluster.helm(&args).map(drop)
}

/// A manifest of `examples/` as it works here, where the internet is out of reach: with the URLs of the file server.
///
/// # Errors
/// When there is none, or it loads something else.
pub fn example(cluster: &Cluster, file: &str) -> Result<String> {
    cluster.verb(&["example", file])
}

/// Applies an example manifest by file name.
///
/// # Errors
/// The API server's refusal.
pub fn apply_example(cluster: &Cluster, file: &str) -> Result<()> {
    cluster.apply(&example(cluster, file)?).map(drop)
}

/// The file server that hands out the model, Ready.
///
/// # Errors
/// When it does not become Ready.
pub fn start_model_server(cluster: &Cluster) -> Result<()> {
    apply_example(cluster, "local/models-server.yaml")?;
    wait::until_true("the model server is Ready", INSTALL_LIMIT, || {
        let object = cluster.get(&["deployment", "models"])?;
        let ready = object["status"]["readyReplicas"].as_u64().unwrap_or(0);
        Ok((ready >= 1, object["status"].to_string()))
    })
}

/// The storage classes of the examples: `models`, with SmolLM2 on each volume, and `checkpoints`. Nobody makes volumes of these classes; there are
/// [`VOLUMES`] of each, folders of this machine, which all nodes see.
///
/// # Errors
/// When the model cannot be had, or the API server refuses.
pub fn storage(cluster: &Cluster) -> Result<()> {
    let models = cluster.folder("models")?;
    let file = models.join("smollm2.gguf");
    if !file.exists() {
        std::fs::copy(fetched("fetch-model.sh")?, &file)?;
    }
    for (class, mode) in [("models", "ReadOnlyMany"), ("checkpoints", "ReadWriteMany")] {
        cluster.apply(
            &json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
                "provisioner": "kubernetes.io/no-provisioner",
            })
            .to_string(),
        )?;
        for number in 1..=VOLUMES {
            let name = format!("{class}-{number}");
            let folder = if class == "models" { models.clone() } else { cluster.folder(&name)? };
            cluster.apply(
                &json!({
                    "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
                    "spec": {"capacity": {"storage": "1Gi"}, "accessModes": [mode], "storageClassName": class,
                             "hostPath": {"path": folder}},
                })
                .to_string(),
            )?;
        }
    }
    Ok(())
}

/// The path that a script of `e2e/` prints.
///
/// # Errors
/// When it fails.
pub fn fetched(script: &str) -> Result<PathBuf> {
    let output = Command::new(repository().join("e2e").join(script)).output().context(script.to_owned())?;
    if !output.status.success() {
        bail!("{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// The example swarm, applied; not yet waited for.
///
/// # Errors
/// The API server's refusal.
pub fn apply_example_swarm(cluster: &Cluster) -> Result<Swarm<'_>> {
    apply_example(cluster, "smollm2.yaml")?;
    Ok(Swarm { cluster, name: EXAMPLE.to_owned(), model: EXAMPLE_MODEL.to_owned() })
}
