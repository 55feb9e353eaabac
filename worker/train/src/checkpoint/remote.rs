//! Checkpoints behind HTTP: the files of a folder, put one by one below a URL by anything that takes PUT (WebDAV, a bucket behind a proxy).
//!
//! A file is first made in a folder of this machine and then sent. A server lists nothing, so `latest.json` says which steps are complete;
//! it is written after a manifest, and before what is old is deleted. At each moment it names only complete checkpoints.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use ureq::http::Response;
use ureq::{Agent, AsSendBody, Body, RequestBuilder};

use super::destination::HttpPlace;
use super::disk::Disk;
use super::manifest::{FILE, folder};
use super::read::{Latest, files_of};
use super::write::{make_manifest, write_stage};
use super::{Checkpoint, CheckpointError, FileRecord, Identity, Manifest, Stage, StageRecord, TensorSpec};
use crate::optimizer::OptimizerState;

/// Name of the list of complete checkpoints.
const LATEST: &str = "latest.json";
/// Longest list or manifest.
const TEXT_MAX: u64 = 64 << 20;
/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time until an answer begins, once the request is sent.
const RESPONSE: Duration = Duration::from_secs(60);
/// Time for one file, either way.
const TRANSFER: Duration = Duration::from_secs(3600);

/// What `latest.json` has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct List {
    /// Steps of complete checkpoints, the newest first.
    steps: Vec<u64>,
}

/// A URL below which checkpoints are.
pub(super) struct Remote {
    base: String,
    headers: Option<PathBuf>,
    agent: Agent,
}

/// A folder of this machine that goes with its handle.
fn scratch() -> Result<TempDir, CheckpointError> {
    let made = tempfile::Builder::new().prefix("dunlin-checkpoint-").tempdir();
    made.map_err(|source| CheckpointError::Write { path: std::env::temp_dir(), source })
}

