//! A run as workers read it.

use dunlin_crds::{
    CheckpointDestination, DataFormat, DataSource, DataSpec, TokenizerKind, TrainedModelSpec,
    TrainingSwarmSpec,
};
use serde_json::{Value, json};

use super::places::{CHECKPOINTS_DIR, DATA_DIR, HEADERS_DIR, S3_DIR};
use crate::apply::pods::MODELS_DIR;

/// Key of the run in its ConfigMap and name of the file that pods mount.
pub const RUN_FILE: &str = "training.json";
/// Where pods mount it.
pub const RUN_DIR: &str = "/etc/dunlin/training";

/// The run in the words of `dunlin-train`'s TrainingConfig; every default is spelled out, so that it does not change with the worker.
#[must_use]
pub fn run(spec: &TrainingSwarmSpec) -> Value {
    // Every field is named here, so that none that is added is forgotten. What pods are made from is no part of the run.
    let TrainingSwarmSpec {
        model: start,
        adapter,
        data: DataSpec { validation_fraction, .. },
        sequence_length,
        global_batch,
        microbatch,
        steps,
        seed,
        optimizer,
        stages,
        wire,
        validation,
        checkpoint,
        pools: _,
        replicas: _,
        trainers: _,
        conductor: _,
        suspend: _,
    } = spec;
    let mut run = json!({
        "model": model(start),
        "data": data(spec),
        "sequenceLength": sequence_length,
        "globalBatch": global_batch,
        "microbatch": microbatch,
        "steps": steps,
        "seed": seed,
        "optimizer": optimizer,
        "stages": stages,
        "wire": wire,
        "checkpoint": checkpoint.with_destination(destination(&checkpoint.destination)),
    });
    if let Some(adapter) = adapter {
        run["adapter"] = json!(adapter);
    }
    if optimizer.clip.is_none() {
        run["optimizer"]["clip"] = Value::Null;
    }
    // Without data that is held out there is nothing to measure.
    if *validation_fraction > 0.0 {
        run["validation"] = json!(validation);
    }
    run
}

/// As workers name it: a folder where the volume is mounted, a URL, or a bucket; with the folder of what a Secret has.
fn destination(place: &CheckpointDestination) -> Value {
    match place {
        CheckpointDestination { volume: Some(volume), .. } => {
            json!(format!("{CHECKPOINTS_DIR}/{}", volume.path))
        }
        CheckpointDestination { http: Some(http), .. } if http.headers_secret.is_some() => {
            json!({"url": http.url, "headers": HEADERS_DIR})
        }
        CheckpointDestination { http: Some(http), .. } => json!(http.url),
        CheckpointDestination { s3: Some(s3), .. } => {
            let mut bucket = json!(s3);
            // Workers see what is in it, not its name.
            if let Some(fields) = bucket.as_object_mut() {
                fields.remove("credentialsSecret");
            }
            json!({"s3": bucket, "credentials": S3_DIR})
        }
        _ => json!(""),
    }
}

fn model(spec: &TrainedModelSpec) -> Value {
    if let Some(shape) = &spec.config {
        let mut config = json!(shape);
        let family = config["architecture"].as_str().map(str::to_lowercase);
        config["architecture"] = json!(family);
        return json!({"config": config});
    }
    let source = spec.source.clone().unwrap_or_default();
    let volume = source.volume.map(|v| format!("{MODELS_DIR}/{}", v.path));
    json!({"checkpoint": volume.or(source.http.map(|h| h.url))})
}

fn data(spec: &TrainingSwarmSpec) -> Value {
    let kind = match spec.data.format {
        DataFormat::Text => "text",
        DataFormat::JsonLines => "jsonLines",
    };
    let place = match &spec.data.source {
        DataSource { volume: Some(volume), .. } => json!({"path": format!("{DATA_DIR}/{}", volume.path)}),
        DataSource { http, .. } => json!({"http": http}),
    };
    let source = spec.model.source.as_ref();
    let kind_of_tokens = spec.data.tokenizer.unwrap_or(match source {
        Some(_) => TokenizerKind::Model,
        None => TokenizerKind::Bytes,
    });
    let tokenizer = match (kind_of_tokens, source.and_then(|s| s.volume.as_ref())) {
        (TokenizerKind::Bytes, _) => json!("Bytes"),
        (TokenizerKind::Model, Some(volume)) => json!({"path": format!("{MODELS_DIR}/{}", volume.path)}),
        (TokenizerKind::Model, None) => json!("Model"),
    };
    let fraction = spec.data.validation_fraction;
    json!({kind: place, "tokenizer": tokenizer, "validationFraction": fraction})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::training_swarm;

    /// The file that `dunlin-train` must be able to read; its own tests read it, too.
    #[test]
    fn the_run_is_written_as_workers_read_it() {
        let run = run(&training_swarm(1).spec);
        let fixture: Value = serde_json::from_str(include_str!("training.json")).unwrap();
        assert_eq!(run, fixture, "{run:#}");
    }
}
