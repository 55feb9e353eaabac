//! Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024), and the many that are made like it.

use dunlin_kernels::RopeLayout;

use super::family::{Beside, Defaults, Family};
use super::windows;
use crate::config::gguf_values::{Keys, ROPE_DIVISORS};
use crate::config::json_section::Section;
use crate::config::{ModelConfig, json_rope};
use crate::error::ModelError;
use crate::spec::Activation;

pub(super) const LLAMA: Family = Family {
    title: "Llama",
    name: "llama",
    class: "LlamaForCausalLM",
    gguf_name: Some("llama"),
    defaults: Defaults { positions: 2048, kv_heads: None, head_dim: None, rms_eps: 1e-6 },
    json_keys: &[],
    gguf_keys: &[],
    activation: Activation::Silu,
    activation_names: &[],
    gguf_layout: RopeLayout::Interleaved,
    rope_tensors: &[ROPE_DIVISORS],
    names: &[],
    fused: &[],
    untrained: None,
    rotary: json_rope::rotary,
    json,
    gguf,
};

fn json(c: &Section<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    windows::no_bias(c)?;
    windows::layer_types(c, model.layers)?;
    // Its class knows no window; who wrote one down may have meant any layers.
    let on = c.flag("use_sliding_window")? != Some(false);
    windows::stay_within(model, windows::window(c, None)?.filter(|_| on));
    Ok(())
}

/// Mistral's files have this architecture, too.
fn gguf(keys: &Keys<'_>, beside: &Beside<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    let is_bias =
        |name: &str| ["attn_q.bias", "attn_k.bias", "attn_v.bias"].iter().any(|end| name.ends_with(end));
    // Some have them, and say so by having them.
    model.block.attention.bias = beside.tensors.keys().any(|name| is_bias(name));
    windows::slide(model, windows::gguf_window(keys)?, |_| true);
    Ok(())
}