impl Remote {
    pub(super) fn new(place: &HttpPlace) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(RESPONSE))
            .timeout_send_body(Some(TRANSFER))
            .timeout_recv_body(Some(TRANSFER))
            .build()
            .into();
        Self { base: place.url.trim_end_matches('/').to_owned(), headers: place.headers.clone(), agent }
    }

    /// A request with the headers of the destination.
    fn with_headers<B>(&self, mut request: RequestBuilder<B>) -> Result<RequestBuilder<B>, CheckpointError> {
        let Some(folder) = &self.headers else { return Ok(request) };
        for entry in std::fs::read_dir(folder).map_err(|e| unread(folder, e))? {
            let path = entry.map_err(|e| unread(folder, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // A mounted Secret keeps its versions behind such names.
            if name.starts_with("..") {
                continue;
            }
            let value = std::fs::read_to_string(&path).map_err(|e| unread(&path, e))?;
            request = request.header(name, value.trim_end());
        }
        Ok(request)
    }

    /// The folder of a step, as others name it.
    pub(super) fn folder(&self, step: u64) -> PathBuf {
        folder(Path::new(&self.base), step)
    }

    fn url(&self, step: u64, name: &str) -> String {
        format!("{}/{name}", self.folder(step).display())
    }

    fn get(&self, url: &str) -> Result<Option<Response<Body>>, CheckpointError> {
        let answer =
            self.with_headers(self.agent.get(url))?.call().map_err(|e| unread(url, io::Error::other(e)))?;
        match answer.status().as_u16() {
            200 => Ok(Some(answer)),
            404 => Ok(None),
            status => Err(unread(url, io::Error::other(format!("the server answers HTTP {status}")))),
        }
    }

    fn text(&self, url: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let Some(mut answer) = self.get(url)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = answer.body_mut().as_reader().take(TEXT_MAX).read_to_end(&mut bytes);
        read.map_err(|source| unread(url, source))?;
        Ok(Some(bytes))
    }

    fn put(&self, url: &str, body: impl AsSendBody) -> Result<(), CheckpointError> {
        let answer = self
            .with_headers(self.agent.put(url))?
            .send(body)
            .map_err(|e| unwritten(url, io::Error::other(e)))?;
        accepted(url, answer.status().as_u16())
    }

    fn put_file(&self, step: u64, folder: &Path, name: &str) -> Result<(), CheckpointError> {
        let url = self.url(step, name);
        let path = folder.join(name);
        let file = File::open(&path).map_err(|source| CheckpointError::Read { path, source })?;
        self.put(&url, &file)
    }

    /// Fetches a file into `folder`.
    fn fetch(&self, step: u64, file: &FileRecord, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let url = self.url(step, &file.name);
        let missing =
            || CheckpointError::Damaged { path: PathBuf::from(&url), problem: "it is not there".to_owned() };
        let mut answer = self.get(&url)?.ok_or_else(missing)?;
        let mut body = answer.body_mut().as_reader();
        Disk::default().write(folder, &file.name, |out| io::copy(&mut body, out))?;
        Ok(file.path(folder))
    }

    /// It is no error when it is not there.
    fn delete(&self, url: &str) -> Result<(), CheckpointError> {
        let answer = self
            .with_headers(self.agent.delete(url))?
            .call()
            .map_err(|e| unwritten(url, io::Error::other(e)))?;
        match answer.status().as_u16() {
            404 => Ok(()),
            status => accepted(url, status),
        }
    }

    /// Checks that a file is there with its length.
    fn check_length(&self, step: u64, file: &FileRecord) -> Result<(), CheckpointError> {
        let url = self.url(step, &file.name);
        let answer = self
            .with_headers(self.agent.head(&url))?
            .call()
            .map_err(|e| unread(&url, io::Error::other(e)))?;
        let damaged = |problem| Err(CheckpointError::Damaged { path: PathBuf::from(&url), problem });
        if answer.status().as_u16() != 200 {
            return damaged(format!("the server answers HTTP {}", answer.status().as_u16()));
        }
        let length =
            answer.headers().get("content-length").and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
        match length {
            Some(found) if found != file.bytes => {
                damaged(format!("it has {found} bytes, the manifest says {}", file.bytes))
            }
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<List, CheckpointError> {
        let url = format!("{}/{LATEST}", self.base);
        let Some(bytes) = self.text(&url)? else { return Ok(List::default()) };
        serde_json::from_slice(&bytes).map_err(|e| CheckpointError::Damaged {
            path: PathBuf::from(url),
            problem: format!("it is no list of steps: {e}"),
        })
    }

    fn put_list(&self, list: &List) -> Result<(), CheckpointError> {
        let text = serde_json::to_string(list).map_err(|e| CheckpointError::Mismatch(e.to_string()))?;
        self.put(&format!("{}/{LATEST}", self.base), text.as_bytes())
    }

    fn manifest(&self, step: u64) -> Result<Option<Manifest>, CheckpointError> {
        let url = self.url(step, FILE);
        self.text(&url)?.map(|bytes| Manifest::parse(&bytes, Path::new(&url))).transpose()
    }

    /// As for folders, but digests are checked by who reads a file: here only lengths are.
    pub(super) fn latest(&self) -> Result<Latest, CheckpointError> {
        let mut damaged = Vec::new();
        for step in self.list()?.steps {
            let opened = self.manifest(step).and_then(|manifest| {
                let url = || PathBuf::from(self.url(step, FILE));
                let missing =
                    || CheckpointError::Damaged { path: url(), problem: "it is not there".to_owned() };
                let manifest = manifest.ok_or_else(missing)?;
                manifest.all_files().try_for_each(|file| self.check_length(step, file))?;
                Ok(Checkpoint { folder: self.folder(step), manifest })
            });
            match opened {
                Ok(checkpoint) => return Ok(Latest { checkpoint: Some(checkpoint), damaged }),
                Err(error @ CheckpointError::Damaged { .. }) => damaged.push(error),
                // A server that does not answer is no reason to go on from an older one.
                Err(error) => return Err(error),
            }
        }
        Ok(Latest { checkpoint: None, damaged })
    }

    /// What an earlier attempt left is overwritten; its manifest goes at once.
    pub(super) fn begin(&self, step: u64) -> Result<(), CheckpointError> {
        let mut list = self.list()?;
        if list.steps.contains(&step) {
            list.steps.retain(|s| *s != step);
            self.put_list(&list)?;
        }
        self.delete(&self.url(step, FILE))
    }

    pub(super) fn write_stage(&self, step: u64, stage: &Stage<'_>) -> Result<StageRecord, CheckpointError> {
        let scratch = scratch()?;
        let record = write_stage(scratch.path(), step, stage)?;
        let made = folder(scratch.path(), step);
        for file in [&record.model, &record.optimizer] {
            self.put_file(step, &made, &file.name)?;
        }
        Ok(record)
    }

    /// Makes the checkpoint complete, and deletes those that are not among the `keep` newest. Returns these.
    pub(super) fn seal(
        &self,
        identity: Identity<'_>,
        stages: Vec<StageRecord>,
        keep: usize,
    ) -> Result<(Manifest, Vec<u64>), CheckpointError> {
        let (scratch, step) = (scratch()?, identity.step);
        let local = |file: &FileRecord| self.fetch(step, file, scratch.path());
        let manifest = make_manifest(&Disk::default(), scratch.path(), identity, stages, &local)?;
        for file in &manifest.files {
            self.put_file(step, scratch.path(), &file.name)?;
        }
        manifest.all_files().try_for_each(|file| self.check_length(step, file))?;
        self.put(&self.url(step, FILE), manifest.to_bytes()?.as_slice())?;
        let mut steps = self.list()?.steps;
        steps.retain(|s| *s != step);
        steps.push(step);
        steps.sort_unstable_by(|a, b| b.cmp(a));
        let removed = steps.split_off(keep.max(1).min(steps.len()));
        self.put_list(&List { steps })?;
        for old in &removed {
            let manifest = self.manifest(*old)?;
            self.delete(&self.url(*old, FILE))?;
            for file in manifest.iter().flat_map(Manifest::all_files) {
                self.delete(&self.url(*old, &file.name))?;
            }
        }
        Ok((manifest, removed))
    }

    /// Fetches the files that have `wanted`, and reads them.
    pub(super) fn read_stage(
        &self,
        step: u64,
        wanted: &[TensorSpec],
        length: usize,
    ) -> Result<Option<(Vec<f32>, OptimizerState)>, CheckpointError> {
        let Some(manifest) = self.manifest(step)? else { return Ok(None) };
        let scratch = scratch()?;
        for file in files_of(&manifest, wanted)? {
            self.fetch(step, file, scratch.path())?;
        }
        Checkpoint { folder: scratch.path().to_owned(), manifest }.read_stage(wanted, length).map(Some)
    }
}

fn unread(place: impl Into<PathBuf>, source: io::Error) -> CheckpointError {
    CheckpointError::Read { path: place.into(), source }
}

fn unwritten(url: &str, source: io::Error) -> CheckpointError {
    CheckpointError::Write { path: PathBuf::from(url), source }
}

fn accepted(url: &str, status: u16) -> Result<(), CheckpointError> {
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(unwritten(url, io::Error::other(format!("the server answers HTTP {status}"))))
}
