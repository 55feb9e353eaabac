//! Opens the model, and says what a user must mend when that fails.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dunlin_model::file::Beside;
use dunlin_model::{ModelError, ModelFile};
use sha2::{Digest, Sha256};

use super::http::{HttpFolder, HttpSource, agent};

/// How the names of downloads end that are under way.
const PARTIAL: &str = ".partial";

/// Something a user must mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable, CamelCase.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// Where the model is.
#[derive(Clone, Debug)]
pub enum Location {
    /// A file or folder here.
    Path(PathBuf),
    /// On a server.
    Url {
        /// URL of a GGUF file or of a folder.
        url: String,
        /// Its digest, lower-case hex, if it must have that.
        sha256: Option<String>,
        /// Folder for the checked copy.
        cache: PathBuf,
    },
}

impl Location {
    /// A name for the model when nobody gave one.
    #[must_use]
    pub fn stem(&self) -> String {
        let path = match self {
            Self::Path(path) => path.clone(),
            Self::Url { url, .. } => PathBuf::from(url),
        };
        let stem = path.file_stem().map_or_else(|| "model".to_owned(), |s| s.to_string_lossy().into_owned());
        without_part(&stem).map_or_else(|| stem.clone(), str::to_owned)
    }

    /// Where a run says that its model is: a path or a URL.
    #[must_use]
    pub fn of_run(place: &str) -> Self {
        if place.starts_with("http://") || place.starts_with("https://") {
            return Self::Url { url: place.to_owned(), sha256: None, cache: PathBuf::new() };
        }
        Self::Path(place.into())
    }

    /// Opens it. With a digest the whole file is read once, checked, and kept in the cache; without, only ranges are ever read.
    ///
    /// # Errors
    /// A problem the user has to fix.
    pub fn open(&self) -> Result<ModelFile, Problem> {
        match self {
            Self::Path(path) => ModelFile::open_path(path).map_err(|error| problem(&error)),
            Self::Url { url, sha256: None, .. } => {
                if let Some(folder) = HttpFolder::find(url) {
                    return ModelFile::open_folder(Arc::new(folder)).map_err(|error| problem(&error));
                }
                let source = Arc::new(HttpSource::open(url).map_err(|error| unreachable(url, &error))?);
                let parts = HttpFolder::of(url);
                let beside = parts.as_ref().map(|(folder, name)| Beside { folder, name });
                ModelFile::open_beside(source, beside.as_ref()).map_err(|error| problem(&error))
            }
            Self::Url { url, sha256: Some(_), .. }
                if url.strip_suffix(".gguf").and_then(without_part).is_some() =>
            {
                Err(Problem {
                    reason: "ModelInvalid",
                    message: format!(
                        "{url} is a model in several files, and spec.model.source.http.sha256 is of one; leave it out, or merge them with `llama-gguf-split --merge`"
                    ),
                })
            }
            Self::Url { url, sha256: Some(sha256), cache } => {
                let path = checked_copy(url, sha256, cache)?;
                ModelFile::open_path(&path).map_err(|error| problem(&error))
            }
        }
    }
}

/// The name without its end if it is that of one of several files: `NAME-00001-of-00003`, `.gguf` taken off.
fn without_part(stem: &str) -> Option<&str> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(count) && count != "00001").then_some(name)
}

/// The problem the user has to fix when the model cannot be used.
#[must_use]
pub fn problem(error: &ModelError) -> Problem {
    let reason = if error.is_unreachable() { "ModelUnreachable" } else { "ModelInvalid" };
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    Problem { reason, message }
}

fn unreachable(url: &str, error: &io::Error) -> Problem {
    Problem {
        reason: "ModelUnreachable",
        message: format!(
            "cannot read {url}: {error}; check spec.model.source and that the server can be reached from here"
        ),
    }
}

