//! Writing: stages first, each by any of its peers, then everything beside them, the manifest last.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dunlin_model::OWN_NUMERICS;
use dunlin_model::adapter::peft;
use dunlin_model::training::layout::EMBEDDING;
use serde_json::json;

use super::disk::{self, Disk};
use super::error::CheckpointError;
use super::identity::Identity;
use super::manifest::{FileRecord, Manifest, StageRecord};
use super::names::{FILE, folder, slot_name, stage_files};
use super::read::{check_length, open, steps};
use super::tensor::Tensor;
use super::{adapter, model, tensors, texts};
use crate::config::TrainingConfig;

/// Which file has which tensor.
const INDEX: &str = "model.safetensors.index.json";

/// A stage at one step.
#[derive(Clone, Debug)]
pub struct StageValues<'a> {
    /// Its tensors are of an adapter, not of a model.
    pub adapter: bool,
    /// Index of the stage in the pipeline, from 0.
    pub stage: u32,
    /// Of how many.
    pub stages: u32,
    /// Layers of the model that it holds.
    pub layers: Range<u32>,
    /// Its parameters, tensor by tensor.
    pub parameters: Vec<Tensor<'a>>,
    /// Vectors of its optimizer: tensors with the names and shapes of the parameters.
    pub slots: Vec<Vec<Tensor<'a>>>,
}

