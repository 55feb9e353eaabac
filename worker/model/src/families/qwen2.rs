//! Qwen2 and Qwen2.5 (Yang et al. 2024): biases of queries, keys and values; some layers may slide.

use dunlin_kernels::RopeLayout;

use super::family::{Beside, Defaults, Family};
use super::llama::LLAMA;
use super::windows;
use crate::config::ModelConfig;
use crate::config::gguf_values::Keys;
use crate::config::json_section::Section;
use crate::error::ModelError;

pub(super) const QWEN2: Family = Family {
    title: "Qwen2",
    name: "qwen2",
    class: "Qwen2ForCausalLM",
    gguf_name: Some("qwen2"),
    defaults: Defaults { positions: 32768, kv_heads: Some(32), head_dim: None, rms_eps: 1e-6 },
    gguf_layout: RopeLayout::Halves,
    rope_tensors: &[],
    json,
    gguf,
    ..LLAMA
};

fn json(c: &Section<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    // It has these, and none of the output matrix, whatever `attention_bias` says.
    model.block.attention.bias = true;
    sliding_layers(c, model)
}

fn gguf(keys: &Keys<'_>, _: &Beside<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    model.block.attention.bias = true;
    windows::stay_within(model, windows::gguf_window(keys)?);
    Ok(())
}

/// Those that `layer_types` names; without it those from `max_window_layers` on.
pub(super) fn sliding_layers(c: &Section<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    let first = c.whole("max_window_layers")?.unwrap_or(28);
    let types = windows::layer_types(c, model.layers)?;
    let on = c.flag("use_sliding_window")? == Some(true);
    let window = windows::window(c, Some(4096))?.filter(|_| on);
    windows::slide(model, window, |layer| match &types {
        Some(types) => types[layer as usize],
        None => layer as usize >= first,
    });
    Ok(())
}
