//! The model that is trained: a shape to start from random weights, or weights to go on from.

use std::collections::BTreeMap;

use dunlin_model::ModelConfig;
use dunlin_model::spec::{Attention, BlockSpec, Rotary};
use dunlin_swarm::run;
use serde::{Deserialize, Serialize};

use super::error::ConfigError;

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ModelSource {
    /// A shape; weights are random.
    Config(ModelShape),
    /// A folder with `config.json` and safetensors, or the URL of one; its weights are where training begins. Under an adapter, a GGUF file as
    /// well.
    Checkpoint(String),
}

/// Families of decoders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Architecture {
    /// No biases.
    #[default]
    Llama,
    /// As Llama.
    Mistral,
    /// Biases of queries, keys and values.
    Qwen2,
}

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelShape {
    /// Family.
    #[serde(default)]
    pub architecture: Architecture,
    /// Width of a row.
    pub hidden_size: usize,
    /// Decoder blocks.
    pub layers: u32,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`, and is as many if not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of a head, a multiple of 8 up to 256; `hiddenSize / heads` if not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Width inside of the feed-forward part.
    pub ffn: usize,
    /// Tokens of the model; as many as the tokenizer has if not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Positions that the model is made for.
    pub context_length: u32,
    /// Base of the rotary embedding.
    #[serde(default = "run::rope_base")]
    pub rope_base: f64,
    /// Epsilon of the norms.
    #[serde(default = "rms_eps")]
    pub rms_eps: f32,
    /// The output matrix is the embedding.
    #[serde(default)]
    pub tied: bool,
}

fn rms_eps() -> f32 {
    run::rms_eps() as f32
}

impl ModelShape {
    /// The shape as the model crate takes it, for a tokenizer of `tokens` tokens.
    ///
    /// # Errors
    /// The first number that is out of bounds or does not fit to another.
    pub fn model_config(&self, tokens: usize) -> Result<ModelConfig, ConfigError> {
        let wrong = |field: &str, problem: String| ConfigError::Field {
            field: format!("model.config.{field}"),
            problem,
        };
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if self.heads > 0 && self.hidden_size.is_multiple_of(self.heads) => {
                self.hidden_size / self.heads
            }
            None => {
                let problem = format!("is {}, which does not divide hiddenSize: say headDim", self.heads);
                return Err(wrong("heads", problem));
            }
        };
        let vocab = self.vocab.unwrap_or(tokens);
        if vocab < tokens {
            let problem =
                format!("is {vocab}, but the tokenizer has {tokens} tokens: leave it out or make it larger");
            return Err(wrong("vocab", problem));
        }
        let (architecture, bias) = match self.architecture {
            Architecture::Llama => ("llama", false),
            Architecture::Mistral => ("mistral", false),
            Architecture::Qwen2 => ("qwen2", true),
        };
        let plain = Attention::plain(self.heads, self.kv_heads.unwrap_or(self.heads), head_dim);
        let attention = Attention { bias, ..plain };
        let config = ModelConfig {
            architecture: architecture.to_owned(),
            layers: self.layers,
            hidden: self.hidden_size,
            vocab,
            context_length: self.context_length,
            tied: self.tied,
            embedding_scale: None,
            block: BlockSpec::llama(self.rms_eps, Rotary::plain(self.rope_base), attention, self.ffn),
            other_blocks: BTreeMap::new(),
        };
        match config.validate("model.config") {
            Ok(()) => Ok(config),
            Err(dunlin_model::ModelError::Malformed { what, .. }) => Err(ConfigError::Field {
                field: "model.config".to_owned(),
                problem: format!("makes no model: {what}"),
            }),
            Err(other) => {
                Err(ConfigError::Field { field: "model.config".to_owned(), problem: other.to_string() })
            }
        }
    }
}