impl StageValues<'_> {
    /// What [`Destination::write_stage`](super::Destination::write_stage) would say of this, without writing anything.
    ///
    /// # Errors
    /// When tensors do not fit together.
    pub fn record(&self) -> Result<StageRecord, CheckpointError> {
        self.written(|name, tensors| {
            let written = tensors::write(name, tensors, &mut io::sink());
            written.map_err(|source| CheckpointError::Write { path: PathBuf::from(name), source })
        })
    }

    /// The record of files that are written one after the other.
    fn written(
        &self,
        write: impl Fn(&str, &[(String, Tensor<'_>)]) -> Result<FileRecord, CheckpointError>,
    ) -> Result<StageRecord, CheckpointError> {
        let own = |tensor: &&Tensor<'_>| self.stage == 0 || tensor.name != EMBEDDING;
        let parameters: Vec<_> =
            self.parameters.iter().filter(own).map(|tensor| (tensor.name.to_owned(), *tensor)).collect();
        let mut vectors = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let alike = slot.len() == self.parameters.len()
                && slot.iter().zip(&self.parameters).all(|(a, b)| a.name == b.name && a.shape == b.shape);
            if !alike {
                let text =
                    format!("vector {index} of the optimizer has not the tensors of stage {}", self.stage);
                return Err(CheckpointError::Mismatch(text));
            }
            vectors.extend(slot.iter().filter(own).map(|tensor| (slot_name(index, tensor.name), *tensor)));
        }
        for (name, tensor) in parameters.iter().chain(&vectors) {
            if tensor.shape.iter().product::<usize>() != tensor.values.len() {
                let text =
                    format!("tensor `{name}` of shape {:?} has {} values", tensor.shape, tensor.values.len());
                return Err(CheckpointError::Mismatch(text));
            }
        }
        let [model, optimizer] = stage_files(self.adapter, self.stage, self.stages);
        Ok(StageRecord {
            stage: self.stage,
            layers: [self.layers.start, self.layers.end],
            model: write(&model, &parameters)?,
            optimizer: write(&optimizer, &vectors)?,
            tensors: parameters.into_iter().map(|(name, _)| name).collect(),
        })
    }
}

/// Removes what an attempt at the checkpoint of `step` left, unless that is complete.
pub(super) fn discard(destination: &Path, step: u64) -> Result<(), CheckpointError> {
    let folder = folder(destination, step);
    if folder.join(FILE).exists() || !folder.exists() {
        return Ok(());
    }
    Disk::default().remove_folder(&folder)
}

/// Writes the parameters and the optimizer's vectors of a stage into the checkpoint of `step`. Peers of the same stage write the same bytes,
/// so it does no harm when two do.
///
/// # Errors
/// When tensors do not fit together or a file cannot be written.
pub(super) fn write_stage(
    destination: &Path,
    step: u64,
    stage: &StageValues<'_>,
) -> Result<StageRecord, CheckpointError> {
    write_stage_on(&Disk::default(), destination, step, stage)
}

pub(super) fn write_stage_on(
    disk: &Disk,
    destination: &Path,
    step: u64,
    stage: &StageValues<'_>,
) -> Result<StageRecord, CheckpointError> {
    let folder = folder(destination, step);
    disk.make(&folder)?;
    stage.written(|name, tensors| disk.write(&folder, name, |out| tensors::write(name, tensors, out)))
}

/// Names of what can be beside the files of stages.
pub(super) fn beside(config: &TrainingConfig) -> impl Iterator<Item = String> {
    let own = match config.adapter {
        Some(_) => [peft::CONFIG, peft::WEIGHTS],
        None => ["config.json", INDEX],
    };
    own.into_iter().chain(texts::FILES.map(|(name, _)| name)).map(str::to_owned)
}

/// Makes the checkpoint complete: checks that all that stages wrote is there, writes what is beside it, removes what is left of attempts,
/// writes the manifest.
///
/// # Errors
/// When a stage or a file is missing, or one cannot be written; there is no checkpoint then.
pub(super) fn write_manifest(
    destination: &Path,
    identity: Identity<'_>,
    stages: Vec<StageRecord>,
) -> Result<Manifest, CheckpointError> {
    write_manifest_on(&Disk::default(), destination, identity, stages)
}

pub(super) fn write_manifest_on(
    disk: &Disk,
    destination: &Path,
    identity: Identity<'_>,
    stages: Vec<StageRecord>,
) -> Result<Manifest, CheckpointError> {
    let folder = folder(destination, identity.step);
    let manifest = make_manifest(disk, &folder, identity, stages, &|file| Ok(file.path(&folder)))?;
    for file in manifest.all_files() {
        check_length(&folder, file)?;
    }
    let known: BTreeSet<PathBuf> = manifest.all_files().map(|file| folder.join(&file.name)).collect();
    for stray in disk::files(&folder)?.into_iter().filter(|path| !known.contains(path)) {
        disk.remove_file(&stray)?;
    }
    let bytes = manifest.to_bytes()?;
    disk.write(&folder, FILE, |out| out.write_all(&bytes))?;
    Ok(manifest)
}

/// Writes what is beside the stages into `folder`, and makes the manifest of it all; what is in it has been checked. `local` gives the path
/// of a file that a stage wrote.
pub(super) fn make_manifest(
    disk: &Disk,
    folder: &Path,
    identity: Identity<'_>,
    stages: Vec<StageRecord>,
    local: &dyn Fn(&FileRecord) -> Result<PathBuf, CheckpointError>,
) -> Result<Manifest, CheckpointError> {
    let texts = match &identity.config.adapter {
        Some(shape) => adapter::texts(shape, identity)?,
        None => {
            let mut files = model::files(identity.model, identity.texts);
            files.push((INDEX.to_owned(), index(&stages)?));
            files
        }
    };
    let write = |(name, bytes): &(String, Vec<u8>)| {
        disk.write(folder, name, |out| tensors::write_bytes(name, bytes, out))
    };
    let mut files: Vec<FileRecord> = texts.iter().map(write).collect::<Result<_, _>>()?;
    if identity.config.adapter.is_some() {
        files.push(adapter::write_whole(disk, folder, &stages, local)?);
    }
    let manifest = Manifest {
        version: Manifest::version(),
        arithmetic: OWN_NUMERICS,
        step: identity.step,
        seed: identity.config.seed,
        data_sha256: identity.data_sha256.to_owned(),
        config: identity.config.clone(),
        slots: identity.slots,
        files,
        stages,
    };
    manifest.check().map_err(CheckpointError::Mismatch)?;
    if manifest.stages.last().is_none_or(|last| last.layers[1] != identity.model.layers) {
        let layers = identity.model.layers;
        return Err(CheckpointError::Mismatch(format!(
            "the stages do not end with the last of {layers} layers"
        )));
    }
    Ok(manifest)
}

fn index(stages: &[StageRecord]) -> Result<Vec<u8>, CheckpointError> {
    let mut map = BTreeMap::new();
    for stage in stages {
        for name in &stage.tensors {
            if map.insert(name, &stage.model.name).is_some() {
                return Err(CheckpointError::Mismatch(format!("two stages have tensor `{name}`")));
            }
        }
    }
    let size: u64 = stages.iter().map(|stage| stage.model.bytes).sum();
    Ok(json!({"metadata": {"total_size": size}, "weight_map": map}).to_string().into_bytes())
}

/// Removes all checkpoints but the `keep` newest complete ones (at least one), and incomplete ones older than the newest complete one.
/// Returns the steps that were removed.
///
/// # Errors
/// When a file cannot be removed.
pub(super) fn retain(destination: &Path, keep: usize) -> Result<Vec<u64>, CheckpointError> {
    retain_on(&Disk::default(), destination, keep)
}

pub(super) fn retain_on(disk: &Disk, destination: &Path, keep: usize) -> Result<Vec<u64>, CheckpointError> {
    let (mut complete, mut removed) = (0, Vec::new());
    for step in steps(destination)? {
        let folder = folder(destination, step);
        // One that is damaged does not count: it must not push out a sound one.
        let sound = open(destination, step).is_ok_and(|checkpoint| checkpoint.is_some());
        if sound && complete < keep.max(1) {
            complete += 1;
        } else if complete > 0 {
            // Without its manifest it is none, wherever this stops.
            disk.remove_file(&folder.join(FILE))?;
            disk.remove_folder(&folder)?;
            removed.push(step);
        }
    }
    Ok(removed)
}
