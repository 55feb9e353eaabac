//! Gemma 3 (Gemma Team 2025), models of text: most layers slide and turn faster than the others, norms before and behind each part, GELU, a scaled
//! embedding. Without soft caps, which a model of this family does not have.

use super::family::{Beside, Defaults, Family};
use super::qwen2::QWEN2;
use super::windows;
use crate::config::gguf_values::Keys;
use crate::config::json_section::Section;
use crate::config::{ModelConfig, json_rope};
use crate::error::ModelError;
use crate::spec::{Activation, Rotary, TensorRole};

pub(super) const GEMMA3: Family = Family {
    title: "Gemma 3",
    name: "gemma3_text",
    class: "Gemma3ForCausalLM",
    gguf_name: Some("gemma3"),
    defaults: Defaults { positions: 131_072, kv_heads: Some(4), head_dim: Some(256), rms_eps: 1e-6 },
    json_keys: &[
        "_sliding_window_pattern",
        "hidden_activation",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window_pattern",
    ],
    gguf_keys: &["attention.sliding_window_pattern", "rope.freq_base_swa"],
    activation: Activation::GeluTanh,
    names: &[(TensorRole::MlpNorm, ["pre_feedforward_layernorm.weight", "ffn_norm.weight"])],
    rotary: |c, positions| json_rope::of_kind(c, positions, "full_attention", ("rope_theta", 1e6)),
    json,
    gguf,
    ..QWEN2
};

/// Of so many layers the last sees everything.
const PATTERN: usize = 6;
/// Base of layers that slide.
const LOCAL_BASE: f64 = 10_000.0;

fn json(c: &Section<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    windows::no_bias(c)?;
    model.block.norm.plus_one = true;
    let scalar = c.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    model.block.attention.scale = Some(scalar.sqrt().recip() as f32);
    let key =
        ["sliding_window_pattern", "_sliding_window_pattern"].into_iter().find(|key| c.get(key).is_some());
    let pattern = key.map_or(Ok(Some(PATTERN)), |key| c.whole(key))?.unwrap_or(PATTERN);
    let types = windows::layer_types(c, model.layers)?;
    let local = json_rope::of_kind(
        c,
        model.context_length as usize,
        "sliding_attention",
        ("rope_local_base_freq", LOCAL_BASE),
    )?;
    let window = windows::window(c, Some(4096))?;
    alternate(model, local, window, |layer| match &types {
        Some(types) => types[layer as usize],
        None => slides(layer, pattern),
    });
    Ok(())
}

/// What llama.cpp knows of the family is not in its files.
fn gguf(keys: &Keys<'_>, _: &Beside<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    /// The 27B, which has wider rows than heads together.
    const LARGEST: u32 = 62;
    let attention = &mut model.block.attention;
    let scalar = if model.layers == LARGEST { model.hidden / attention.heads } else { attention.head_dim };
    attention.scale = Some((scalar as f64).sqrt().recip() as f32);
    let base = keys.number("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    let local = Rotary { layout: model.block.rotary.layout, ..Rotary::plain(base) };
    let pattern = keys.whole("attention.sliding_window_pattern")?.unwrap_or(PATTERN);
    alternate(model, local, windows::gguf_window(keys)?, |layer| slides(layer, pattern));
    Ok(())
}

fn slides(layer: u32, pattern: usize) -> bool {
    pattern == 0 || !(layer as usize + 1).is_multiple_of(pattern)
}

/// What both forms have in common.
fn alternate(model: &mut ModelConfig, local: Rotary, window: Option<u32>, slides: impl Fn(u32) -> bool) {
    model.embedding_scale = Some((model.hidden as f32).sqrt());
    model.block.attention.qk_norm = true;
    model.block.post_norms = true;
    let mut sliding = model.block.clone();
    sliding.rotary = local;
    sliding.attention.window = window;
    model.vary(&sliding, slides);
}
