//! The shape of a model from the metadata of a GGUF file.

use std::sync::Arc;

use dunlin_kernels::{RopeLayout, RopeScaling};

use super::gguf_keys;
use super::gguf_values::{Keys, malformed};
use super::shape::ModelConfig;
use crate::error::{ModelError, excerpt};
use crate::gguf::{Header, Value};

/// What every frequency of the rotary embedding is divided by, in files of Llama 3.1 and later.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Reads it, and refuses what would be computed wrongly: every key of the architecture is honoured, known to change no number, or refused.
/// `divisors` are the values of [`ROPE_DIVISORS`].
pub(crate) fn from_gguf(
    file: &str,
    header: &Header,
    divisors: Option<&[f32]>,
) -> Result<ModelConfig, ModelError> {
    let Header { values, tensors } = header;
    let refused = |what: &str, remedy: &str| ModelError::Refused {
        what: format!("{file}: {what}"),
        remedy: remedy.to_owned(),
    };
    let architecture = values.get("general.architecture").and_then(Value::as_text);
    let architecture = architecture.ok_or_else(|| malformed(file, "no `general.architecture`".to_owned()))?;
    let (rope_layout, qkv_bias, qk_norm) = match architecture {
        // Some have them, and say so by having them.
        "llama" => (RopeLayout::Interleaved, tensors.keys().any(|name| is_qkv_bias(name)), false),
        "qwen2" => (RopeLayout::Halves, true, false),
        "qwen3" => (RopeLayout::Halves, false, true),
        other => {
            let what = format!("{file}: the architecture is `{}`", excerpt(other));
            return Err(ModelError::Unsupported(what));
        }
    };
    let keys = Keys { file, architecture, values };
    if keys.whole("expert_count")?.unwrap_or(0) > 0 {
        return Err(ModelError::Unsupported(format!("{file}: mixture of experts")));
    }
    let layers = keys.needed("block_count", keys.whole("block_count")?)?;
    let of_layers = |key: &str| keys.of_layers(key, layers);
    let hidden = keys.needed("embedding_length", keys.whole("embedding_length")?)?;
    let heads = keys.needed("attention.head_count", of_layers("attention.head_count")?)?;
    let head_dim = keys.whole("attention.key_length")?.unwrap_or(hidden / heads.max(1));
    if keys.whole("rope.dimension_count")?.is_some_and(|turned| turned != head_dim) {
        return Err(refused(
            "only a part of each head is rotated",
            "models that rotate whole heads run here",
        ));
    }
    gguf_keys::check(&keys, head_dim)?;
    let mut context_length = keys.needed("context_length", keys.whole("context_length")?)?;
    if let Some(window @ 1..) = keys.whole("attention.sliding_window")? {
        // Inside of the window a sliding one changes nothing.
        context_length = context_length.min(window);
    }
    let embedding = tensors.get("token_embd.weight");
    let embedding = embedding.ok_or_else(|| ModelError::MissingTensor("token_embd.weight".to_owned()))?;
    let epsilon = "attention.layer_norm_rms_epsilon";
    let config = ModelConfig {
        architecture: architecture.to_owned(),
        layers: u32::try_from(layers).unwrap_or(u32::MAX),
        hidden,
        heads,
        kv_heads: of_layers("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.needed("feed_forward_length", of_layers("feed_forward_length")?)?,
        vocab: embedding.shape[0],
        rms_eps: keys.needed(epsilon, keys.number(epsilon)?)? as f32,
        rope_base: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(&keys, divisors, head_dim)?,
        rope_layout,
        context_length: u32::try_from(context_length).unwrap_or(u32::MAX),
        qkv_bias,
        qk_norm,
        tied: !tensors.contains_key("output.weight"),
    };
    config.validate(file)?;
    Ok(config)
}

fn is_qkv_bias(name: &str) -> bool {
    ["attn_q.bias", "attn_k.bias", "attn_v.bias"].into_iter().any(|bias| name.ends_with(bias))
}

/// As llama.cpp reads it: a factor without a type is linear, and an old key is known.
fn rope_scaling(
    keys: &Keys<'_>,
    divisors: Option<&[f32]>,
    head_dim: usize,
) -> Result<RopeScaling, ModelError> {
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    let scaling = match (keys.text("rope.scaling.type")?, factor) {
        (Some("none"), _) | (None | Some("linear"), None) => RopeScaling::None,
        (None | Some("linear"), Some(factor)) if factor.is_finite() && factor > 0.0 => {
            RopeScaling::Linear(factor)
        }
        (None | Some("linear"), Some(factor)) => {
            return Err(malformed(keys.file, format!("a rope scaling by {factor}")));
        }
        (Some(other), _) => {
            let what = format!("rope scaling `{}`", excerpt(other));
            return Err(
                keys.refused(&what, "`none` and `linear` are the rope scalings of GGUF files that run here")
            );
        }
    };
    let Some(divisors) = divisors else { return Ok(scaling) };
    if divisors.len() != head_dim / 2 {
        let (name, found) = (ROPE_DIVISORS.to_owned(), vec![divisors.len()]);
        return Err(ModelError::Shape { name, found, expected: vec![head_dim / 2] });
    }
    let by = if let RopeScaling::Linear(factor) = scaling { factor } else { 1.0 };
    let divisors: Arc<[f64]> = divisors.iter().map(|divisor| f64::from(*divisor) * by).collect();
    Ok(RopeScaling::Divided(divisors))
}
