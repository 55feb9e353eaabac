//! Opens the model, and says what a user must mend when that fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::file::Beside;
use dunlin_model::{ModelError, ModelFile};
use dunlin_store::{Location, Meter, Server, StoreError, TransferProgress, cache};
use tracing::info;

use super::remote::{RemoteFile, RemoteFolder};

/// How often a download says how far it is.
const TELL: Duration = Duration::from_secs(10);

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
pub struct ModelPlace {
    /// A file or folder.
    pub location: Location,
    /// What says where it is, for messages.
    pub field: &'static str,
    /// Folder for the checked copy of a file with a digest.
    pub cache: PathBuf,
}

impl ModelPlace {
    /// A file or folder here.
    #[must_use]
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::of_model(Location::Path(path.into()), PathBuf::new())
    }

    /// What a swarm serves.
    #[must_use]
    pub fn of_model(location: Location, cache: PathBuf) -> Self {
        Self { location, field: "spec.model.source", cache }
    }

    /// Where a run says that its model is: a path, a URL, or a bucket.
    #[must_use]
    pub fn of_run(place: &str) -> Self {
        Self { location: Location::parse(place), field: "model.checkpoint", cache: PathBuf::new() }
    }

    /// A name for the model when nobody gave one.
    #[must_use]
    pub fn name(&self) -> String {
        let stem = self.location.stem();
        without_part(&stem).map_or_else(|| stem.clone(), str::to_owned)
    }

    /// Opens it. With a digest the whole file is read once, checked, and kept in the cache; without, only ranges are ever read.
    ///
    /// # Errors
    /// A problem the user has to fix.
    pub fn open(&self) -> Result<ModelFile, Problem> {
        let invalid = |error: ModelError| problem(&error);
        if let Location::Path(path) = &self.location {
            return ModelFile::open_path(path).map_err(invalid);
        }
        let unreachable = |error: StoreError| self.unreachable(error);
        let place = self.location.to_string();
        let server = Server::new(&self.location, self.field).map_err(unreachable)?;
        if let Some(sha256) = self.location.sha256() {
            if place.strip_suffix(".gguf").and_then(without_part).is_some() {
                let message = format!(
                    "{place} is a model in several files, and {}.http.sha256 is of one; leave it out, or merge them with `llama-gguf-split --merge`",
                    self.field
                );
                return Err(Problem { reason: "ModelInvalid", message });
            }
            let mut meter = |p: TransferProgress| {
                info!(
                    place,
                    bytes = p.bytes,
                    total = p.total,
                    bytes_per_s = p.bytes_per_s,
                    "the model is downloaded"
                );
            };
            let meter = &mut Meter::new(TELL, &mut meter);
            let copy = cache::fetch(&server, &sha256, (&self.cache, "gguf"), meter).map_err(unreachable)?;
            return ModelFile::open_path(&copy).map_err(invalid);
        }
        // Whatever else is wrong with a folder is said when its files are opened.
        if server.ranged("config.json").is_ok_and(|found| found.is_some()) {
            return ModelFile::open_folder(Arc::new(RemoteFolder { server, place })).map_err(invalid);
        }
        let file = server.ranged("").map_err(unreachable)?;
        let file = file.ok_or_else(|| unreachable(StoreError::missing(&place)))?;
        let parent = self.location.parent().and_then(|(folder, name)| {
            let server = Server::new(&folder, self.field).ok()?;
            Some((RemoteFolder { server, place: folder.to_string() }, name))
        });
        let beside = parent.as_ref().map(|(folder, name)| Beside { folder, name });
        ModelFile::open_beside(Arc::new(RemoteFile::new(file, place)), beside.as_ref()).map_err(invalid)
    }

    fn unreachable(&self, error: StoreError) -> Problem {
        let Self { location, field, .. } = self;
        if let StoreError::Digest { found, expected } = error {
            let message = format!(
                "{location} has sha256 {found}, not {expected}; correct {field}.http.sha256 or the file"
            );
            return Problem { reason: "ModelDigestMismatch", message };
        }
        let message = format!(
            "cannot read {location}: {error}; check {field} and that the server can be reached from here"
        );
        Problem { reason: "ModelUnreachable", message }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use dunlin_store::HttpLocation;

    use super::*;

    #[test]
    fn a_model_in_several_files_is_called_as_it_would_be_in_one() {
        for (path, name) in [
            ("/m/llama-3.1-8b-00001-of-00003.gguf", "llama-3.1-8b"),
            ("/m/llama.gguf", "llama"),
            ("/m/out-of-memory.gguf", "out-of-memory"),
        ] {
            assert_eq!(ModelPlace::path(path).name(), name);
        }
    }

    #[test]
    fn a_digest_is_of_one_file() {
        let open = |name: &str| {
            let url = HttpLocation::new(format!("http://127.0.0.1:1/{name}"));
            let location = Location::Http(HttpLocation { sha256: Some("0".repeat(64)), ..url });
            // No cache can be there, so that nothing is asked for.
            ModelPlace::of_model(location, "/dev/null".into()).open().err().unwrap()
        };
        let problem = open("m-00001-of-00003.gguf");
        assert!(problem.message.contains("leave it out") && problem.reason == "ModelInvalid", "{problem:?}");
        for name in ["m.gguf", "m-00001-of-00001.gguf", "m-1-of-3.gguf", "out-of-memory.gguf"] {
            let problem = open(name);
            assert!(problem.message.contains("a copy cannot be kept in /dev/null"), "{problem:?}");
        }
    }
}
