//! Reading: the newest sound checkpoint, and tensors of any of them for any cut in stages.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use dunlin_model::safetensors::{self, Dtype};
use dunlin_model::{ByteSource, FileSource};
use dunlin_store::digest::sha256_of;

use super::disk;
use super::error::CheckpointError;
use super::manifest::{FileRecord, Manifest, StageRecord};
use super::names::{folder, slot_name};
use super::tensor::TensorSpec;
use crate::optimizer::OptimizerState;

/// A complete checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Where it is: a model in Hugging Face's form.
    pub folder: PathBuf,
    /// What is in it.
    pub manifest: Manifest,
}

/// The newest checkpoint that can be used.
#[derive(Debug)]
pub struct Latest {
    /// If there is one.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that are damaged, and why: say so before going on from an older one.
    pub damaged: Vec<CheckpointError>,
}

/// How closely a checkpoint is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrutiny {
    /// All files are there with the right lengths.
    Lengths,
    /// Their digests are right too, for which all of them are read.
    Digests,
}

/// Steps that have a folder, the newest first. No folder at all: none.
pub(super) fn steps(destination: &Path) -> Result<Vec<u64>, CheckpointError> {
    if !destination.exists() {
        return Ok(Vec::new());
    }
    let step = |path: &PathBuf| {
        let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
        (folder(destination, step) == *path && path.is_dir()).then_some(step)
    };
    let mut steps: Vec<u64> = disk::files(destination)?.iter().filter_map(step).collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// The newest checkpoint of `destination` that stands up to `scrutiny`. Folders without a manifest are passed over in silence: they never
/// were checkpoints. A destination or a file that cannot be read is no reason to go on from an older checkpoint, and an error. That the
/// destination does not exist is none.
pub(super) fn latest(destination: &Path, scrutiny: Scrutiny) -> Result<Latest, CheckpointError> {
    newest_of(steps(destination)?, |step| {
        let checkpoint = open(destination, step)?;
        if let (Some(checkpoint), Scrutiny::Digests) = (&checkpoint, scrutiny) {
            checkpoint.verify()?;
        }
        Ok(checkpoint)
    })
}

/// The first of `steps` that `open` takes for a checkpoint, and the damage that was found before.
pub(super) fn newest_of(
    steps: Vec<u64>,
    open: impl Fn(u64) -> Result<Option<Checkpoint>, CheckpointError>,
) -> Result<Latest, CheckpointError> {
    let mut damaged = Vec::new();
    for step in steps {
        match open(step) {
            Ok(None) => {}
            Ok(checkpoint) => return Ok(Latest { checkpoint, damaged }),
            Err(error) if error.is_damage() => damaged.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok(Latest { checkpoint: None, damaged })
}

/// The checkpoint of `step`, if there is one; lengths of files are checked.
pub(super) fn open(destination: &Path, step: u64) -> Result<Option<Checkpoint>, CheckpointError> {
    let folder = folder(destination, step);
    let Some(manifest) = Manifest::read(destination, step)? else { return Ok(None) };
    manifest.all_files().try_for_each(|file| check_length(&folder, file))?;
    Ok(Some(Checkpoint { folder, manifest }))
}

pub(super) fn check_length(folder: &Path, file: &FileRecord) -> Result<(), CheckpointError> {
    let path = file.path(folder);
    let found = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(CheckpointError::Damaged { path, problem: "it is not there".to_owned() });
        }
        Err(source) => return Err(CheckpointError::Read { path, source }),
    };
    if found == file.bytes {
        return Ok(());
    }
    let problem = format!("it has {found} bytes, the manifest says {}", file.bytes);
    Err(CheckpointError::Damaged { path, problem })
}

fn check_digest(folder: &Path, file: &FileRecord) -> Result<(), CheckpointError> {
    let path = file.path(folder);
    let opened = File::open(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
    check_bytes(opened, file, path)
}

/// Reads all `bytes` of a file, which is at `path` for messages, and checks their digest.
pub(super) fn check_bytes(
    mut bytes: impl Read,
    file: &FileRecord,
    path: PathBuf,
) -> Result<(), CheckpointError> {
    let found =
        sha256_of(&mut bytes).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
    if found == file.sha256 {
        return Ok(());
    }
    let problem = format!("its SHA-256 is {found}, the manifest says {}", file.sha256);
    Err(CheckpointError::Damaged { path, problem })
}

impl Checkpoint {
    /// Checks the digests of all files.
    ///
    /// # Errors
    /// The first file that cannot be read or is damaged.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        self.manifest.all_files().try_for_each(|file| check_digest(&self.folder, file))
    }

    /// Reads `wanted` into flat vectors of `length` values, whatever stages wrote them. Files that are read are checked. Places outside of
    /// `wanted` are 0.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, or a file is damaged.
    pub fn read_stage(
        &self,
        wanted: &[TensorSpec],
        length: usize,
    ) -> Result<(Vec<f32>, OptimizerState), CheckpointError> {
        for TensorSpec { name, shape, range } in wanted {
            if range.end > length || range.len() != shape.iter().product::<usize>() {
                let text =
                    format!("tensor `{name}` of shape {shape:?} is not at {range:?} of {length} values");
                return Err(CheckpointError::Mismatch(text));
            }
        }
        let files = files_of(&self.manifest, wanted)?;
        let mut parameters = vec![0.0; length];
        let mut slots = vec![vec![0.0; length]; self.manifest.slots];
        let names =
            |slot: Option<usize>, name: &str| slot.map_or(name.to_owned(), |slot| slot_name(slot, name));
        let mut missing: BTreeMap<String, (Option<usize>, &TensorSpec)> = BTreeMap::new();
        for slot in std::iter::once(None).chain((0..slots.len()).map(Some)) {
            missing.extend(wanted.iter().map(|spec| (names(slot, &spec.name), (slot, spec))));
        }
        for file in files {
            check_length(&self.folder, file)?;
            check_digest(&self.folder, file)?;
            let source = FileSource::open(&file.path(&self.folder))?;
            for (name, tensor) in safetensors::read_header(&source)? {
                let Some((slot, spec)) = missing.remove(&name) else { continue };
                let damaged = |problem| CheckpointError::Damaged { path: file.path(&self.folder), problem };
                if tensor.shape != spec.shape || tensor.dtype != Dtype::F32 {
                    let (found, expected) = (&tensor.shape, &spec.shape);
                    return Err(CheckpointError::Mismatch(format!(
                        "tensor `{name}` is {found:?} of {:?} in the checkpoint, not {expected:?} of F32",
                        tensor.dtype
                    )));
                }
                let target = slot.map_or(&mut parameters, |slot| &mut slots[slot]);
                copy(&source, tensor.offset, &mut target[spec.range.clone()])
                    .map_err(|error| damaged(format!("tensor `{name}`: {error}")))?;
            }
        }
        match missing.keys().next() {
            Some(name) => Err(CheckpointError::Mismatch(format!(
                "the files of the checkpoint of step {} have no tensor `{name}`",
                self.manifest.step
            ))),
            None => Ok((parameters, OptimizerState { step: self.manifest.step, slots })),
        }
    }
}

/// The files that have the tensors of `wanted` and their optimizer's vectors, each once.
pub(super) fn files_of<'a>(
    manifest: &'a Manifest,
    wanted: &[TensorSpec],
) -> Result<Vec<&'a FileRecord>, CheckpointError> {
    let mut holders: BTreeMap<&str, &StageRecord> = BTreeMap::new();
    for stage in &manifest.stages {
        holders.extend(stage.tensors.iter().map(|name| (name.as_str(), stage)));
    }
    let mut files: BTreeMap<&str, &FileRecord> = BTreeMap::new();
    for spec in wanted {
        let Some(stage) = holders.get(spec.name.as_str()) else {
            let text = format!("the checkpoint of step {} has no tensor `{}`", manifest.step, spec.name);
            return Err(CheckpointError::Mismatch(text));
        };
        files.extend([&stage.model, &stage.optimizer].map(|file| (file.name.as_str(), file)));
    }
    Ok(files.into_values().collect())
}

fn copy(source: &FileSource, mut offset: u64, target: &mut [f32]) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 18];
    for part in target.chunks_mut(bytes.len() / 4) {
        let bytes = &mut bytes[..part.len() * 4];
        source.read_at(offset, bytes)?;
        for (value, bytes) in part.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        offset += bytes.len() as u64;
    }
    Ok(())
}
