//! Gemma (Gemma Team 2024): a Llama with heads of their own width, GELU and a scaled embedding.

use super::family::{Defaults, Family};
use super::qwen2::QWEN2;
use super::windows;
use crate::config::ModelConfig;
use crate::spec::Activation;

pub(super) const GEMMA: Family = Family {
    title: "Gemma",
    name: "gemma",
    class: "GemmaForCausalLM",
    gguf_name: Some("gemma"),
    defaults: Defaults { positions: 8192, kv_heads: Some(16), head_dim: Some(256), rms_eps: 1e-6 },
    json_keys: &["hidden_activation"],
    activation: Activation::GeluTanh,
    // As its first files call it.
    activation_names: &["gelu"],
    json: |c, model| {
        windows::no_bias(c)?;
        windows::layer_types(c, model.layers)?;
        windows::stay_within(model, windows::window(c, None)?);
        model.block.norm.plus_one = true;
        scale_embedding(model);
        Ok(())
    },
    gguf: |keys, _, model| {
        windows::stay_within(model, windows::gguf_window(keys)?);
        scale_embedding(model);
        Ok(())
    },
    ..QWEN2
};

fn scale_embedding(model: &mut ModelConfig) {
    model.embedding_scale = Some((model.hidden as f32).sqrt());
}
