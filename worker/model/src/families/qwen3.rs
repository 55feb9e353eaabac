//! Qwen3 (Yang et al. 2025): as Qwen2, with norms of the heads of queries and keys in place of biases.

use super::family::{Beside, Defaults, Family};
use super::qwen2::{QWEN2, sliding_layers};
use super::windows;
use crate::config::ModelConfig;
use crate::config::gguf_values::Keys;
use crate::config::json_section::Section;
use crate::error::ModelError;

pub(super) const QWEN3: Family = Family {
    title: "Qwen3",
    name: "qwen3",
    class: "Qwen3ForCausalLM",
    gguf_name: Some("qwen3"),
    defaults: Defaults { positions: 32768, kv_heads: Some(32), head_dim: Some(128), rms_eps: 1e-6 },
    json,
    gguf,
    ..QWEN2
};

fn json(c: &Section<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    windows::no_bias(c)?;
    model.block.attention.qk_norm = true;
    sliding_layers(c, model)
}

fn gguf(keys: &Keys<'_>, _: &Beside<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    model.block.attention.qk_norm = true;
    windows::stay_within(model, windows::gguf_window(keys)?);
    Ok(())
}
