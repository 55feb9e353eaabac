//! Folders for what is temporary. They go with their handle, and what a process that was killed left goes with the next one.
//!
//! Each folder has a file that its process keeps locked. The kernel unlocks it when the process ends, however that ends: a folder that
//! nobody has locked is nobody's.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How their names begin.
const PREFIX: &str = "dunlin-scratch-";
/// The file that is locked.
const LOCK: &str = "lock";
/// A folder that is taken for nobody's before it is locked is made again so many times.
const ATTEMPTS: u32 = 16;

/// A folder among what is temporary on this machine.
pub struct ScratchFolder {
    path: PathBuf,
    /// As long as this is open.
    _lock: File,
}

impl ScratchFolder {
    /// A new, empty folder, with `kind` in its name. What dead processes left is removed first.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(kind: &str) -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir(), kind)
    }

    fn new_in(parent: &Path, kind: &str) -> io::Result<Self> {
        sweep_in(parent);
        for _ in 0..ATTEMPTS {
            let made = tempfile::Builder::new().prefix(&format!("{PREFIX}{kind}-")).tempdir_in(parent)?;
            match lock(made.path()) {
                // From here on it is removed by this handle, or by a sweep.
                Ok(Some(lock)) => return Ok(Self { path: made.keep(), _lock: lock }),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("{} does not keep what is made there", parent.display())))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        // What cannot be removed now goes with a later sweep.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Locks a folder that was made just now; nothing when a sweep was faster.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let path = folder.join(LOCK);
    let file = File::create_new(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // A sweep that had it locked before has removed it.
    let there = fs::metadata(&path).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() == m.ino()));
    Ok(there.then_some(file))
}

/// Removes what processes left that no longer run.
pub fn sweep() {
    sweep_in(&std::env::temp_dir());
}

fn sweep_in(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // What belongs to another user stays.
            let _ = remove_if_nobodys(&entry.path());
        }
    }
}

fn remove_if_nobodys(folder: &Path) -> io::Result<()> {
    let file = match File::options().write(true).open(folder.join(LOCK)) {
        // Its process ended before it was locked, or is about to lock it, and makes another one then. It is empty.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::remove_dir(folder),
        other => other?,
    };
    match file.try_lock() {
        Ok(()) => fs::remove_dir_all(folder),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    fn names(folder: &Folder) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_nobody_has_locked_goes_and_the_rest_stays() {
        let folder = Folder::new();
        let alive = ScratchFolder::new_in(folder.path(), "a").unwrap();
        fs::write(alive.path().join("file"), b"1").unwrap();
        // As a process leaves it that is killed: with a lock that nobody holds, and without one.
        let dead = folder.path().join("dunlin-scratch-b-1");
        fs::create_dir_all(dead.join("deep")).unwrap();
        fs::write(dead.join(LOCK), b"").unwrap();
        fs::create_dir(folder.path().join("dunlin-scratch-c-1")).unwrap();
        // Not ours: other names, files, what a link points to.
        fs::create_dir_all(folder.path().join("elsewhere/deep")).unwrap();
        fs::write(folder.path().join("dunlin-scratch-file"), b"").unwrap();
        std::os::unix::fs::symlink(
            folder.path().join("elsewhere"),
            folder.path().join("dunlin-scratch-link"),
        )
        .unwrap();
        let second = ScratchFolder::new_in(folder.path(), "a").unwrap();
        let mut left =
            vec!["dunlin-scratch-file".to_owned(), "dunlin-scratch-link".into(), "elsewhere".into()];
        for scratch in [&alive, &second] {
            left.push(scratch.path().file_name().unwrap().to_str().unwrap().to_owned());
        }
        left.sort();
        assert_eq!(names(&folder), left);
        assert_eq!(fs::read(alive.path().join("file")).unwrap(), b"1");
        drop((alive, second));
        assert_eq!(names(&folder), ["dunlin-scratch-file", "dunlin-scratch-link", "elsewhere"]);
    }

    #[test]
    fn many_at_once_take_nothing_from_each_other() {
        let folder = Folder::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let scratch = ScratchFolder::new_in(folder.path(), "x").unwrap();
                        fs::write(scratch.path().join("file"), b"1").unwrap();
                        sweep_in(folder.path());
                        assert_eq!(fs::read(scratch.path().join("file")).unwrap(), b"1");
                    }
                });
            }
        });
        sweep_in(folder.path());
        assert!(names(&folder).is_empty(), "{:?}", names(&folder));
    }
}
