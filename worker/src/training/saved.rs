//! Checkpoints of a run, between the roles and `dunlin_train::checkpoint`: peers write and read stages, the conductor seals.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use dunlin_kernels::Pool;
use dunlin_model::training::{ParameterLayout, ParameterTensor};
use dunlin_protocol::training::{Checkpoints, FetchFailure, Step};
use dunlin_train::checkpoint::{
    self, Checkpoint, CheckpointError, Destination, Identity, Latest, Manifest, Scrutiny, StageRecord,
    Tensor, TensorSpec,
};
use dunlin_train::data::TextTokenizer;
use dunlin_train::optimizer::Optimizer;
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
    ///
    /// # Errors
    /// When the manifest cannot be written as JSON.
    pub fn new(path: PathBuf, manifest: &Manifest) -> anyhow::Result<Self> {
        Ok(Self { path, sha256: sha256_hex(&serde_json::to_vec(manifest)?) })
    }
}

/// What a run can go on from.
pub struct Found {
    /// As the conductor is told.
    pub checkpoints: Checkpoints,
    /// The newest sound one.
    pub newest: Option<Checkpoint>,
}

/// Looks for the newest sound checkpoint of `run`; damaged ones are passed over, with a warning.
///
/// # Errors
/// When the destination cannot be read, or what is there is of another run.
pub fn find(destination: &Destination, run: &Run, scrutiny: Scrutiny) -> anyhow::Result<Found> {
    let Latest { checkpoint: newest, damaged } = destination.latest(scrutiny)?;
    for damaged in &damaged {
        warn!("a damaged checkpoint is passed over: {damaged}");
    }
    if let Some(found) = &newest {
        same_run(destination, run, &found.manifest)?;
    }
    let checkpoints = match (&newest, damaged.first()) {
        (Some(found), _) => Checkpoints::Newest(found.manifest.step),
        (None, None) => Checkpoints::None,
        (None, Some(first)) => Checkpoints::AllDamaged(format!(
            "every checkpoint in {destination} is damaged, the newest because {first}. The run does not begin at step 0 over them: bring back \
             an intact copy of one, or, to begin anew on purpose, move what is in {destination} elsewhere or choose another checkpoint.destination"
        )),
    };
    Ok(Found { checkpoints, newest })
}

fn same_run(destination: &Destination, run: &Run, manifest: &Manifest) -> anyhow::Result<()> {
    let (theirs, ours) = (&manifest.config, &run.config);
    if Optimizer::slots(&theirs.optimizer) != Optimizer::slots(&ours.optimizer) {
        bail!(
            "{destination} has checkpoints of a run whose optimizer keeps something else; choose another checkpoint.destination, or set optimizer.kind back"
        );
    }
    let same = theirs.model == ours.model
        && theirs.adapter == ours.adapter
        && theirs.seed == ours.seed
        && theirs.data == ours.data;
    if !same {
        bail!(
            "{destination} has checkpoints of a run with another model, adapter, seed or data; choose another checkpoint.destination"
        );
    }
    Ok(())
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

/// Writes the files of a stage; the record for the manifest, as JSON.
///
/// # Errors
/// When they cannot be written.
pub fn write_stage(
    destination: &Destination,
    step: Step,
    run: &Run,
    stage: u32,
    parameters: &[f32],
    slots: &[Vec<f32>],
) -> anyhow::Result<String> {
    let layout = run.layout(stage);
    let files = checkpoint::Stage {
        adapter: run.config.adapter.is_some(),
        stage,
        stages: run.config.stages,
        layers: run.layers(stage),
        parameters: tensors(&layout, parameters),
        slots: slots.iter().map(|slot| tensors(&layout, slot)).collect(),
    };
    Ok(serde_json::to_string(&destination.write_stage(step, &files)?)?)
}

fn tensors<'a>(layout: &'a ParameterLayout, values: &'a [f32]) -> Vec<Tensor<'a>> {
    let tensor =
        |t: &'a ParameterTensor| Tensor { name: &t.name, shape: &t.shape, values: &values[t.range()] };
    layout.tensors().iter().map(tensor).collect()
}

/// Writes the manifest that makes the files of all stages a checkpoint, and removes old ones.
///
/// # Errors
/// When something is missing or cannot be written.
pub fn seal(
    destination: &Destination,
    step: Step,
    run: &Run,
    data_sha256: &str,
    records: &[String],
) -> anyhow::Result<Sealed> {
    let stages: Vec<StageRecord> = records
        .iter()
        .map(|r| serde_json::from_str(r))
        .collect::<Result<_, _>>()
        .context("a peer's record")?;
    let tokenizer = TextTokenizer::open(&run.config.data.tokenizer)?;
    let identity = Identity {
        step,
        config: &run.config,
        model: &run.model,
        tokenizer: &tokenizer,
        data_sha256,
        slots: run.state_slots(),
    };
    let keep = run.config.checkpoint.as_ref().map_or(1, |c| c.keep);
    let (manifest, removed) = destination.seal(identity, stages, keep)?;
    info!(step, ?removed, "checkpoint");
    Sealed::new(destination.checkpoint(step), &manifest)
}

/// SHA-256 in hexadecimal.
fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
