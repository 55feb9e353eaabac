//! Phi-3 (Abdin et al. 2024): a Llama whose matrices of queries, keys and values are one tensor, and those of gate and inner values another.

use std::sync::Arc;

use dunlin_kernels::RopeScaling;

use super::family::{Beside, Defaults, Family, Fused};
use super::qwen2::QWEN2;
use super::windows;
use crate::config::gguf_values::{Keys, ROPE_LONG, ROPE_SHORT};
use crate::config::json_section::Section;
use crate::config::{ModelConfig, json_rope};
use crate::error::ModelError;
use crate::spec::Projection::{Gate, Key, Query, Up, Value};

pub(super) const PHI3: Family = Family {
    title: "Phi-3",
    name: "phi3",
    class: "Phi3ForCausalLM",
    gguf_name: Some("phi3"),
    defaults: Defaults { positions: 4096, kv_heads: None, head_dim: None, rms_eps: 1e-5 },
    gguf_keys: &["rope.scaling.attn_factor"],
    rope_tensors: &[ROPE_LONG, ROPE_SHORT],
    fused: &[
        Fused { parts: &[Query, Key, Value], names: ["self_attn.qkv_proj.weight", "attn_qkv.weight"] },
        Fused { parts: &[Gate, Up], names: ["mlp.gate_up_proj.weight", "ffn_up.weight"] },
    ],
    rotary: json_rope::rotary,
    json,
    gguf,
    ..QWEN2
};

fn json(c: &Section<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    windows::no_bias(c)?;
    windows::layer_types(c, model.layers)?;
    windows::slide(model, windows::window(c, None)?, |_| true);
    Ok(())
}

fn gguf(keys: &Keys<'_>, beside: &Beside<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    let magnitude = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0) as f32;
    let divisors = |name| beside.rope.get(name).map(|values| values.iter().map(|v| f64::from(*v)).collect());
    let both: [Option<Arc<[f64]>>; 2] = [divisors(ROPE_SHORT), divisors(ROPE_LONG)];
    if let [Some(short), Some(long)] = both {
        let key = "rope.scaling.original_context_length";
        let original_context = keys.needed(key, keys.number(key)?)?;
        let by = if f64::from(model.context_length) > original_context { long } else { short };
        model.block.rotary.scaling = RopeScaling::Divided { by, magnitude };
    } else if magnitude != 1.0 || !beside.rope.is_empty() {
        let what = format!(
            "its rotary embedding is stretched, and it has not both of `{ROPE_SHORT}` and `{ROPE_LONG}`"
        );
        return Err(keys.refused(&what, "use an intact copy of it"));
    }
    windows::slide(model, windows::gguf_window(keys)?, |_| true);
    Ok(())
}
