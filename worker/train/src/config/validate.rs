//! Bounds of every number, and relations between them.

use std::fmt::Display;

use dunlin_model::adapter::AdapterShape;
use dunlin_swarm::limits::{
    ADAPTER_ROWS_MAX, BATCH_SEQUENCES_MAX, MICROBATCH_SEQUENCES_MAX, MICROBATCH_TOKENS_MAX, MICROBATCHES_MAX,
    SEQUENCE_TOKENS_MAX,
};
use dunlin_swarm::run::OptimizerSpec;

use super::error::ConfigError;
use super::model::{InitialModel, model_config};
use super::schema::{DataConfig, TokenizerConfig, TrainingConfig};

const BYTE_TOKENS: usize = 256;

fn wrong<T>(field: &str, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Field { field: field.to_owned(), problem: problem.into() })
}

fn within<T: PartialOrd + Display>(field: &str, value: T, from: T, to: T) -> Result<(), ConfigError> {
    if value >= from && value <= to {
        return Ok(());
    }
    wrong(field, format!("is {value}; use a number from {from} to {to}"))
}

fn below_one(field: &str, value: f64) -> Result<(), ConfigError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    wrong(field, format!("is {value}; use a number from 0 up to but not 1"))
}

impl TrainingConfig {
    /// Checks everything that can be checked without reading files.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("sequenceLength", self.sequence_length, 1, SEQUENCE_TOKENS_MAX)?;
        within("globalBatch", self.global_batch, 1, BATCH_SEQUENCES_MAX)?;
        within("microbatch", self.microbatch, 1, MICROBATCH_SEQUENCES_MAX)?;
        if !self.global_batch.is_multiple_of(self.microbatch) {
            let problem =
                format!("is {}, not a multiple of microbatch, {}", self.global_batch, self.microbatch);
            return wrong("globalBatch", problem);
        }
        if self.microbatches() > MICROBATCHES_MAX {
            let problem = format!(
                "makes {} microbatches a step, more than {MICROBATCHES_MAX}: use larger ones",
                self.microbatches()
            );
            return wrong("microbatch", problem);
        }
        if self.microbatch * self.rows_per_sequence() > MICROBATCH_TOKENS_MAX {
            let problem =
                format!("times sequenceLength is more than {MICROBATCH_TOKENS_MAX} tokens: use smaller ones");
            return wrong("microbatch", problem);
        }
        within("steps", self.steps, 1, 1 << 40)?;
        self.data.validate()?;
        self.validate_model()?;
        self.validate_adapter()?;
        validate_optimizer(&self.optimizer, self.steps)?;
        if let Some(checkpoint) = &self.checkpoint {
            within("checkpoint.everySteps", checkpoint.every_steps, 1, 1 << 40)?;
            within("checkpoint.keep", checkpoint.keep, 1, 10_000)?;
            checkpoint.destination.check().or_else(|problem| wrong("checkpoint.destination", problem))?;
        }
        if let Some(validation) = &self.validation {
            within("validation.everySteps", validation.every_steps, 1, 1 << 40)?;
            within("validation.batches", validation.batches, 1, 1 << 20)?;
            if self.data.validation_fraction == 0.0 {
                return wrong(
                    "data.validationFraction",
                    "is 0, so that there is nothing to validate on; use 0.01, or leave out validation",
                );
            }
        }
        Ok(())
    }

    fn validate_model(&self) -> Result<(), ConfigError> {
        within("stages", self.stages, 1, 4096)?;
        match &self.model {
            InitialModel::Config(shape) => {
                let tokens = match self.tokenizer() {
                    TokenizerConfig::Bytes => BYTE_TOKENS,
                    TokenizerConfig::Model => {
                        return wrong(
                            "data.tokenizer",
                            "is Model, but the model is made here and has none; use Bytes or a path",
                        );
                    }
                    // Not read here; the dataset checks it against the real number.
                    TokenizerConfig::Path(_) => 1,
                };
                let model = model_config(shape, tokens)?;
                if self.stages > model.layers {
                    return wrong(
                        "stages",
                        format!(
                            "is {}, but the model has {} layers: a stage has at least one",
                            self.stages, model.layers
                        ),
                    );
                }
                if self.sequence_length > model.context_length as usize {
                    let problem = format!(
                        "is {}, longer than model.config.contextLength, {}",
                        self.sequence_length, model.context_length
                    );
                    return wrong("sequenceLength", problem);
                }
                Ok(())
            }
            InitialModel::Checkpoint(place) if place.is_empty() => {
                wrong("model.checkpoint", "is empty; use the folder or URL of a model")
            }
            InitialModel::Checkpoint(_) => Ok(()),
        }
    }
}

