//! Checkpoints on a server: the files of a folder, put one by one below a URL by anything that takes PUT (WebDAV, say), or into a bucket.
//!
//! A file is first made in a folder of this machine and then sent. A server lists nothing, so `latest.json` says which steps are complete;
//! it is written after a manifest, and before what is old is deleted. At each moment it names only complete checkpoints.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use dunlin_store::{Reader, Server, StoreError};
use serde::{Deserialize, Serialize};

use super::destination::Destination;
use super::disk::Disk;
use super::error::CheckpointError;
use super::identity::Identity;
use super::manifest::{FileRecord, Manifest, StageRecord};
use super::names::{FILE, folder, stage_files};
use super::read::{Checkpoint, Latest, Scrutiny, check_bytes, files_of, newest_of};
use super::tensor::TensorSpec;
use super::write::{StageValues, beside, make_manifest, write_stage};
use crate::config::TrainingConfig;
use crate::optimizer::OptimizerState;
use crate::scratch::ScratchFolder;

/// Name of the list of complete checkpoints.
const LATEST: &str = "latest.json";
/// Longest list or manifest.
const TEXT_MAX: u64 = 64 << 20;

/// What `latest.json` has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct List {
    /// Steps of complete checkpoints, the newest first.
    steps: Vec<u64>,
}

/// A place on a server below which checkpoints are.
pub(super) struct Remote {
    /// As people name it.
    place: PathBuf,
    server: Server,
}

/// A folder of this machine that goes with its handle.
fn scratch() -> Result<ScratchFolder, CheckpointError> {
    ScratchFolder::new("checkpoint")
        .map_err(|source| CheckpointError::Write { path: std::env::temp_dir(), source })
}

/// The name of a file of a step, below the place.
fn name(step: u64, file: &str) -> String {
    folder(Path::new(""), step).join(file).display().to_string()
}

