//! Updates that a stage makes while its state is on the way. Mates keep the last few, and a large state takes longer than those.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_protocol::training::{Mate, StageId, Step};
use tempfile::TempDir;
use tokio::fs;
use tokio::task::AbortHandle;
use tracing::warn;

use super::super::values::{Clients, from_bytes, to_bytes};
use super::fetch::made_update;

/// How often mates are asked whether they have made the next update.
const PAUSE: Duration = Duration::from_millis(100);

/// The updates of a stage from some step on, as files among what is temporary. Dropped, it collects no more, and removes them.
pub(super) struct Collected {
    files: Arc<Files>,
    task: AbortHandle,
}

struct Files {
    folder: TempDir,
    bytes: AtomicU64,
}

impl Files {
    fn path(&self, step: Step) -> PathBuf {
        self.folder.path().join(step.to_string())
    }

    async fn write(&self, step: Step, gradient: &[f32]) -> std::io::Result<()> {
        // Whoever finds the file finds all of it.
        let (path, part) = (self.path(step), self.folder.path().join("part"));
        let bytes = to_bytes(gradient);
        fs::write(&part, &bytes).await?;
        fs::rename(&part, &path).await?;
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Collected {
    /// Collects updates from that of `step` on, as long as they take no more than `bytes_max`.
    ///
    /// # Errors
    /// When there is nowhere to put them.
    pub fn start(
        clients: Clients,
        stage: StageId,
        step: Step,
        mates: Vec<Mate>,
        bytes_max: u64,
    ) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("dunlin-updates-").tempdir()?;
        let files = Arc::new(Files { folder, bytes: AtomicU64::new(0) });
        let task = tokio::spawn(collect(clients, stage, step, mates, Arc::clone(&files), bytes_max));
        Ok(Self { files, task: task.abort_handle() })
    }

    /// The update of `step`, if it is here; then no longer.
    pub async fn take(&self, step: Step) -> Option<Vec<f32>> {
        let path = self.files.path(step);
        let bytes = fs::read(&path).await.ok()?;
        // It goes with the others at the latest.
        let _ = fs::remove_file(&path).await;
        self.files.bytes.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        Some(from_bytes(&bytes).collect())
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn collect(
    clients: Clients,
    stage: StageId,
    from: Step,
    mates: Vec<Mate>,
    files: Arc<Files>,
    bytes_max: u64,
) {
    let mut step = from;
    loop {
        let Ok(gradient) = made_update(&clients, stage, step, &mates).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let bytes = size_of_val(gradient.as_slice()) as u64;
        if files.bytes.load(Ordering::Relaxed) + bytes > bytes_max {
            warn!(
                stage,
                step,
                bytes_max,
                "no more updates are kept while the state of the stage is fetched: give the pool more disk"
            );
            return;
        }
        if let Err(error) = files.write(step, &gradient).await {
            warn!(stage, step, %error, "an update cannot be kept while the state of the stage is fetched");
            return;
        }
        step += 1;
    }
}
