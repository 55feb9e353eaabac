//! A checked copy of a file, downloaded once for all processes of a machine.
//!
//! The copy has its digest for a name, and appears whole and flushed to the disk. A download goes into a file beside it that its process keeps
//! locked; another process waits. What a process that was stopped left is gone on with, wherever that was: the digest says at the end whether
//! that was right, and if not it begins anew, once.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::digest::Hash;
use crate::error::StoreError;
use crate::progress::Meter;
use crate::server::Server;

/// How the names of downloads end that are under way.
const PARTIAL: &str = ".partial";
/// How often to look whether another process is done.
const LOOK: Duration = Duration::from_millis(50);
/// How long to wait for another process whose download does not grow.
const WAIT: Duration = Duration::from_secs(120);

/// The copy in `folder` of what is at `server`, with this digest (lower case) and an ending such as `gguf`.
///
/// # Errors
/// When it cannot be downloaded or kept, or has another digest.
pub fn fetch(
    server: &Server,
    sha256: &str,
    (folder, ending): (&Path, &str),
    meter: &mut Meter<'_>,
) -> Result<PathBuf, StoreError> {
    let copy = folder.join(format!("{sha256}.{ending}"));
    if copy.exists() {
        return Ok(copy);
    }
    let kept = keep(server, sha256, (folder, &copy), meter);
    kept.map_err(|error| match error {
        StoreError::Local(error) => {
            let what = format!("a copy cannot be kept in {}: {error}", folder.display());
            StoreError::Local(io::Error::new(error.kind(), what))
        }
        other => other,
    })?;
    Ok(copy)
}

fn keep(
    server: &Server,
    sha256: &str,
    (folder, copy): (&Path, &Path),
    meter: &mut Meter<'_>,
) -> Result<(), StoreError> {
    fs::create_dir_all(folder)?;
    let partial = folder.join(format!("{sha256}{PARTIAL}"));
    let Some(mut file) = lock(&partial, copy)? else { return Ok(()) };
    remove_abandoned(folder, &partial);
    let resumed = file.metadata()?.len() > 0;
    let mut found = download(server, &mut file, sha256, meter);
    // What was there may be of another file, or damaged.
    let in_vain = match &found {
        Ok(found) => found != sha256,
        Err(error) => matches!(error, StoreError::Refused(_)),
    };
    if resumed && in_vain {
        file.set_len(0)?;
        found = download(server, &mut file, sha256, meter);
    }
    let found = found?;
    if found != sha256 {
        fs::remove_file(&partial)?;
        return Err(StoreError::Digest { found, expected: sha256.to_owned() });
    }
    file.sync_all()?;
    fs::rename(&partial, copy)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// The locked file of a download; nothing when another process has made the copy meanwhile.
fn lock(partial: &Path, copy: &Path) -> Result<Option<File>, StoreError> {
    let (mut grew, mut length) = (Instant::now(), 0);
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(partial)?;
        match file.try_lock() {
            Ok(()) if copy.exists() => {
                // It was made anew just now, after the other process had renamed its own.
                if same(partial, &file) {
                    fs::remove_file(partial)?;
                }
                return Ok(None);
            }
            Ok(()) if same(partial, &file) => return Ok(Some(file)),
            // Another process has removed it before it was locked here.
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let now = file.metadata()?.len();
        if now != length {
            (grew, length) = (Instant::now(), now);
        } else if grew.elapsed() > WAIT {
            return Err(StoreError::Unavailable(format!(
                "another process on this machine downloads it to {}, and has not come further for {} s",
                partial.display(),
                WAIT.as_secs()
            )));
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether `file` is what is at `path`.
fn same(path: &Path, file: &File) -> bool {
    fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|f| f.ino() == there.ino()))
}

/// Goes on with the download in `file`. Returns the digest of all of it.
fn download(
    server: &Server,
    file: &mut File,
    sha256: &str,
    meter: &mut Meter<'_>,
) -> Result<String, StoreError> {
    let mut hash = Hash::default();
    file.seek(SeekFrom::Start(0))?;
    io::copy(&mut io::BufReader::with_capacity(1 << 20, &mut *file), &mut hash)?;
    if hash.clone().finish() == sha256 {
        return Ok(sha256.to_owned());
    }
    meter.begin(hash.bytes());
    let missing = || StoreError::Missing("there is no such file on the server".to_owned());
    let mut reader = server.reader_from("", hash.bytes())?.ok_or_else(missing)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(hash.finish());
        }
        hash.update(&buffer[..count]);
        file.write_all(&buffer[..count])?;
        meter.count(hash.bytes(), reader.total());
    }
}

