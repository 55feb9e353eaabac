//! Checkpoints of a run, between the roles and `dunlin_train::checkpoint`: peers write and read stages, the conductor seals.

use std::path::PathBuf;
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::training::{ParameterLayout, ParameterTensor};
use dunlin_protocol::training::{Checkpoints, FetchFailure, Step};
use dunlin_store::digest::sha256;
use dunlin_train::checkpoint::{
    self, Checkpoint, CheckpointError, Claim, Destination, Identity, Latest, Manifest, Scrutiny, StageRecord,
    Tensor, TensorSpec, Texts,
};
use dunlin_train::stage::Snapshot;
use dunlin_train::{Run, Stage};
use tracing::{info, warn};

/// A checkpoint that is complete.
pub struct Sealed {
    /// Where it is.
    pub path: PathBuf,
    /// Digest of its manifest, which has the digests of all its files.
    pub sha256: String,
}

impl Sealed {
    /// The checkpoint in the folder `path`, with its manifest.
    #[must_use]
    pub fn new(path: PathBuf, manifest: &Manifest) -> Self {
        // A manifest has been read from JSON or written as such.
        Self { path, sha256: sha256(&serde_json::to_vec(manifest).unwrap_or_default()) }
    }
}

/// What a run can go on from.
pub struct Found {
    /// As the conductor is told.
    pub checkpoints: Checkpoints,
    /// The newest sound one.
    pub newest: Option<Checkpoint>,
}

/// Looks for the newest sound checkpoint; damaged ones are passed over, with a warning.
///
/// # Errors
/// When the destination cannot be read.
pub fn find(destination: &Destination, scrutiny: Scrutiny) -> Result<Found, CheckpointError> {
    let Latest { checkpoint: newest, damaged } = destination.latest(scrutiny)?;
    for damaged in &damaged {
        warn!("a damaged checkpoint is passed over: {damaged}");
    }
    let checkpoints = match (&newest, damaged.first()) {
        (Some(found), _) => Checkpoints::Newest(found.manifest.step),
        (None, None) => Checkpoints::None,
        (None, Some(first)) => Checkpoints::AllDamaged(format!(
            "no checkpoint in {destination} is sound: {first}. The run does not begin at step 0 over what is there: bring back an intact copy; or, \
             to begin anew on purpose, move what is in {destination} elsewhere, or choose another checkpoint.destination"
        )),
    };
    Ok(Found { checkpoints, newest })
}

/// Whose fault it is that a stage of the checkpoint of `step` could not be read.
pub fn blame(error: &anyhow::Error, step: Step) -> FetchFailure {
    let damage = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<CheckpointError>().is_some_and(CheckpointError::is_damage)
    };
    if error.chain().any(damage) { FetchFailure::Damaged(step) } else { FetchFailure::Passing }
}

/// Reads a stage of the checkpoint of `step`, whatever its stages were.
///
/// # Errors
/// When there is none, it is damaged, or it cannot be read.
pub fn read_stage(
    destination: &Destination,
    step: Step,
    run: &Arc<Run>,
    stage: u32,
    pool: &Pool,
) -> anyhow::Result<Stage> {
    let layout = run.layout(stage);
    let specs: Vec<TensorSpec> = layout
        .tensors()
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), shape: t.shape.clone(), range: t.range() })
        .collect();
    let (parameters, state) = destination.read_stage(step, &specs, layout.len())?;
    Ok(Stage::from_state(run, stage, step, parameters, state.slots, pool)?)
}

/// Writes the files of a stage, if they are to be written somewhere; the record for the manifest, as JSON.
///
/// # Errors
/// When they cannot be written.
pub fn write_stage(destination: Option<&Destination>, run: &Run, state: &Snapshot) -> anyhow::Result<String> {
    let (step, stage) = (state.step(), state.stage());
    let layout = run.layout(stage);
    let files = checkpoint::StageValues {
        adapter: run.config.adapter.is_some(),
        stage,
        stages: run.config.stages,
        layers: run.layers(stage),
        parameters: tensors(&layout, state.parameters()),
        slots: state.slots().map(|slot| tensors(&layout, slot)).collect(),
    };
    let record = match destination {
        Some(destination) => destination.write_stage(step, &files)?,
        None => files.record()?,
    };
    Ok(serde_json::to_string(&record)?)
}

fn tensors<'a>(layout: &'a ParameterLayout, values: &'a [f32]) -> Vec<Tensor<'a>> {
    let tensor =
        |t: &'a ParameterTensor| Tensor { name: &t.name, shape: &t.shape, values: &values[t.range()] };
    layout.tensors().iter().map(tensor).collect()
}

/// Writes the manifest that makes the files of all stages a checkpoint, and removes old ones.
///
/// # Errors
/// When something is missing or cannot be written, or the destination is no longer this run's.
pub fn seal(
    claim: &mut Claim,
    step: Step,
    run: &Run,
    texts: &Texts,
    data_sha256: &str,
    records: &[String],
) -> Result<Sealed, CheckpointError> {
    let wrong = |error| CheckpointError::Mismatch(format!("a peer's record is no record: {error}"));
    let stages: Vec<StageRecord> =
        records.iter().map(|r| serde_json::from_str(r)).collect::<Result<_, _>>().map_err(wrong)?;
    let identity = Identity {
        step,
        config: &run.config,
        model: &run.model,
        texts,
        data_sha256,
        slots: run.state_slots(),
    };
    let keep = run.config.checkpoint.as_ref().map_or(1, |c| c.keep);
    let (manifest, removed) = claim.seal(identity, stages, keep)?;
    info!(step, ?removed, "checkpoint");
    Ok(Sealed::new(claim.destination().checkpoint(step), &manifest))
}
