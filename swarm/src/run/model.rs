//! The shape of a new model.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(feature = "schema")]
use super::rules;
#[cfg(feature = "schema")]
use crate::limits::CONTEXT_TOKENS_MAX;

/// The shape of a new model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema), schemars(extend("x-kubernetes-validations" = rules(&[
        ("self.hiddenSize % self.heads == 0 && self.hiddenSize / self.heads % 8 == 0 && self.hiddenSize / self.heads <= 256", "hiddenSize divided by heads must be a multiple of 8 and at most 256"),
        ("!has(self.kvHeads) || self.heads % self.kvHeads == 0", "heads must be a multiple of kvHeads"),
    ]))))]
#[serde(rename_all = "camelCase")]
pub struct ModelShape {
    /// Family of the decoder.
    #[serde(default)]
    pub architecture: Architecture,
    /// Width of a row.
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 8, max = 65_536)))]
    pub hidden_size: usize,
    /// Decoder blocks.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1024)))]
    pub layers: u32,
    /// Query heads.
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 1, max = 1024)))]
    pub heads: usize,
    /// Key and value heads; `heads` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<u32>", range(min = 1, max = 1024)))]
    pub kv_heads: Option<usize>,
    /// Width of a head, a multiple of 8 up to 256; `hiddenSize / heads` when absent. Manifests have none: their rules check the quotient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(skip))]
    pub head_dim: Option<usize>,
    /// Width inside of the feed-forward part.
    #[cfg_attr(feature = "schema", schemars(with = "u32", range(min = 8, max = 1_048_576)))]
    pub ffn: usize,
    /// Tokens that it knows; as many as the tokenizer has when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<u32>", range(min = 2, max = 4_194_304)))]
    pub vocab: Option<usize>,
    /// Longest sequence that it is made for, in tokens.
    #[cfg_attr(feature = "schema", schemars(range(min = 8, max = CONTEXT_TOKENS_MAX)))]
    pub context_length: u32,
    /// Base of the rotary embedding.
    #[serde(default = "rope_base")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1.0, max = 1e9)))]
    pub rope_base: f64,
    /// Epsilon of the norms.
    #[serde(default = "rms_eps")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            range(min = 0.0, max = 0.1),
            extend("x-kubernetes-validations" = rules(&[("self >= 1e-12", "rmsEps must be more than 0")]))
        )
    )]
    pub rms_eps: f64,
    /// The output matrix is the embedding.
    #[serde(default)]
    pub tied: bool,
}

/// Family of a decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum Architecture {
    /// Llama.
    #[default]
    #[serde(alias = "llama")]
    Llama,
    /// Mistral.
    #[serde(alias = "mistral")]
    Mistral,
    /// Qwen2: biases on queries, keys and values.
    #[serde(alias = "qwen2")]
    Qwen2,
}

fn rope_base() -> f64 {
    10_000.0
}

fn rms_eps() -> f64 {
    1e-5
}