/// Downloads of other files that nobody goes on with: they take room.
fn remove_abandoned(folder: &Path, own: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path != own) {
        let partial = path.to_str().is_some_and(|name| name.ends_with(PARTIAL));
        if partial && File::options().write(true).open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            // Another process may have been faster.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use crate::digest::sha256;
    use crate::testing::{file_server, server_at, status};

    fn fetched(server: &Server, content: &[u8], folder: &Path) -> Result<PathBuf, StoreError> {
        fetch(server, &sha256(content), (folder, "gguf"), &mut Meter::new(WAIT, &mut |_| {}))
    }

    fn names(folder: &Path) -> Vec<String> {
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_stopped_process_left_is_gone_on_with_wherever_that_was() {
        let content: Vec<u8> = (0..23).collect();
        let partial = format!("{}{PARTIAL}", sha256(&content));
        for left in 0..=content.len() + 1 {
            for damaged in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let mut before = [content.as_slice(), b"more"].concat()[..left].to_vec();
                if damaged && left > 0 {
                    before[left / 2] ^= 1;
                }
                fs::write(folder.path().join(&partial), &before).unwrap();
                let served = file_server(content.clone());
                let path = fetched(&server_at(&served.url), &content, folder.path()).unwrap();
                assert_eq!(fs::read(path).unwrap(), content);
                assert_eq!(names(folder.path()), [format!("{}.gguf", sha256(&content))]);
                let bytes: usize = served.stop().iter().map(|asked| asked.answered).sum();
                if !damaged && left <= content.len() {
                    assert_eq!(bytes, content.len() - left, "{left} were there");
                }
            }
        }
    }

    #[test]
    fn all_processes_of_a_machine_download_it_once() {
        let content: Vec<u8> = (0..1 << 20).map(|i: u32| (i >> 7) as u8).collect();
        let (folder, served) = (tempfile::tempdir().unwrap(), file_server(content.clone()));
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let path = fetched(&server_at(&served.url), &content, folder.path()).unwrap();
                    assert_eq!(fs::read(path).unwrap(), content);
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        assert_eq!((done.into_inner(), served.stop().len()), (6, 1));
        assert_eq!(names(folder.path()), [format!("{}.gguf", sha256(&content))]);
    }

    #[test]
    fn a_file_that_is_not_the_one_that_is_meant_is_never_kept() {
        let folder = tempfile::tempdir().unwrap();
        let served = file_server(b"other".to_vec());
        let error = fetched(&server_at(&served.url), b"meant", folder.path()).unwrap_err();
        assert!(matches!(&error, StoreError::Digest { found, .. } if *found == sha256(b"other")), "{error}");
        assert!(names(folder.path()).is_empty() && served.stop().len() == 1);
        // What came stays when the server goes away, for the next attempt.
        let served = crate::testing::serve(4, |_, _| status(503));
        fs::write(folder.path().join(format!("{}{PARTIAL}", sha256(b"meant"))), b"me").unwrap();
        let error = fetched(&server_at(&served.url), b"meant", folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert_eq!((served.stop().len(), names(folder.path()).len()), (4, 1));
    }

    #[test]
    fn a_download_that_nobody_goes_on_with_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("a.partial"), b"half").unwrap();
        fs::write(file("a.gguf"), b"whole").unwrap();
        let under_way = File::create_new(file("b.partial")).unwrap();
        under_way.lock().unwrap();
        fs::write(file("own.partial"), b"half").unwrap();
        remove_abandoned(folder.path(), &file("own.partial"));
        assert_eq!(names(folder.path()), ["a.gguf", "b.partial", "own.partial"]);
    }
}
