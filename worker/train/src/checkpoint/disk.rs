//! Files that appear whole or not at all, also when the machine stops in between.
//!
//! A file is written under a temporary name, flushed to the disk, renamed, and then its folder is flushed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::CheckpointError;

/// How temporary files end.
const TEMPORARY: &str = ".tmp";

/// The file system; in tests one that stops after some operations.
#[derive(Debug, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) left: Option<std::cell::Cell<usize>>,
}

impl Disk {
    /// Counts an operation; in tests, all fail from a certain one on.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "for tests"))]
    fn operate(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(left) = &self.left {
            let now = left.get().checked_sub(1);
            left.set(now.unwrap_or(0));
            return now.map(|_| ()).ok_or_else(|| io::Error::other("the machine stopped"));
        }
        Ok(())
    }

    /// Makes `folder` and those it is in.
    pub(super) fn make(&self, folder: &Path) -> Result<(), CheckpointError> {
        let made = self.operate().and_then(|()| fs::create_dir_all(folder));
        made.map_err(|source| CheckpointError::Write { path: folder.to_owned(), source })
    }

    /// Writes `name` in `folder`; `fill` gives it its bytes.
    pub(super) fn write<T>(
        &self,
        folder: &Path,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<T>,
    ) -> Result<T, CheckpointError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = folder.join(name);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Peers on several machines may write the same file: the process alone would not tell them apart.
        let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let temporary = folder.join(format!(".{name}.{}.{process}.{count}{TEMPORARY}", machine.trim()));
        let written = (|| {
            self.operate()?;
            let mut file = io::BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
            self.operate()?;
            let value = fill(&mut file)?;
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            self.operate()?;
            file.sync_all()?;
            self.operate()?;
            fs::rename(&temporary, &path)?;
            self.flush(folder)?;
            Ok(value)
        })();
        if written.is_err() && self.operate().is_ok() {
            // It may not be there.
            let _ = fs::remove_file(&temporary);
        }
        written.map_err(|source| CheckpointError::Write { path, source })
    }

    fn flush(&self, folder: &Path) -> io::Result<()> {
        self.operate()?;
        File::open(folder)?.sync_all()
    }

    /// Removes a file; it is no error when it is not there.
    pub(super) fn remove_file(&self, path: &Path) -> Result<(), CheckpointError> {
        let remove = || {
            self.operate()?;
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            path.parent().map_or(Ok(()), |folder| self.flush(folder))
        };
        remove().map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
    }

    /// Removes a folder of files.
    pub(super) fn remove_folder(&self, folder: &Path) -> Result<(), CheckpointError> {
        for path in files(folder)? {
            self.remove_file(&path)?;
        }
        let removed = self.operate().and_then(|()| fs::remove_dir(folder));
        removed.map_err(|source| CheckpointError::Write { path: folder.to_owned(), source })
    }
}

/// What is in `folder`, in order of names.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let read = |source| CheckpointError::Read { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        paths.push(entry.map_err(read)?.path());
    }
    paths.sort();
    Ok(paths)
}
