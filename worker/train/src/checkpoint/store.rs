//! What is done at a destination, wherever it is.

use super::destination::Destination;
use super::error::CheckpointError;
use super::identity::Identity;
use super::manifest::{Manifest, StageRecord};
use super::read::{Checkpoint, Latest, Scrutiny, latest, open};
use super::remote::Remote;
use super::tensor::TensorSpec;
use super::write::{StageValues, discard, retain, write_manifest, write_stage};
use crate::config::TrainingConfig;
use crate::optimizer::OptimizerState;

impl Destination {
    /// The newest checkpoint that stands up to `scrutiny`.
    ///
    /// # Errors
    /// When the destination cannot be read. That there is nothing is no error.
    pub fn latest(&self, scrutiny: Scrutiny) -> Result<Latest, CheckpointError> {
        match self.folder() {
            Some(path) => latest(path, scrutiny),
            None => Remote::new(self)?.latest(scrutiny),
        }
    }

    /// The scrutiny of a start: a folder is read as a whole, of what is on a server whoever reads a file checks its digest.
    #[must_use]
    pub fn usual_scrutiny(&self) -> Scrutiny {
        match self.folder() {
            Some(_) => Scrutiny::Digests,
            None => Scrutiny::Lengths,
        }
    }

    /// Writes a stage into the checkpoint of `step`; the record is for [`super::Claim::seal`].
    ///
    /// # Errors
    /// When tensors do not fit together or a file cannot be written.
    pub fn write_stage(&self, step: u64, stage: &StageValues<'_>) -> Result<StageRecord, CheckpointError> {
        match self.folder() {
            Some(path) => write_stage(path, step, stage),
            None => Remote::new(self)?.write_stage(step, stage),
        }
    }

    /// Makes the checkpoint complete, then removes all but the `keep` newest. Returns what is in it, and the steps that were removed.
    pub(super) fn seal(
        &self,
        identity: Identity<'_>,
        stages: Vec<StageRecord>,
        keep: usize,
    ) -> Result<(Manifest, Vec<u64>), CheckpointError> {
        match self.folder() {
            Some(path) => {
                let manifest = write_manifest(path, identity, stages)?;
                Ok((manifest, retain(path, keep)?))
            }
            None => Remote::new(self)?.seal(identity, stages, keep),
        }
    }

    /// Removes what an attempt at the checkpoint of `step` left, if it is not complete.
    pub(super) fn discard(&self, step: u64, config: &TrainingConfig) -> Result<(), CheckpointError> {
        match self.folder() {
            Some(path) => discard(path, step),
            None => Remote::new(self)?.discard(step, config),
        }
    }

    /// The checkpoint of `step`, whose files have the right lengths.
    pub(super) fn open(&self, step: u64) -> Result<Checkpoint, CheckpointError> {
        let found = match self.folder() {
            Some(path) => open(path, step)?,
            None => Remote::new(self)?.open(step)?,
        };
        found.ok_or_else(|| CheckpointError::Missing(self.checkpoint(step)))
    }

    /// Reads `wanted` of the checkpoint of `step` into flat vectors of `length` values.
    ///
    /// # Errors
    /// When there is no such checkpoint, a tensor is missing or of another shape, or a file is damaged or cannot be read.
    pub fn read_stage(
        &self,
        step: u64,
        wanted: &[TensorSpec],
        length: usize,
    ) -> Result<(Vec<f32>, OptimizerState), CheckpointError> {
        match self.folder() {
            Some(_) => self.open(step)?.read_stage(wanted, length),
            None => Remote::new(self)?.read_stage(step, wanted, length),
        }
    }
}
