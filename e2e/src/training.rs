//! What the operator made of a `TrainingSwarm`, as kubectl shows it and as its conductor tells it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::swarm::{self, Pod};
use crate::{chat, wait};

/// Port of the conductor's page.
const HTTP_PORT: u16 = 8080;

/// A training run under test.
pub struct Training<'a> {
    /// Where it lives.
    pub cluster: &'a Cluster,
    /// `metadata.name`.
    pub name: String,
}

impl Training<'_> {
    /// The object as the API server has it.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn object(&self) -> Result<Value> {
        self.cluster.get(&["trainingswarm", &self.name])
    }

    /// Its `.status`.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn status(&self) -> Result<Value> {
        Ok(self.object()?["status"].take())
    }

    /// Pods of `role` (`conductor`, `train-peer`, `trainer`).
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn pods(&self, role: &str) -> Result<Vec<Pod>> {
        swarm::pods(self.cluster, &self.name, role)
    }

    /// What the conductor answers to `GET path`.
    ///
    /// # Errors
    /// When there is none that answers.
    pub fn conductor(&self, path: &str) -> Result<Value> {
        let pods = self.pods("conductor")?;
        let pod =
            pods.iter().find(|p| p.ready).with_context(|| format!("no conductor is ready: {pods:?}"))?;
        let (status, body) = chat::get(&format!("http://{}:{HTTP_PORT}{path}", pod.ip))?;
        ensure!(status == 200, "{path} answers {status}: {body}");
        serde_json::from_str(&body).context("the conductor sends no JSON")
    }

    /// Waits until `met` says so of the status; returns it. On the way the step must never go back.
    ///
    /// # Errors
    /// After `limit`, or when the step goes back.
    pub fn wait(&self, what: &str, limit: Duration, met: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = 0;
        let mut backwards = None;
        let found = wait::until(&format!("{} {what}", self.name), limit, || {
            let status = self.status()?;
            let step = status["step"].as_u64().unwrap_or(0);
            if step < last {
                backwards = Some((last, step));
                return Ok(Some(status));
            }
            last = step;
            if met(&status) { Ok(Some(status)) } else { bail!("{status}") }
        })?;
        match backwards {
            Some((from, to)) => bail!("{}: the step went back from {from} to {to}", self.name),
            None => Ok(found),
        }
    }

    /// [`Training::wait`] for `step` updates.
    ///
    /// # Errors
    /// As there.
    pub fn wait_step(&self, step: u64, limit: Duration) -> Result<Value> {
        self.wait(&format!("has made {step} updates"), limit, |status| status["step"].as_u64() >= Some(step))
    }

    /// Waits until condition `kind` has `status` and `reason`; returns its message.
    ///
    /// # Errors
    /// After `limit`.
    pub fn wait_condition(&self, kind: &str, status: &str, reason: &str, limit: Duration) -> Result<String> {
        swarm::wait_condition(|| self.object(), kind, status, reason, limit)
            .with_context(|| format!("trainingswarm {}", self.name))
    }
}

/// Tensors of a checkpoint by name, whatever files they are in.
///
/// # Errors
/// When it cannot be read or has none.
pub fn weights(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    tensors(folder, |name| name.starts_with("model") || name == "adapter_model.safetensors")
}

/// The same with the optimizer's vectors.
///
/// # Errors
/// As [`weights`].
pub fn states(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    tensors(folder, |name| name.starts_with("model") || name.starts_with("optimizer"))
}

fn tensors(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !wanted(&name) || !name.ends_with(".safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path)?;
        let length: [u8; 8] = bytes.get(..8).context("no header")?.try_into()?;
        let start = 8 + usize::try_from(u64::from_le_bytes(length))?;
        let header: Value = serde_json::from_slice(bytes.get(8..start).context("a short header")?)?;
        for (name, tensor) in header.as_object().into_iter().flatten().filter(|(n, _)| *n != "__metadata__") {
            let at =
                |i: usize| tensor["data_offsets"][i].as_u64().map_or(0, |offset| start + offset as usize);
            all.push((name.clone(), bytes.get(at(0)..at(1)).context("a short file")?.to_vec()));
        }
    }
    ensure!(!all.is_empty(), "no tensors in {}", folder.display());
    all.sort();
    Ok(all)
}
