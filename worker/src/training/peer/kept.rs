//! Updates of a stage that are kept while its state is on the way, as files among what is temporary.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_protocol::training::Step;
use dunlin_train::scratch::ScratchFolder;
use tokio::fs;

use super::super::values::{from_bytes, to_bytes};

/// A folder of updates. Dropped, it is removed.
pub(super) struct Kept {
    folder: ScratchFolder,
    /// Files that were begun.
    files: AtomicU64,
}

impl Kept {
    /// An empty one.
    ///
    /// # Errors
    /// When there is nowhere to put it.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { folder: ScratchFolder::new("updates")?, files: AtomicU64::new(0) })
    }

    /// Where the update of a step is.
    pub fn path(&self, step: Step) -> PathBuf {
        self.folder.path().join(step.to_string())
    }

    /// Keeps an update.
    pub async fn write(&self, step: Step, gradient: &[f32]) -> std::io::Result<()> {
        // A reader that finds the file finds all of it. One that was given up may still be written.
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let part = self.folder.path().join(format!("part-{number}"));
        fs::write(&part, to_bytes(gradient)).await?;
        fs::rename(&part, self.path(step)).await
    }

    /// Takes the update of a step back; then it takes no place any longer.
    pub async fn take(&self, step: Step) -> std::io::Result<Vec<f32>> {
        let path = self.path(step);
        let bytes = fs::read(&path).await?;
        // It goes with the folder at the latest.
        let _ = fs::remove_file(&path).await;
        Ok(from_bytes(&bytes).collect())
    }

    /// The update of a step is not needed.
    pub fn remove(&self, step: Step) {
        let _ = std::fs::remove_file(self.path(step));
    }
}
