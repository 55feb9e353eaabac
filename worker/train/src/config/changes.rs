//! What differs between a run and the run that it goes on from.
//!
//! Some fields say which run it is: with another value, steps that were made would belong to another run, and they are refused. The others
//! may change from one start to the next, and every change of them is said.

use std::fmt;

use dunlin_model::adapter::AdapterShape;
use dunlin_swarm::run::{
    CheckpointSpec, OptimizerKind, OptimizerSpec, ScheduleSpec, ValidationSpec, WireSpec,
};
use serde::Serialize;
use serde_json::Value;

use super::model::InitialModel;
use super::schema::{DataConfig, TrainingConfig};
use crate::checkpoint::Destination;
use crate::optimizer::Optimizer;

/// A field with another value than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path, as in the file.
    pub field: String,
    /// What it was, as JSON; nothing when it was not there.
    pub before: Option<String>,
    /// What it is.
    pub now: Option<String>,
}

impl Change {
    /// What it was, in words.
    #[must_use]
    pub fn was(&self) -> &str {
        self.before.as_deref().unwrap_or("nothing")
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.field, self.was(), self.now.as_deref().unwrap_or("nothing"))
    }
}

/// All changes from one start of a run to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of what says which run it is.
    pub refused: Vec<Change>,
    /// Of what may change.
    pub taken: Vec<Change>,
}

/// What says which run it is; see [`Changes`].
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bound<'a> {
    model: &'a InitialModel,
    adapter: &'a Option<AdapterShape>,
    data: DataConfig,
    sequence_length: usize,
    global_batch: usize,
    seed: u64,
    optimizer: BoundOptimizer,
}

#[derive(Serialize)]
struct BoundOptimizer {
    kind: OptimizerKind,
    /// Whether momentum is kept decides which vectors there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
}

/// What may change.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Free<'a> {
    microbatch: usize,
    steps: u64,
    stages: u32,
    optimizer: FreeOptimizer<'a>,
    wire: &'a WireSpec,
    checkpoint: &'a Option<CheckpointSpec<Destination>>,
    validation: &'a Option<ValidationSpec>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FreeOptimizer<'a> {
    learning_rate: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    clip: Option<f64>,
    schedule: &'a ScheduleSpec,
    delayed_updates: bool,
}

/// Both kinds of fields of a run. Every field is named here, so that none that is added is forgotten. `other`: the run that it is compared
/// with.
fn divided<'a>(config: &'a TrainingConfig, other: &TrainingConfig) -> (Bound<'a>, Free<'a>) {
    let TrainingConfig {
        model,
        adapter,
        data,
        sequence_length,
        global_batch,
        microbatch,
        steps,
        seed,
        optimizer,
        stages,
        wire,
        checkpoint,
        validation,
    } = config;
    let OptimizerSpec {
        kind,
        learning_rate,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        momentum,
        clip,
        schedule,
        delayed_updates,
    } = optimizer;
    // Without momentum there is no vector of it: one that begins in the middle, or ends there, is of another run.
    let vectors_differ =
        *kind == other.optimizer.kind && Optimizer::slots(optimizer) != Optimizer::slots(&other.optimizer);
    let bound = Bound {
        model,
        adapter,
        data: DataConfig { tokenizer: Some(config.tokenizer()), ..data.clone() },
        sequence_length: *sequence_length,
        global_batch: *global_batch,
        seed: *seed,
        optimizer: BoundOptimizer { kind: *kind, momentum: vectors_differ.then_some(*momentum) },
    };
    let free = Free {
        microbatch: *microbatch,
        steps: *steps,
        stages: *stages,
        optimizer: FreeOptimizer {
            learning_rate: *learning_rate,
            beta1: *beta1,
            beta2: *beta2,
            epsilon: *epsilon,
            weight_decay: *weight_decay,
            momentum: (!vectors_differ).then_some(*momentum),
            clip: *clip,
            schedule,
            delayed_updates: *delayed_updates,
        },
        wire,
        checkpoint,
        validation,
    };
    (bound, free)
}

impl TrainingConfig {
    /// What differs from `before`, the run that this one goes on from.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Changes {
        let ((bound, free), (bound_before, free_before)) = (divided(self, before), divided(before, self));
        let mut changes = Changes::default();
        differences("", &json(&bound_before), &json(&bound), &mut changes.refused);
        differences("", &json(&free_before), &json(&free), &mut changes.taken);
        changes
    }

    /// What says which run it is, as JSON: two runs with the same make the same steps in the same order.
    #[must_use]
    pub fn identity(&self) -> Value {
        let mut identity = json(&divided(self, self).0);
        identity["optimizer"]["vectors"] = Optimizer::slots(&self.optimizer).into();
        identity
    }
}

fn json(part: &impl Serialize) -> Value {
    // Maps with names as keys and finite numbers always become JSON.
    serde_json::to_value(part).unwrap_or(Value::Null)
}

