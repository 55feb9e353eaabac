//! The model that is trained: a shape to start from random weights, or weights to go on from.

use std::collections::BTreeMap;

use dunlin_model::ModelConfig;
use dunlin_model::spec::{Attention, BlockSpec, Rotary};
use dunlin_swarm::run::{Architecture, ModelShape};
use serde::{Deserialize, Serialize};

use super::error::ConfigError;

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InitialModel {
    /// A shape; weights are random.
    Config(ModelShape),
    /// A folder with `config.json` and safetensors, or the URL of one; its weights are where training begins. Under an adapter, a GGUF file as
    /// well.
    Checkpoint(String),
}

/// The shape as the model crate takes it, for a tokenizer of `tokens` tokens.
///
/// # Errors
/// The first number that is out of bounds or does not fit to another.
pub fn model_config(shape: &ModelShape, tokens: usize) -> Result<ModelConfig, ConfigError> {
    let wrong =
        |field: &str, problem: String| ConfigError::Field { field: format!("model.config.{field}"), problem };
    let head_dim = match shape.head_dim {
        Some(head_dim) => head_dim,
        None if shape.heads > 0 && shape.hidden_size.is_multiple_of(shape.heads) => {
            shape.hidden_size / shape.heads
        }
        None => {
            let problem = format!("is {}, which does not divide hiddenSize: say headDim", shape.heads);
            return Err(wrong("heads", problem));
        }
    };
    let vocab = shape.vocab.unwrap_or(tokens);
    if vocab < tokens {
        let problem =
            format!("is {vocab}, but the tokenizer has {tokens} tokens: leave it out or make it larger");
        return Err(wrong("vocab", problem));
    }
    let (architecture, bias) = match shape.architecture {
        Architecture::Llama => ("llama", false),
        Architecture::Mistral => ("mistral", false),
        Architecture::Qwen2 => ("qwen2", true),
    };
    let plain = Attention::plain(shape.heads, shape.kv_heads.unwrap_or(shape.heads), head_dim);
    let attention = Attention { bias, ..plain };
    let config = ModelConfig {
        architecture: architecture.to_owned(),
        layers: shape.layers,
        hidden: shape.hidden_size,
        vocab,
        context_length: shape.context_length,
        tied: shape.tied,
        embedding_scale: None,
        block: BlockSpec::llama(shape.rms_eps as f32, Rotary::plain(shape.rope_base), attention, shape.ffn),
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
