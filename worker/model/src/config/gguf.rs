//! The shape of a model from the metadata of a GGUF file.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_kernels::RopeScaling;

use super::gguf_keys;
use super::gguf_values::{Keys, ROPE_DIVISORS, ROPE_LONG, RopeTensors, malformed};
use super::shape::ModelConfig;
use crate::error::{ModelError, excerpt};
use crate::families::family::Beside;
use crate::families::{of_gguf, unsupported};
use crate::gguf::{Header, Value};
use crate::spec::{Attention, BlockSpec, Rotary};

/// Reads it, and refuses what would be computed wrongly: every key of the architecture is honoured, known to change no number, or refused.
/// `rope` are the values of tensors that say how frequencies are stretched.
pub(crate) fn from_gguf(file: &str, header: &Header, rope: &RopeTensors) -> Result<ModelConfig, ModelError> {
    let Header { values, tensors } = header;
    let refused = |what: &str, remedy: &str| ModelError::Refused {
        what: format!("{file}: {what}"),
        remedy: remedy.to_owned(),
    };
    let architecture = values.get("general.architecture").and_then(Value::as_text);
    let architecture = architecture.ok_or_else(|| malformed(file, "no `general.architecture`".to_owned()))?;
    let family = of_gguf(file, architecture)?;
    let keys = Keys { file, architecture, values };
    if keys.whole("expert_count")?.unwrap_or(0) > 0 {
        return Err(unsupported(file, "mixture of experts"));
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
    gguf_keys::check(&keys, head_dim, family.gguf_keys)?;
    let context_length = keys.needed("context_length", keys.whole("context_length")?)?;
    let embedding = tensors.get("token_embd.weight");
    let embedding = embedding.ok_or_else(|| ModelError::MissingTensor("token_embd.weight".to_owned()))?;
    let epsilon = "attention.layer_norm_rms_epsilon";
    let attention = Attention::plain(heads, of_layers("attention.head_count_kv")?.unwrap_or(heads), head_dim);
    let rotary = Rotary {
        base: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        scaling: rope_scaling(&keys, rope, (head_dim, context_length))?,
        layout: family.gguf_layout,
    };
    let width = keys.needed("feed_forward_length", of_layers("feed_forward_length")?)?;
    let mut block =
        BlockSpec::llama(keys.needed(epsilon, keys.number(epsilon)?)? as f32, rotary, attention, width);
    block.mlp.activation = family.activation;
    let mut config = ModelConfig {
        architecture: family.name.to_owned(),
        layers: u32::try_from(layers).unwrap_or(u32::MAX),
        hidden,
        vocab: embedding.shape[0],
        context_length: u32::try_from(context_length).unwrap_or(u32::MAX),
        tied: !tensors.contains_key("output.weight"),
        embedding_scale: None,
        block,
        other_blocks: BTreeMap::new(),
    };
    // Families go through the layers, so their number must be sound before.
    config.validate(file)?;
    (family.gguf)(&keys, &Beside { tensors, rope }, &mut config)?;
    config.validate(file)?;
    Ok(config)
}

/// As llama.cpp reads it: a factor without a type is linear, and an old key is known.
fn rope_scaling(
    keys: &Keys<'_>,
    rope: &RopeTensors,
    (head_dim, positions): (usize, usize),
) -> Result<RopeScaling, ModelError> {
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    let scaling = match (keys.text("rope.scaling.type")?, factor) {
        (Some("none"), _) | (None | Some("linear"), None) => RopeScaling::None,
        // Its family reads these.
        (Some("longrope"), _) if rope.contains_key(ROPE_LONG) => RopeScaling::None,
        (None | Some("linear"), Some(factor)) if factor.is_finite() && factor > 0.0 => {
            RopeScaling::Linear(factor)
        }
        (None | Some("linear"), Some(factor)) => {
            return Err(malformed(keys.file, format!("a rope scaling by {factor}")));
        }
        (Some("yarn"), factor) => {
            let factor = keys.needed("rope.scaling.factor", factor)?;
            let original = keys.number("rope.scaling.original_context_length")?;
            RopeScaling::Yarn {
                factor,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_context: original.unwrap_or(positions as f64),
                truncate: true,
                magnitude: RopeScaling::yarn_magnitude(factor),
            }
        }
        (Some(other), _) => {
            let what = format!("rope scaling `{}`", excerpt(other));
            let remedy = "`none`, `linear` and `yarn` are the rope scalings of GGUF files that run here";
            return Err(keys.refused(&what, remedy));
        }
    };
    let Some(divisors) = rope.get(ROPE_DIVISORS) else { return Ok(scaling) };
    if divisors.len() != head_dim / 2 {
        let (name, found) = (ROPE_DIVISORS.to_owned(), vec![divisors.len()]);
        return Err(ModelError::Shape { name, found, expected: vec![head_dim / 2] });
    }
    let by = match scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear(factor) => factor,
        _ => {
            let what = format!("it has `{ROPE_DIVISORS}` and another rope scaling than `linear`");
            return Err(keys.refused(&what, "remove the one that the model was not made with"));
        }
    };
    let divisors: Arc<[f64]> = divisors.iter().map(|divisor| f64::from(*divisor) * by).collect();
    Ok(RopeScaling::Divided { by: divisors, magnitude: 1.0 })
}
