//! The shape of a model from Hugging Face's config.json.

use dunlin_kernels::RopeLayout;
use serde_json::Value;

use super::json_section::Section;
use super::shape::ModelConfig;
use super::{json_keys, json_rope};
use crate::error::{ModelError, excerpt};

/// Epsilon of the norms when config.json does not say one, for all families.
const RMS_EPS: f64 = 1e-6;
/// The window of all but Llama when config.json does not say one; null is none.
const WINDOW: usize = 4096;
/// From this layer on Qwen2 and Qwen3 slide when config.json does not say which do.
const FIRST_SLIDING: usize = 28;

/// Reads it, and refuses what would be computed wrongly: every key is honoured, known to change no number, or refused.
///
/// # Errors
/// When something is missing, or is not known here.
pub fn from_json(file: &str, json: &Value) -> Result<ModelConfig, ModelError> {
    let c = Section::new(file, "", json)?;
    let family = Family::of(&c)?;
    json_keys::check(&c)?;
    let needed = |key: &str| c.whole(key)?.ok_or_else(|| c.unusable(key));
    let (hidden, heads) = (needed("hidden_size")?, needed("num_attention_heads")?);
    let layers = needed("num_hidden_layers")?;
    let defaults = family.defaults();
    let positions = given_or(&c, "max_position_embeddings", Section::whole, defaults.positions)?;
    let rope = json_rope::rope(&c, positions)?;
    // Inside of the window a sliding one changes nothing.
    let window = family.window(&c, layers)?;
    let context_length = window.map_or(positions, |window| positions.min(window));
    let kv_heads = match c.map.contains_key("num_key_value_heads") {
        true => c.whole("num_key_value_heads")?,
        false => defaults.kv_heads,
    };
    let config = ModelConfig {
        architecture: family.name().to_owned(),
        layers: u32::try_from(layers).unwrap_or(u32::MAX),
        hidden,
        heads,
        kv_heads: kv_heads.unwrap_or(heads),
        head_dim: c.whole("head_dim")?.or(defaults.head_dim).unwrap_or(hidden / heads.max(1)),
        ffn: needed("intermediate_size")?,
        vocab: needed("vocab_size")?,
        rms_eps: given_or(&c, "rms_norm_eps", Section::number, RMS_EPS)? as f32,
        rope_base: rope.base,
        rope_scaling: rope.scaling,
        rope_layout: RopeLayout::Halves,
        context_length: u32::try_from(context_length).unwrap_or(u32::MAX),
        qkv_bias: family.qkv_bias(&c)?,
        qk_norm: family == Family::Qwen3,
        tied: c.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    activation(&c)?;
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

/// What transformers takes where config.json has no such key.
struct Defaults {
    positions: usize,
    /// As many as query heads when none.
    kv_heads: Option<usize>,
    /// `hidden_size / num_attention_heads` when none.
    head_dim: Option<usize>,
}

/// The kinds of models that run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// Also what config.json calls its `model_type`.
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// Of the classes `LlamaConfig`, `MistralConfig`, `Qwen2Config` and `Qwen3Config` of transformers 4.57 and 5.0.
    fn defaults(self) -> Defaults {
        match self {
            Self::Llama => Defaults { positions: 2048, kv_heads: None, head_dim: None },
            Self::Mistral => Defaults { positions: 4096 * 32, kv_heads: Some(8), head_dim: None },
            Self::Qwen2 => Defaults { positions: 32768, kv_heads: Some(32), head_dim: None },
            Self::Qwen3 => Defaults { positions: 32768, kv_heads: Some(32), head_dim: Some(128) },
        }
    }

    /// By `architectures`; without it by `model_type`, by which transformers goes.
    fn of(c: &Section<'_>) -> Result<Self, ModelError> {
        let unsupported = |what: String| Err(ModelError::Unsupported(format!("{}: {what}", c.file)));
        let kind = c.text("model_type")?;
        let class = match c.get("architectures") {
            None => None,
            Some(Value::Array(classes)) if classes.is_empty() => None,
            Some(classes) => Some(classes[0].as_str().ok_or_else(|| c.unusable("architectures"))?),
        };
        match (class, kind) {
            (Some(class), kind) => match (Self::ALL.into_iter().find(|f| f.class() == class), kind) {
                // What tells them apart is in the class, as vLLM goes by it.
                (Some(_), Some(kind)) if Self::ALL.iter().all(|f| f.name() != kind) => unsupported(format!(
                    "`architectures` says `{class}`, and `model_type` says `{}`",
                    excerpt(kind)
                )),
                (Some(family), _) => Ok(family),
                (None, _) => unsupported(format!("the architecture is `{}`", excerpt(class))),
            },
            (None, Some(kind)) => match Self::ALL.into_iter().find(|f| f.name() == kind) {
                Some(family) => Ok(family),
                None => unsupported(format!("the `model_type` is `{}`", excerpt(kind))),
            },
            (None, None) => unsupported("neither `architectures` nor `model_type` is there".to_owned()),
        }
    }

    /// Positions behind which attention forgets, if any layer does.
    fn window(self, c: &Section<'_>, layers: usize) -> Result<Option<usize>, ModelError> {
        let some_slide = some_layers_slide(c, layers)?;
        let (window, on) = (c.whole("sliding_window")?, c.flag("use_sliding_window")?);
        let window = match c.map.contains_key("sliding_window") {
            false if self != Self::Llama => Some(WINDOW),
            _ => window,
        };
        let slides = match self {
            Self::Llama => on != Some(false),
            Self::Mistral => true,
            Self::Qwen2 | Self::Qwen3 => on == Some(true) && some_slide,
        };
        Ok(window.filter(|_| slides))
    }

    /// Have queries, keys and values biases?
    fn qkv_bias(self, c: &Section<'_>) -> Result<bool, ModelError> {
        match (self, c.flag("attention_bias")?) {
            // It has these, and none of the output matrix, whatever the key says.
            (Self::Qwen2, _) => Ok(true),
            (_, None | Some(false)) => Ok(false),
            (_, Some(true)) => Err(c.refused(
                "`attention_bias` is true",
                "models whose attention has a bias of the output matrix do not run here",
            )),
        }
    }
}

/// As Qwen2 says it: by `layer_types`, or by the first layer that does.
fn some_layers_slide(c: &Section<'_>, layers: usize) -> Result<bool, ModelError> {
    let first = c.whole("max_window_layers")?.unwrap_or(FIRST_SLIDING);
    let Some(types) = c.get("layer_types") else { return Ok(first < layers) };
    let types = types.as_array().filter(|types| types.len() == layers);
    let types = types.ok_or_else(|| c.unusable("layer_types"))?;
    let known = |kind: &&Value| **kind == "full_attention" || **kind == "sliding_attention";
    match types.iter().find(|kind| !known(kind)) {
        Some(kind) => Err(c.refused(
            &format!("`layer_types` has {}", excerpt(&kind.to_string())),
            "layers of `full_attention` and `sliding_attention` run here",
        )),
        None => Ok(types.iter().any(|kind| kind == "sliding_attention")),
    }
}

fn activation(c: &Section<'_>) -> Result<(), ModelError> {
    match c.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => {
            Err(c.refused(&format!("`hidden_act` is `{}`", excerpt(other)), "`silu` is what runs here"))
        }
    }
}