/// The leaves that differ. What is not there is null.
fn differences(path: &str, before: &Value, now: &Value, out: &mut Vec<Change>) {
    if before == now {
        return;
    }
    let (Value::Object(old), Value::Object(new)) = (before, now) else {
        let text = |value: &Value| (!value.is_null()).then(|| value.to_string());
        out.push(Change { field: path.to_owned(), before: text(before), now: text(now) });
        return;
    };
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let of = |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or(Value::Null);
        differences(&path, &of(old), &of(new), out);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::TrainingConfig;

    fn run() -> Value {
        json!({
            "model": {"config": {"hiddenSize": 64, "layers": 4, "heads": 4, "ffn": 128, "contextLength": 128}},
            "data": {"text": {"path": "a.txt"}},
            "sequenceLength": 64, "globalBatch": 16, "microbatch": 4, "steps": 100, "seed": 7,
            "optimizer": {"kind": "AdamW", "learningRate": 0.001, "schedule": {"kind": "Cosine", "warmupSteps": 10}},
            "stages": 2,
            "checkpoint": {"everySteps": 10, "destination": "/tmp/x"},
        })
    }

    /// Refused and taken changes from the one to the other.
    fn between(before: &Value, now: &Value) -> (Vec<String>, Vec<String>) {
        let read = |value: &Value| TrainingConfig::from_json(&value.to_string()).unwrap();
        let changes = read(now).changes_since(&read(before));
        let words = |changes: &[super::Change]| changes.iter().map(ToString::to_string).collect();
        (words(&changes.refused), words(&changes.taken))
    }

    fn changed(pointer: &str, key: &str, value: Value) -> (Vec<String>, Vec<String>) {
        let mut now = run();
        now.pointer_mut(pointer).unwrap()[key] = value;
        between(&run(), &now)
    }

    #[test]
    fn what_says_which_run_it_is_is_refused_by_name() {
        for (pointer, key, value, said) in [
            ("", "globalBatch", json!(32), "globalBatch 16 -> 32"),
            ("", "sequenceLength", json!(32), "sequenceLength 64 -> 32"),
            ("", "seed", json!(8), "seed 7 -> 8"),
            ("/model/config", "layers", json!(5), "model.config.layers 4 -> 5"),
            ("/data/text", "path", json!("b.txt"), "data.text.path \"a.txt\" -> \"b.txt\""),
            ("/data", "validationFraction", json!(0.1), "data.validationFraction 0.01 -> 0.1"),
            ("/data", "tokenizer", json!({"path": "t"}), "data.tokenizer \"Bytes\" -> {\"path\":\"t\"}"),
            ("/optimizer", "kind", json!("Lamb"), "optimizer.kind \"AdamW\" -> \"Lamb\""),
        ] {
            assert_eq!(changed(pointer, key, value), (vec![said.to_owned()], Vec::new()));
        }
        let mut other = run();
        other["model"] = json!({"checkpoint": "/models/a"});
        other["adapter"] = json!({"prompt": {"tokens": 4}});
        let (refused, taken) = between(&run(), &other);
        assert!(refused[0].starts_with("adapter nothing -> {\"prompt\""), "{refused:?}");
        assert!(refused.iter().any(|r| r.starts_with("model.checkpoint nothing -> ")), "{refused:?}");
        assert!(taken.is_empty(), "{taken:?}");
    }

    #[test]
    fn what_may_change_is_said_by_name() {
        for (pointer, key, value, said) in [
            ("", "microbatch", json!(2), "microbatch 4 -> 2"),
            ("", "steps", json!(200), "steps 100 -> 200"),
            ("", "stages", json!(4), "stages 2 -> 4"),
            ("", "wire", json!({"gradients": "F16"}), "wire.gradients \"Exact\" -> \"F16\""),
            ("", "validation", json!({"everySteps": 5, "batches": 2}), "validation nothing -> {"),
            ("/optimizer", "learningRate", json!(0.002), "optimizer.learningRate 0.001 -> 0.002"),
            ("/optimizer", "clip", Value::Null, "optimizer.clip 1.0 -> nothing"),
            ("/optimizer", "delayedUpdates", json!(true), "optimizer.delayedUpdates false -> true"),
            (
                "/optimizer/schedule",
                "kind",
                json!("Linear"),
                "optimizer.schedule.kind \"Cosine\" -> \"Linear\"",
            ),
            ("/checkpoint", "everySteps", json!(5), "checkpoint.everySteps 10 -> 5"),
            (
                "/checkpoint",
                "destination",
                json!("/tmp/y"),
                "checkpoint.destination \"/tmp/x\" -> \"/tmp/y\"",
            ),
        ] {
            let (refused, taken) = changed(pointer, key, value);
            assert!(
                refused.is_empty() && taken.len() == 1 && taken[0].starts_with(said),
                "{refused:?} {taken:?}"
            );
        }
        assert_eq!(between(&run(), &run()), (Vec::new(), Vec::new()));
        // The same in other words.
        assert_eq!(changed("/data", "tokenizer", json!("Bytes")), (Vec::new(), Vec::new()));
    }

    #[test]
    fn momentum_may_change_but_not_begin_or_end() {
        let sgd = |momentum: f64| {
            let mut run = run();
            run["optimizer"] = json!({"kind": "Sgd", "learningRate": 0.1, "momentum": momentum});
            run
        };
        assert_eq!(between(&sgd(0.9), &sgd(0.8)).1, ["optimizer.momentum 0.9 -> 0.8"]);
        assert_eq!(between(&sgd(0.9), &sgd(0.0)).0, ["optimizer.momentum 0.9 -> 0.0"]);
        assert_eq!(between(&sgd(0.0), &sgd(0.9)).0, ["optimizer.momentum 0.0 -> 0.9"]);
        let identity = |momentum| TrainingConfig::from_json(&sgd(momentum).to_string()).unwrap().identity();
        assert!(identity(0.9) == identity(0.8) && identity(0.9) != identity(0.0));
        // AdamW does not use it.
        assert_eq!(changed("/optimizer", "momentum", json!(0.5)).1, ["optimizer.momentum 0.0 -> 0.5"]);
    }
}