/// The file in the cache, downloaded if it is not there; its name is its digest.
fn checked_copy(url: &str, sha256: &str, cache: &Path) -> Result<PathBuf, Problem> {
    let path = cache.join(format!("{sha256}.gguf"));
    if path.exists() {
        return Ok(path);
    }
    let fail = |error: io::Error| unreachable(url, &error);
    std::fs::create_dir_all(cache).map_err(fail)?;
    let response = agent().get(url).call().map_err(|error| fail(io::Error::other(error)))?;
    if response.status() != 200 {
        return Err(fail(io::Error::other(format!("the server answers HTTP {}", response.status()))));
    }
    remove_abandoned(cache);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let partial = cache.join(format!("{sha256}.{}.{nanos}{PARTIAL}", std::process::id()));
    let found = download(&mut response.into_body().into_reader(), &partial);
    let outcome = found.map_err(fail).and_then(|(_locked, found)| {
        if found == sha256 {
            return std::fs::rename(&partial, &path).map_err(fail);
        }
        Err(Problem {
            reason: "ModelDigestMismatch",
            message: format!(
                "{url} has sha256 {found}, the manifest says {sha256}; correct spec.model.source.http.sha256 or the file"
            ),
        })
    });
    if outcome.is_err() {
        // Best effort: what is left is removed by the next try.
        let _ = std::fs::remove_file(&partial);
    }
    outcome.map(|()| path)
}

/// Downloads that nobody goes on with: their process was killed. Those that are under way are locked.
fn remove_abandoned(cache: &Path) {
    let Ok(entries) = std::fs::read_dir(cache) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let partial = path.to_str().is_some_and(|name| name.ends_with(PARTIAL));
        if partial && File::options().write(true).open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            // Another process may have been faster.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Downloads into a file that stays locked as long as it is open. With the digest of what came.
fn download(from: &mut dyn Read, to: &Path) -> io::Result<(File, String)> {
    let file = File::create_new(to)?;
    file.lock()?;
    let sha256 = copy_hashing(from, &file)?;
    Ok((file, sha256))
}

fn copy_hashing(from: &mut dyn Read, mut file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        file.write_all(&buffer[..count])?;
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_in_several_files_is_called_as_it_would_be_in_one() {
        for (path, name) in [
            ("/m/llama-3.1-8b-00001-of-00003.gguf", "llama-3.1-8b"),
            ("/m/llama.gguf", "llama"),
            ("/m/out-of-memory.gguf", "out-of-memory"),
        ] {
            assert_eq!(Location::Path(path.into()).stem(), name);
        }
    }

    #[test]
    fn a_digest_is_of_one_file() {
        let open = |name: &str| {
            let url = format!("http://127.0.0.1:1/{name}");
            Location::Url { url, sha256: Some("0".repeat(64)), cache: "/dev/null".into() }
                .open()
                .err()
                .unwrap()
        };
        let problem = open("m-00001-of-00003.gguf");
        assert!(problem.message.contains("leave it out") && problem.reason == "ModelInvalid", "{problem:?}");
        for name in ["m.gguf", "m-00001-of-00001.gguf", "m-1-of-3.gguf", "out-of-memory.gguf"] {
            assert_eq!(open(name).reason, "ModelUnreachable", "{name}");
        }
    }

    #[test]
    fn a_download_that_nobody_goes_on_with_makes_room() {
        let cache = tempfile::tempdir().unwrap();
        let file = |name: &str| cache.path().join(name);
        std::fs::write(file("a.1.2.partial"), b"half").unwrap();
        std::fs::write(file("a.gguf"), b"whole").unwrap();
        let under_way = File::create_new(file("b.1.2.partial")).unwrap();
        under_way.lock().unwrap();
        remove_abandoned(cache.path());
        let mut left: Vec<_> = std::fs::read_dir(cache.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["a.gguf", "b.1.2.partial"]);
        let (_locked, sha256) = download(&mut &b"abc"[..], &file("c.1.2.partial")).unwrap();
        assert!(sha256.starts_with("ba7816bf") && file("c.1.2.partial").exists());
    }
}
