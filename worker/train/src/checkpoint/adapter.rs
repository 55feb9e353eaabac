//! What makes a checkpoint an adapter in PEFT's form.

use std::path::{Path, PathBuf};

use dunlin_model::FileSource;
use dunlin_model::adapter::{AdapterShape, peft};

use super::disk::Disk;
use super::error::CheckpointError;
use super::identity::Identity;
use super::manifest::{FileRecord, StageRecord};
use super::{tensors, texts};
use crate::config::InitialModel;

/// Names and bytes of the files beside the weights.
pub(super) fn texts(
    shape: &AdapterShape,
    identity: Identity<'_>,
) -> Result<Vec<(String, Vec<u8>)>, CheckpointError> {
    let InitialModel::Checkpoint(base) = &identity.config.model else {
        return Err(CheckpointError::Mismatch("an adapter of a model that is no file".to_owned()));
    };
    let json = peft::config_json(shape, identity.model, base);
    let mut files = vec![(peft::CONFIG.to_owned(), format!("{json:#}\n").into_bytes())];
    // As transformers saves them beside an adapter; how the model generates is the model's.
    files.extend(identity.texts.files.iter().filter(|(name, _)| name != texts::GENERATION).cloned());
    Ok(files)
}

/// One file with what all stages wrote.
pub(super) fn write_whole(
    disk: &Disk,
    folder: &Path,
    stages: &[StageRecord],
    local: &dyn Fn(&FileRecord) -> Result<PathBuf, CheckpointError>,
) -> Result<FileRecord, CheckpointError> {
    let open = |stage: &StageRecord| Ok(FileSource::open(&local(&stage.model)?)?);
    let parts = stages.iter().map(open).collect::<Result<Vec<_>, CheckpointError>>()?;
    disk.write(folder, peft::WEIGHTS, |out| tensors::write_merged(peft::WEIGHTS, &parts, out))
}
