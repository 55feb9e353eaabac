//! The fields of a configuration.

use std::path::{Path, PathBuf};

use dunlin_model::adapter::AdapterShape;
use dunlin_store::Location;
use dunlin_swarm::run::{self, CheckpointSpec, OptimizerSpec, ValidationSpec, WireSpec};
use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::model::InitialModel;
use super::strict::strict;
use crate::checkpoint::Destination;

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainingConfig {
    /// What is trained.
    #[serde(deserialize_with = "strict")]
    pub model: InitialModel,
    /// What is trained beside the model, which stays as it is then; all of the model, if not there.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "strict")]
    pub adapter: Option<AdapterShape>,
    /// On what.
    pub data: DataConfig,
    /// Tokens that a sequence predicts. A sequence takes one more from the data.
    pub sequence_length: usize,
    /// Sequences of one step.
    pub global_batch: usize,
    /// Sequences that go through the stages together; divides `globalBatch`.
    pub microbatch: usize,
    /// Updates of the parameters in all.
    pub steps: u64,
    /// Seeds the first weights and the order of the data.
    #[serde(default)]
    pub seed: u64,
    /// How parameters are updated.
    #[serde(deserialize_with = "strict")]
    pub optimizer: OptimizerSpec,
    /// Parts that the layers are cut in.
    #[serde(default = "one")]
    pub stages: u32,
    /// How values travel between peers.
    #[serde(default, deserialize_with = "strict")]
    pub wire: WireSpec,
    /// When and where the state is saved; never, if not there.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "strict")]
    pub checkpoint: Option<CheckpointSpec<Destination>>,
    /// When the loss on data that is held back is measured; never, if not there.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "strict")]
    pub validation: Option<ValidationSpec>,
}

/// Text, and how it becomes tokens. One of `text` and `jsonLines`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataConfig {
    /// One document of plain UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Location>,
    /// A JSON object a line, each with a document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_lines: Option<Location>,
    /// The field of a JSON object that has the document.
    #[serde(default = "run::text_field")]
    pub field: String,
    /// Text to tokens; see [`TrainingConfig::tokenizer`] for what it is if not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerConfig>,
    /// Share of the tokens, at the end, that is held back to measure the loss on.
    #[serde(default = "run::validation_fraction")]
    pub validation_fraction: f64,
}

/// Text to tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenizerConfig {
    /// A token is a byte: 256 tokens. Byte 0 ends a document.
    Bytes,
    /// That of the model that training goes on from, or that an adapter is trained over.
    Model,
    /// A `tokenizer.json`, or the folder that has one beside `config.json` and `tokenizer_config.json`; or a model's GGUF file.
    #[serde(rename = "path")]
    Path(PathBuf),
}

impl TrainingConfig {
    /// Reads and checks JSON.
    ///
    /// # Errors
    /// When it cannot be read, or the first field that makes no sense.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(text).map_err(|e| ConfigError::Unreadable(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// Reads and checks YAML (JSON is YAML, too).
    ///
    /// # Errors
    /// As [`TrainingConfig::from_json`].
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            serde_saphyr::from_str(text).map_err(|e| ConfigError::Unreadable(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// Text to tokens: that of the model where there is one, bytes where the model is made here, if nothing is said.
    #[must_use]
    pub fn tokenizer(&self) -> TokenizerConfig {
        let model = match &self.model {
            InitialModel::Config(_) => None,
            InitialModel::Checkpoint(place) => Some(place),
        };
        match (&self.data.tokenizer, model) {
            (None, None) => TokenizerConfig::Bytes,
            (None, Some(_)) => TokenizerConfig::Model,
            // The same in other words.
            (Some(TokenizerConfig::Path(path)), Some(model)) if path == Path::new(model) => {
                TokenizerConfig::Model
            }
            (Some(said), _) => said.clone(),
        }
    }

    /// Microbatches of a step.
    #[must_use]
    pub fn microbatches(&self) -> usize {
        self.global_batch / self.microbatch
    }

    /// Rows of a sequence: its tokens, and those of a prompt before them.
    #[must_use]
    pub fn rows_per_sequence(&self) -> usize {
        self.sequence_length + self.adapter.as_ref().map_or(0, AdapterShape::prompt_rows)
    }

    /// Tokens that a step predicts.
    #[must_use]
    pub fn tokens_per_step(&self) -> u64 {
        self.global_batch as u64 * self.sequence_length as u64
    }
}

fn one() -> u32 {
    1
}
