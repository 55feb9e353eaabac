//! The shape of a model from the metadata of a GGUF file.

use std::collections::BTreeMap;

use dunlin_kernels::{RopeLayout, RopeScaling};

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::gguf;

/// Reads it, and refuses what would be computed wrongly. `tied`: there is no output matrix of its own.
pub(super) fn gguf_config(
    file: &str,
    values: &BTreeMap<String, gguf::Value>,
    tensors: &BTreeMap<String, gguf::Tensor>,
    tied: bool,
) -> Result<ModelConfig, ModelError> {
    let wrong = |what: String| ModelError::Malformed { file: file.to_owned(), format: "GGUF", what };
    let architecture = values.get("general.architecture").and_then(gguf::Value::as_text);
    let architecture = architecture.ok_or_else(|| wrong("no `general.architecture`".to_owned()))?;
    let (rope_layout, qkv_bias) = match architecture {
        "llama" => (RopeLayout::Interleaved, false),
        "qwen2" => (RopeLayout::Halves, true),
        other => return Err(ModelError::Unsupported(format!("{file}: the architecture is `{other}`"))),
    };
    let get = |key: &str| values.get(&format!("{architecture}.{key}"));
    let number = |key: &str| {
        let value = get(key).and_then(gguf::Value::as_u32);
        value.map(|v| v as usize).ok_or_else(|| wrong(format!("no usable `{architecture}.{key}`")))
    };
    if get("expert_count").and_then(gguf::Value::as_u32).unwrap_or(0) > 0 {
        return Err(ModelError::Unsupported(format!("{file}: mixture of experts")));
    }
    if tensors.contains_key("rope_freqs.weight") {
        return Err(ModelError::Unsupported(format!("{file}: rope frequencies as a tensor")));
    }
    let scaling = get("rope.scaling.type").and_then(gguf::Value::as_text).unwrap_or("none");
    let factor = get("rope.scaling.factor").and_then(gguf::Value::as_f64).unwrap_or(1.0);
    let rope_scaling = match scaling {
        "none" => RopeScaling::None,
        "linear" if factor.is_finite() && factor > 0.0 => RopeScaling::Linear(factor),
        other => return Err(ModelError::Unsupported(format!("{file}: rope scaling `{other}`"))),
    };
    let (hidden, heads) = (number("embedding_length")?, number("attention.head_count")?);
    let head_dim = number("attention.key_length").unwrap_or(hidden / heads.max(1));
    if number("rope.dimension_count").is_ok_and(|d| d != head_dim) {
        return Err(ModelError::Unsupported(format!("{file}: only a part of each head is rotated")));
    }
    let mut context_length = number("context_length")?;
    if let Some(window @ 1..) = get("attention.sliding_window").and_then(gguf::Value::as_u32) {
        // Inside of the window a sliding one changes nothing.
        context_length = context_length.min(window as usize);
    }
    let embedding = tensors.get("token_embd.weight");
    let embedding = embedding.ok_or_else(|| ModelError::MissingTensor("token_embd.weight".to_owned()))?;
    let config = ModelConfig {
        architecture: architecture.to_owned(),
        layers: number("block_count")? as u32,
        hidden,
        heads,
        kv_heads: number("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        ffn: number("feed_forward_length")?,
        vocab: embedding.shape[0],
        rms_eps: get("attention.layer_norm_rms_epsilon").and_then(gguf::Value::as_f64).unwrap_or(1e-5) as f32,
        rope_base: get("rope.freq_base").and_then(gguf::Value::as_f64).unwrap_or(10_000.0),
        rope_scaling,
        rope_layout,
        context_length: context_length as u32,
        qkv_bias,
        tied,
    };
    config.validate(file)?;
    Ok(config)
}