/// Copies all of `from`; an error of reading is left in `broken`.
fn copy(from: &mut impl Read, to: &mut dyn Write, broken: &mut Option<io::Error>) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                *broken = Some(error);
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl Remote {
    pub(super) fn new(place: &Destination) -> Result<Self, CheckpointError> {
        let server = Server::new(place.location(), "checkpoint.destination");
        let server = server.map_err(|error| CheckpointError::Mismatch(error.to_string()))?;
        Ok(Self { place: place.to_string().into(), server })
    }

    fn unread(&self, name: &str, source: impl Into<io::Error>) -> CheckpointError {
        CheckpointError::Read { path: self.place.join(name), source: source.into() }
    }

    fn unwritten(&self, name: &str, source: StoreError) -> CheckpointError {
        CheckpointError::Write { path: self.place.join(name), source: source.into() }
    }

    fn damaged(&self, name: &str, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::Damaged { path: self.place.join(name), problem: problem.into() }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        self.server.bytes(name, TEXT_MAX).map_err(|e| self.unread(name, e))
    }

    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.server.put(name, bytes).map_err(|e| self.unwritten(name, e))
    }

    fn put_file(&self, step: u64, folder: &Path, file: &str) -> Result<(), CheckpointError> {
        let (name, path) = (name(step, file), folder.join(file));
        let file = File::open(&path).map_err(|source| CheckpointError::Read { path, source })?;
        self.server.put_file(&name, &file).map_err(|e| self.unwritten(&name, e))
    }

    fn reader(&self, name: &str) -> Result<Reader, CheckpointError> {
        let found = self.server.reader(name).map_err(|e| self.unread(name, e))?;
        found.ok_or_else(|| self.damaged(name, "it is not there"))
    }

    /// Fetches a file into `folder`.
    fn fetch(&self, step: u64, file: &FileRecord, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let name = name(step, &file.name);
        let mut body = self.reader(&name)?;
        // What cannot be read is no fault of the folder.
        let mut broken = None;
        let copied = Disk::default().write(folder, &file.name, |out| copy(&mut body, out, &mut broken));
        match (copied, broken) {
            (Err(_), Some(source)) => Err(self.unread(&name, source)),
            (copied, _) => copied.map(|()| file.path(folder)),
        }
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), CheckpointError> {
        self.server.delete(name).map_err(|e| self.unwritten(name, e))
    }

    /// Checks that a file is there with its length.
    fn check_length(&self, step: u64, file: &FileRecord) -> Result<(), CheckpointError> {
        let name = name(step, &file.name);
        match self.server.length(&name).map_err(|e| self.unread(&name, e))? {
            None => Err(self.damaged(&name, "it is not there")),
            Some(Some(found)) if found != file.bytes => {
                let problem = format!("it has {found} bytes, the manifest says {}", file.bytes);
                Err(self.damaged(&name, problem))
            }
            Some(_) => Ok(()),
        }
    }

    fn list(&self) -> Result<List, CheckpointError> {
        let Some(bytes) = self.text(LATEST)? else { return Ok(List::default()) };
        serde_json::from_slice(&bytes)
            .map_err(|e| self.damaged(LATEST, format!("it is no list of steps: {e}")))
    }

    fn put_list(&self, list: &List) -> Result<(), CheckpointError> {
        let text = serde_json::to_string(list).map_err(|e| CheckpointError::Mismatch(e.to_string()))?;
        self.put(LATEST, text.as_bytes())
    }

    fn manifest(&self, step: u64) -> Result<Option<Manifest>, CheckpointError> {
        let name = name(step, FILE);
        self.text(&name)?.map(|bytes| Manifest::parse(&bytes, step, &self.place.join(&name))).transpose()
    }

    /// As for folders. A server that does not answer is no reason to go on from an older one.
    pub(super) fn latest(&self, scrutiny: Scrutiny) -> Result<Latest, CheckpointError> {
        newest_of(self.list()?.steps, |step| {
            let found = self.open(step)?;
            let found = found.ok_or_else(|| self.damaged(&name(step, FILE), "it is not there"))?;
            if scrutiny == Scrutiny::Digests {
                found.manifest.all_files().try_for_each(|file| self.check_digest(step, file))?;
            }
            Ok(Some(found))
        })
    }

    /// The checkpoint of `step`, if there is one; lengths of files are checked.
    pub(super) fn open(&self, step: u64) -> Result<Option<Checkpoint>, CheckpointError> {
        let Some(manifest) = self.manifest(step)? else { return Ok(None) };
        manifest.all_files().try_for_each(|file| self.check_length(step, file))?;
        Ok(Some(Checkpoint { folder: folder(&self.place, step), manifest }))
    }

    /// Reads a file as it comes, and checks its digest.
    fn check_digest(&self, step: u64, file: &FileRecord) -> Result<(), CheckpointError> {
        let name = name(step, &file.name);
        check_bytes(self.reader(&name)?, file, self.place.join(&name))
    }

    /// Deletes what an attempt at the checkpoint of `step` left, unless that is complete. A server lists nothing: the names are those that
    /// such an attempt has.
    pub(super) fn discard(&self, step: u64, config: &TrainingConfig) -> Result<(), CheckpointError> {
        if self.list()?.steps.contains(&step) {
            return Ok(());
        }
        self.delete(&name(step, FILE))?;
        let stages =
            (0..config.stages).flat_map(|stage| stage_files(config.adapter.is_some(), stage, config.stages));
        for file in stages.chain(beside(config)) {
            self.delete(&name(step, &file))?;
        }
        Ok(())
    }

    pub(super) fn write_stage(
        &self,
        step: u64,
        stage: &StageValues<'_>,
    ) -> Result<StageRecord, CheckpointError> {
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
        self.put(&name(step, FILE), manifest.to_bytes()?.as_slice())?;
        let mut steps = self.list()?.steps;
        steps.retain(|s| *s != step);
        steps.push(step);
        steps.sort_unstable_by(|a, b| b.cmp(a));
        let removed = steps.split_off(keep.max(1).min(steps.len()));
        self.put_list(&List { steps })?;
        for old in &removed {
            let manifest = self.manifest(*old)?;
            self.delete(&name(*old, FILE))?;
            for file in manifest.iter().flat_map(Manifest::all_files) {
                self.delete(&name(*old, &file.name))?;
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
    ) -> Result<(Vec<f32>, OptimizerState), CheckpointError> {
        let missing = || CheckpointError::Missing(folder(&self.place, step));
        let manifest = self.manifest(step)?.ok_or_else(missing)?;
        let scratch = scratch()?;
        for file in files_of(&manifest, wanted)? {
            self.fetch(step, file, scratch.path())?;
        }
        Checkpoint { folder: scratch.path().to_owned(), manifest }.read_stage(wanted, length)
    }
}
