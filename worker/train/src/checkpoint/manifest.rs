//! What is in a checkpoint: `training.json`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dunlin_kernels::UNQUANTISED_SINCE;
use dunlin_model::OWN_NUMERICS;
use dunlin_swarm::NumericsClass;
use serde::{Deserialize, Serialize};

use super::destination::Destination;
use super::error::CheckpointError;
use super::names::{FILE, folder};
use crate::config::{Change, TrainingConfig};

pub(super) const BYTES_MAX: u64 = 16 << 20;
/// 1 had no `arithmetic`; all that wrote it had the first.
const VERSION: u32 = 2;

fn first_arithmetic() -> NumericsClass {
    NumericsClass::FIRST
}

/// Whether a run that was trained with version `was` of the arithmetic ends with the same weights when it goes on with version `now`, which
/// gives the bits of all versions from `since` on unless weights are quantised.
pub(super) fn goes_on(was: u32, quantised: bool, (since, now): (u32, u32)) -> bool {
    (if quantised { now } else { since }..=now).contains(&was)
}

/// What every form of the manifest has.
#[derive(Deserialize)]
struct Form {
    version: u32,
}

/// A file with its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileRecord {
    /// Name in the folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl FileRecord {
    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(&self.name)
    }
}

/// What a stage wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StageRecord {
    /// Index of the stage in the pipeline, from 0.
    pub stage: u32,
    /// First layer and the one after the last.
    pub layers: [u32; 2],
    /// Parameters.
    pub model: FileRecord,
    /// Vectors of the optimizer.
    pub optimizer: FileRecord,
    /// Names of the tensors in `model`.
    pub tensors: Vec<String>,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Of this form: 2, or 1 of one that was written earlier.
    pub version: u32,
    /// Which bits it was trained with.
    #[serde(default = "first_arithmetic")]
    pub arithmetic: NumericsClass,
    /// Updates so far; also the step whose batch comes next, as steps are counted from 0.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Digest of the tokens trained on.
    pub data_sha256: String,
    /// The configuration of the run that wrote it.
    pub config: TrainingConfig,
    /// Vectors of the optimizer for each tensor.
    pub slots: usize,
    /// All stages in order.
    pub stages: Vec<StageRecord>,
    /// Configuration, index, tokenizer.
    pub files: Vec<FileRecord>,
}

impl Manifest {
    /// Of the current form.
    #[must_use]
    pub(super) fn version() -> u32 {
        VERSION
    }

    /// Every file but the manifest itself.
    pub fn all_files(&self) -> impl Iterator<Item = &FileRecord> {
        self.stages.iter().flat_map(|s| [&s.model, &s.optimizer]).chain(&self.files)
    }

    /// Reads and checks the manifest of `step` in its folder below `destination`; none if there is none.
    pub(super) fn read(destination: &Path, step: u64) -> Result<Option<Self>, CheckpointError> {
        let path = folder(destination, step).join(FILE);
        let wrong = |source| CheckpointError::Read { path: path.clone(), source };
        let length = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(wrong)?.len(),
        };
        let damaged = |problem: String| CheckpointError::Damaged { path: path.clone(), problem };
        if length > BYTES_MAX {
            return Err(damaged(format!("it has {length} bytes, more than {BYTES_MAX}")));
        }
        Self::parse(&std::fs::read(&path).map_err(wrong)?, step, &path).map(Some)
    }

    /// The manifest of `step` that `bytes` are; `path` is for messages.
    pub(super) fn parse(bytes: &[u8], step: u64, path: &Path) -> Result<Self, CheckpointError> {
        let damaged = |problem: String| CheckpointError::Damaged { path: path.to_owned(), problem };
        if let Ok(Form { version }) = serde_json::from_slice(bytes)
            && version > VERSION
        {
            // It may be sound. To pass it over would lose steps without a word.
            return Err(CheckpointError::Refused(format!(
                "{} is of version {version}, and this program reads {VERSION} at most: use the program that wrote it, or a later one",
                path.display()
            )));
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|e| damaged(format!("it is no manifest: {e}")))?;
        manifest.check().map_err(damaged)?;
        if manifest.step != step {
            return Err(damaged(format!("it is of step {}, in the folder of step {step}", manifest.step)));
        }
        Ok(manifest)
    }

    /// Checks that the run of `config` may go on from here, and returns what it has otherwise than the one that wrote it.
    ///
    /// # Errors
    /// When it is another run, or was trained with arithmetic that gives other bits.
    pub fn admit(
        &self,
        destination: &Destination,
        config: &TrainingConfig,
    ) -> Result<Vec<Change>, CheckpointError> {
        let changes = config.changes_since(&self.config);
        if !changes.refused.is_empty() {
            return Err(CheckpointError::of_another_run(&destination.to_string(), &changes.refused));
        }
        // A model that stays as it is beside an adapter may be quantised, and what is trained without one never is.
        let versions = (UNQUANTISED_SINCE, OWN_NUMERICS.version());
        if !goes_on(self.arithmetic.version(), config.adapter.is_some(), versions) {
            return Err(CheckpointError::Refused(format!(
                "the checkpoint of step {} in {destination} was trained with version {} of the arithmetic, and this program has version \
                 {OWN_NUMERICS}: the run would not end with the weights that it would have had. Go on with the program that wrote it, or begin \
                 another run with model.checkpoint: {}",
                self.step,
                self.arithmetic,
                destination.checkpoint(self.step).display()
            )));
        }
        let mut taken = changes.taken;
        if self.arithmetic != OWN_NUMERICS {
            let said = |class: NumericsClass| Some(class.to_string());
            let (before, now) = (said(self.arithmetic), said(OWN_NUMERICS));
            taken.push(Change { field: "arithmetic".to_owned(), before, now });
        }
        Ok(taken)
    }

    /// The bytes of the file.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| CheckpointError::Mismatch(format!("the manifest cannot be written as JSON: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// What has to be so whoever wrote it.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=VERSION).contains(&self.version) {
            return Err(format!("its version is {}, not {VERSION}", self.version));
        }
        self.config.validate().map_err(|e| format!("its configuration: {e}"))?;
        if self.stages.is_empty() {
            return Err("it has no stages".to_owned());
        }
        let mut next = 0;
        for (index, stage) in self.stages.iter().enumerate() {
            let [from, to] = stage.layers;
            if stage.stage as usize != index || from != next || to <= from {
                return Err(format!(
                    "stage {index} is {} with layers {from}..{to} where {next} should follow",
                    stage.stage
                ));
            }
            next = to;
        }
        let mut names = BTreeSet::new();
        for file in self.all_files() {
            let plain = Path::new(&file.name).file_name().is_some_and(|name| name == file.name.as_str());
            if !plain || file.name == FILE || !names.insert(&file.name) {
                return Err(format!("`{}` is no name of a file, or twice there", file.name));
            }
        }
        Ok(())
    }
}