impl TrainingConfig {
    fn validate_adapter(&self) -> Result<(), ConfigError> {
        let Some(adapter) = &self.adapter else { return Ok(()) };
        if matches!(self.model, InitialModel::Config(_)) {
            return wrong(
                "adapter",
                "is for a model that stays as it is; say model.checkpoint, not model.config",
            );
        }
        match adapter {
            AdapterShape::Lora(lora) => {
                within("adapter.lora.rank", lora.rank, 1, ADAPTER_ROWS_MAX)?;
                within("adapter.lora.alpha", lora.alpha, 1e-6, 1e6)?;
                let mut targets = lora.targets.clone();
                targets.sort_unstable();
                targets.dedup();
                if targets.is_empty() || targets.len() != lora.targets.len() {
                    return wrong("adapter.lora.targets", "is empty or names a matrix twice; name each once");
                }
                Ok(())
            }
            AdapterShape::Prompt(prompt) => {
                within("adapter.prompt.tokens", prompt.tokens, 1, ADAPTER_ROWS_MAX)
            }
        }
    }
}

impl DataConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let (field, location) = match (&self.text, &self.json_lines) {
            (Some(location), None) => ("data.text", location),
            (None, Some(location)) => ("data.jsonLines", location),
            (None, None) => return wrong("data", "has no source; say text or jsonLines"),
            (Some(_), Some(_)) => return wrong("data", "has both text and jsonLines; leave one out"),
        };
        location.check().or_else(|w| wrong(&format!("{field}{}", w.field), w.problem))?;
        if self.field.is_empty() || self.field.len() > 256 {
            return wrong("data.field", "is empty or too long; use the name of a field of the JSON objects");
        }
        if let Some(TokenizerConfig::Path(path)) = &self.tokenizer
            && path.as_os_str().is_empty()
        {
            return wrong("data.tokenizer.path", "is empty; use the path of a tokenizer.json");
        }
        within("data.validationFraction", self.validation_fraction, 0.0, 0.5)
    }
}

