//! Mistral (Jiang et al. 2023): a Llama, all of whose layers slide if it has a window.

use super::family::{Defaults, Family};
use super::llama::LLAMA;
use super::windows;
use crate::config::ModelConfig;
use crate::config::json_section::Section;
use crate::error::ModelError;

pub(super) const MISTRAL: Family = Family {
    title: "Mistral",
    name: "mistral",
    class: "MistralForCausalLM",
    gguf_name: None,
    defaults: Defaults { positions: 4096 * 32, kv_heads: Some(8), head_dim: None, rms_eps: 1e-6 },
    json,
    ..LLAMA
};

fn json(c: &Section<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    windows::no_bias(c)?;
    let window = windows::window(c, Some(4096))?;
    let types = windows::layer_types(c, model.layers)?;
    if window.is_some() && types.is_some_and(|types| types.contains(&false)) {
        return Err(c.refused(
            "`layer_types` has layers of `full_attention`, and `sliding_window` is for all",
            "remove the one that the model was not made with",
        ));
    }
    windows::slide(model, window, |_| true);
    Ok(())
}
