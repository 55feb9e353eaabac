//! Seed-OSS (ByteDance Seed 2025): a Llama with biases of queries, keys and values, and heads of their own width.

use super::family::{Defaults, Family};
use super::qwen2::QWEN2;
use super::windows;
use crate::config::ModelConfig;
use crate::config::json_section::Section;
use crate::error::ModelError;

pub(super) const SEED_OSS: Family = Family {
    title: "Seed-OSS",
    name: "seed_oss",
    class: "SeedOssForCausalLM",
    // Its text is split in a way that is not known here.
    gguf_name: None,
    defaults: Defaults { positions: 524_288, kv_heads: Some(8), head_dim: Some(128), rms_eps: 1e-6 },
    json_keys: &["attention_out_bias"],
    untrained: Some("has a config.json that is not written here"),
    json,
    ..QWEN2
};

fn json(c: &Section<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    if c.flag("attention_out_bias")? == Some(true) {
        let what = "`attention_out_bias` is true";
        return Err(c.refused(what, "models whose output matrix has no bias run here"));
    }
    model.block.attention.bias = c.flag("attention_bias")?.unwrap_or(true);
    windows::layer_types(c, model.layers)?;
    windows::stay_within(model, windows::window(c, None)?);
    Ok(())
}