fn validate_optimizer(optimizer: &OptimizerSpec, steps: u64) -> Result<(), ConfigError> {
    within("optimizer.learningRate", optimizer.learning_rate, 1e-12, 100.0)?;
    below_one("optimizer.beta1", optimizer.beta1)?;
    below_one("optimizer.beta2", optimizer.beta2)?;
    within("optimizer.epsilon", optimizer.epsilon, 1e-30, 1.0)?;
    within("optimizer.weightDecay", optimizer.weight_decay, 0.0, 10.0)?;
    below_one("optimizer.momentum", optimizer.momentum)?;
    if let Some(clip) = optimizer.clip {
        within("optimizer.clip", clip, 1e-9, 1e9)?;
    }
    within("optimizer.schedule.warmupSteps", optimizer.schedule.warmup_steps, 0, steps)?;
    within("optimizer.schedule.finalFraction", optimizer.schedule.final_fraction, 0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use dunlin_model::adapter::Projection;

    use super::TrainingConfig;
    use crate::config::{
        AdapterShape, GradientWire, LoraShape, OptimizerKind, ScheduleKind, TokenizerConfig,
    };

    fn sound() -> Value {
        json!({
            "model": {"config": {"hiddenSize": 64, "layers": 4, "heads": 4, "kvHeads": 2, "ffn": 128, "contextLength": 128}},
            "data": {"text": {"path": "a.txt"}},
            "sequenceLength": 64, "globalBatch": 16, "microbatch": 4, "steps": 100,
            "optimizer": {"kind": "AdamW", "learningRate": 1e-3, "schedule": {"kind": "Cosine", "warmupSteps": 10, "finalFraction": 0.1}},
            "stages": 2,
            "checkpoint": {"everySteps": 10, "destination": "/tmp/x"},
            "validation": {"everySteps": 10, "batches": 2},
        })
    }

    /// What the operator writes for a TrainingSwarm; its tests compare it with the same file.
    #[test]
    fn what_the_operator_writes_is_a_sound_configuration() {
        let written = include_str!("../../../../operator/src/training/training.json");
        let config = TrainingConfig::from_json(written).unwrap();
        assert_eq!((config.stages, config.microbatches()), (2, 4));
        assert!(config.checkpoint.is_some() && config.validation.is_some());
    }

    #[test]
    fn json_and_yaml_say_the_same_and_defaults_are_filled_in() {
        let config = TrainingConfig::from_json(&sound().to_string()).unwrap();
        assert_eq!(config.microbatches(), 4);
        assert_eq!(config.tokens_per_step(), 1024);
        assert_eq!(config.optimizer.clip, Some(1.0));
        assert_eq!(config.wire.gradients, GradientWire::Exact);
        assert_eq!(config.tokenizer(), TokenizerConfig::Bytes);
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(TrainingConfig::from_json(&again).unwrap(), config);
        assert_eq!(TrainingConfig::from_yaml(&again).unwrap(), config);

        let yaml = "
model: {checkpoint: /models/a}
data:
  jsonLines: {http: {url: 'https://example.org/a.jsonl'}}
  tokenizer: {path: /models/a}
sequenceLength: 64
globalBatch: 4
microbatch: 2
steps: 5
optimizer: {kind: Lamb, learningRate: 0.001, clip: null, schedule: {kind: Linear}}
wire: {activations: Q8, gradients: F16}
";
        let config = TrainingConfig::from_yaml(yaml).unwrap();
        assert_eq!(config.optimizer.kind, OptimizerKind::Lamb);
        assert_eq!(config.optimizer.clip, None);
        assert_eq!(config.optimizer.schedule.kind, ScheduleKind::Linear);
        assert!(matches!(config.data.json_lines, Some(dunlin_store::Location::Http(_))));
        assert_eq!(config.tokenizer(), TokenizerConfig::Model, "the same in other words");
        let other = TrainingConfig::from_yaml(&yaml.replace("path: /models/a}", "path: /models/b}")).unwrap();
        assert_eq!(other.tokenizer(), TokenizerConfig::Path("/models/b".into()));
        let none = TrainingConfig::from_yaml(&yaml.replace("  tokenizer: {path: /models/a}\n", "")).unwrap();
        assert_eq!(none.tokenizer(), TokenizerConfig::Model);
    }

    #[test]
    fn a_manifest_and_a_file_say_the_same_in_their_own_ways() {
        let with = |pointer: &str, key: &str, value: Value| {
            let mut config = sound();
            config.pointer_mut(pointer).unwrap()[key] = value;
            TrainingConfig::from_json(&config.to_string()).unwrap()
        };
        let unbounded = with("/optimizer", "clip", json!(0.0));
        assert_eq!(unbounded.optimizer.clip, None);
        assert_eq!(unbounded, with("/optimizer", "clip", Value::Null));
        let of = |name: &str| with("/model/config", "architecture", json!(name));
        assert_eq!(of("Qwen2"), of("qwen2"));
        let checkpoint = with("", "checkpoint", json!({"destination": "/tmp/x"})).checkpoint.unwrap();
        assert_eq!((checkpoint.every_steps, checkpoint.keep), (100, 3), "the defaults of manifests");
    }

    #[test]
    fn an_adapter_is_for_a_model_that_is_there() {
        let with = |adapter: Value| {
            let mut config = sound();
            config["model"] = json!({"checkpoint": "/models/a"});
            config["adapter"] = adapter;
            TrainingConfig::from_json(&config.to_string()).map_err(|e| e.to_string())
        };
        let lora = with(json!({"lora": {}})).unwrap().adapter.unwrap();
        let expected =
            LoraShape { rank: 8, alpha: 16.0, targets: vec![Projection::Query, Projection::Value] };
        assert_eq!(lora, AdapterShape::Lora(expected));
        assert_eq!(with(json!({"prompt": {"tokens": 5}})).unwrap().rows_per_sequence(), 69);
        for (adapter, message) in [
            (json!({"lora": {"rank": 0}}), "adapter.lora.rank is 0"),
            (json!({"lora": {"alpha": 0.0}}), "adapter.lora.alpha is 0"),
            (json!({"lora": {"targets": []}}), "adapter.lora.targets is empty"),
            (json!({"lora": {"targets": ["Key", "Key"]}}), "adapter.lora.targets is empty or names"),
            (json!({"lora": {"targets": ["Norm"]}}), "unknown variant `Norm`"),
            (json!({"prompt": {"tokens": 1025}}), "adapter.prompt.tokens is 1025"),
            (json!({"lora": {}, "prompt": {}}), "cannot be read"),
        ] {
            let error = with(adapter).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of cases")]
    fn a_wrong_field_is_named() {
        let cases: &[(&str, Value, &str)] = &[
            ("/sequenceLength", json!(0), "sequenceLength is 0"),
            ("/sequenceLength", json!(129), "sequenceLength is 129, longer than model.config.contextLength"),
            ("/globalBatch", json!(18), "globalBatch is 18, not a multiple"),
            ("/microbatch", json!(0), "microbatch is 0"),
            ("/steps", json!(0), "steps is 0"),
            ("/stages", json!(5), "stages is 5, but the model has 4 layers"),
            ("/optimizer/learningRate", json!(-1.0), "optimizer.learningRate is -1"),
            ("/optimizer/kind", json!("Adam"), "unknown variant `Adam`"),
            ("/optimizer/schedule/warmupSteps", json!(101), "optimizer.schedule.warmupSteps is 101"),
            ("/optimizer/schedule/finalFraction", json!(1.5), "optimizer.schedule.finalFraction is 1.5"),
            ("/data/text", Value::Null, "data has no source"),
            ("/data/text", json!({"http": {"url": "ftp://x"}}), "data.text.http.url is `ftp://x`"),
            (
                "/data/text",
                json!({"http": {"url": "http://x", "sha256": "12"}}),
                "data.text.http.sha256 is not a digest",
            ),
            (
                "/data",
                json!({"text": {"path": "a"}, "tokenizer": "Model"}),
                "data.tokenizer is Model, but the model is made here",
            ),
            ("/checkpoint/everySteps", json!(0), "checkpoint.everySteps is 0"),
            ("/checkpoint/destination", json!(""), "checkpoint.destination is empty"),
            (
                "/checkpoint/destination",
                json!({"s3": {"bucket": "b", "endpoint": "b"}}),
                "checkpoint.destination has s3.endpoint `b`",
            ),
            ("/checkpoint/destination", json!({"s3": {}}), "neither a path, a URL"),
            ("/validation/batches", json!(0), "validation.batches is 0"),
            ("/model/config/heads", json!(3), "model.config.heads is 3, which does not divide hiddenSize"),
            ("/model/config/kvHeads", json!(3), "model.config makes no model: 4 heads"),
            (
                "/model/config",
                json!({"hiddenSize": 64, "layers": 4, "heads": 4, "ffn": 1, "contextLength": 64, "vocab": 255}),
                "model.config.vocab is 255, but the tokenizer has 256",
            ),
            ("/model", json!({"config": {}, "checkpoint": "a"}), "cannot be read"),
        ];
        for (pointer, value, message) in cases {
            let mut config = sound();
            *config.pointer_mut(pointer).unwrap() = value.clone();
            let error = TrainingConfig::from_json(&config.to_string()).unwrap_err().to_string();
            assert!(error.contains(message), "{pointer}: {error}");
        }
        let added = [
            ("/optimizer", "lr", json!(1), "unknown field `lr`"),
            ("/optimizer", "beta1", json!(1.0), "optimizer.beta1 is 1"),
            ("/optimizer", "epsilon", json!(0.0), "optimizer.epsilon is 0"),
            ("/optimizer", "clip", json!(1e-10), "optimizer.clip is 0.0000000001"),
            ("/data", "jsonLines", json!({"path": "b"}), "data has both"),
            ("/data", "validationFraction", json!(0.0), "data.validationFraction is 0"),
            ("/data", "validationFraction", json!(0.9), "data.validationFraction is 0.9"),
            ("", "extra", json!(1), "unknown field `extra`"),
            ("/optimizer/schedule", "warmup", json!(1), "unknown field `warmup`"),
            ("/model/config", "hidden", json!(1), "unknown field `hidden`"),
            ("/checkpoint", "every", json!(1), "unknown field `every`"),
            ("/validation", "every", json!(1), "unknown field `every`"),
            ("", "wire", json!({"gradient": "F16"}), "unknown field `gradient`"),
            ("", "adapter", json!({"lora": {}}), "adapter is for a model that stays as it is"),
        ];
        for (pointer, key, value, message) in added {
            let mut config = sound();
            config.pointer_mut(pointer).unwrap()[key] = value;
            for error in [
                TrainingConfig::from_json(&config.to_string()).unwrap_err().to_string(),
                TrainingConfig::from_yaml(&config.to_string()).unwrap_err().to_string(),
            ] {
                assert!(error.contains(message), "{pointer}/{key}: {error}");
            }
        }
    }
}
