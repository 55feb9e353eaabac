//! The shape of a model from Hugging Face's config.json.

use std::collections::BTreeMap;

use serde_json::Value;

use super::json_keys;
use super::json_section::Section;
use super::shape::ModelConfig;
use crate::error::{ModelError, excerpt};
use crate::families::family::Family;
use crate::families::of_json;
use crate::spec::{Activation, Attention, BlockSpec};

/// Reads it, and refuses what would be computed wrongly: every key is honoured, known to change no number, or refused.
///
/// # Errors
/// When something is missing, or is not known here.
pub fn from_json(file: &str, json: &Value) -> Result<ModelConfig, ModelError> {
    let c = Section::new(file, "", json)?;
    let family = of_json(&c)?;
    json_keys::check(&c, family.json_keys)?;
    let needed = |key: &str| c.whole(key)?.ok_or_else(|| c.unusable(key));
    let (hidden, heads) = (needed("hidden_size")?, needed("num_attention_heads")?);
    let layers = needed("num_hidden_layers")?;
    let defaults = &family.defaults;
    let positions = given_or(&c, "max_position_embeddings", Section::whole, defaults.positions)?;
    let kv_heads = match c.map.contains_key("num_key_value_heads") {
        true => c.whole("num_key_value_heads")?,
        false => defaults.kv_heads,
    };
    let head_dim = c.whole("head_dim")?.or(defaults.head_dim).unwrap_or(hidden / heads.max(1));
    let eps = given_or(&c, "rms_norm_eps", Section::number, defaults.rms_eps)? as f32;
    let attention = Attention::plain(heads, kv_heads.unwrap_or(heads), head_dim);
    let rotary = (family.rotary)(&c, positions)?;
    let mut block = BlockSpec::llama(eps, rotary, attention, needed("intermediate_size")?);
    block.mlp.activation = activation(&c, family)?;
    let mut config = ModelConfig {
        architecture: family.name.to_owned(),
        layers: u32::try_from(layers).unwrap_or(u32::MAX),
        hidden,
        vocab: needed("vocab_size")?,
        context_length: u32::try_from(positions).unwrap_or(u32::MAX),
        tied: c.flag("tie_word_embeddings")?.unwrap_or(false),
        embedding_scale: None,
        block,
        other_blocks: BTreeMap::new(),
    };
    // Families go through the layers, so their number must be sound before.
    config.validate(file)?;
    (family.json)(&c, &mut config)?;
    config.validate(file)?;
    Ok(config)
}

/// What `key` says; `default` where it is not there, but not where it is null.
fn given_or<'a, T>(
    c: &Section<'a>,
    key: &str,
    read: impl Fn(&Section<'a>, &str) -> Result<Option<T>, ModelError>,
    default: T,
) -> Result<T, ModelError> {
    match c.map.contains_key(key) {
        true => read(c, key)?.ok_or_else(|| c.unusable(key)),
        false => Ok(default),
    }
}

/// The one of its family, under whichever of its names.
fn activation(c: &Section<'_>, family: &Family) -> Result<Activation, ModelError> {
    let names: &[&str] = match family.activation {
        Activation::Silu => &["silu", "swish"],
        Activation::GeluTanh => &["gelu_pytorch_tanh"],
    };
    let known = |said: &&str| names.contains(said) || family.activation_names.contains(said);
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(other) = c.text(key)?.filter(|said| !known(said)) {
            let what = format!("`{key}` is `{}`", excerpt(other));
            return Err(c.refused(&what, &format!("`{}` is what runs here", names[0])));
        }
    }
    Ok(family.activation)
}
