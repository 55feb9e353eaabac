//! An ordinary Hugging Face folder of a trained model.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use dunlin_kernels::RopeScaling;
use serde_json::{Value, json};

use super::layout::ParameterTensor;
use crate::config::ModelConfig;
use crate::families::named;
use crate::safetensors::f32_header;
use crate::spec::BlockSpec;

/// What config.json says of a model; [`crate::ModelFile`] and transformers read it. The identifiers of special tokens are the tokenizer's
/// matter, and not in it.
#[must_use]
pub fn config_json(config: &ModelConfig) -> Value {
    let c = config;
    let (family, BlockSpec { norm, rotary, attention, mlp, .. }) = (named(&c.architecture), &c.block);
    let window = c.blocks().find_map(|block| block.attention.window);
    let mut out = json!({
        "architectures": [family.class], "model_type": family.name, "hidden_act": "silu",
        "hidden_size": c.hidden, "intermediate_size": mlp.width, "num_hidden_layers": c.layers,
        "num_attention_heads": attention.heads, "num_key_value_heads": attention.kv_heads, "head_dim": attention.head_dim,
        "vocab_size": c.vocab, "max_position_embeddings": c.context_length,
        "rms_norm_eps": shortest(norm.eps), "rope_theta": rotary.base, "rope_scaling": rope_scaling(&rotary.scaling),
        "tie_word_embeddings": c.tied, "torch_dtype": "float32",
        "attention_bias": false, "mlp_bias": false, "sliding_window": window, "use_sliding_window": window.is_some(),
    });
    if window.is_some() {
        let kind = |layer| match c.block(layer).attention.window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        out["layer_types"] = (0..c.layers).map(kind).collect();
    }
    out
}

/// 1e-5 and not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn rope_scaling(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear(factor) => json!({"rope_type": "linear", "type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context,
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, magnitude } => json!({
            "rope_type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": truncate,
            "original_max_position_embeddings": original_context, "attention_factor": shortest(*magnitude),
        }),
        // What transformers has for a divisor of each frequency.
        RopeScaling::Divided { by, magnitude } => json!({
            "rope_type": "longrope", "short_factor": &by[..], "long_factor": &by[..], "attention_factor": shortest(*magnitude),
        }),
    }
}

/// Writes a safetensors file of f32: the tensors in order, their values from `parts`, which together are as long.
///
/// # Errors
/// When it cannot be written, or the parts are too short or too long.
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: &[&ParameterTensor],
    parts: impl IntoIterator<Item = &'a [f32]>,
) -> io::Result<()> {
    let shapes: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    let mut left: usize = tensors.iter().map(|tensor| tensor.len()).sum();
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&f32_header(&shapes))?;
    for part in parts {
        left = left.checked_sub(part.len()).ok_or_else(|| wrong("more values than the tensors have"))?;
        for values in part.chunks(1 << 14) {
            file.write_all(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
        }
    }
    if left > 0 {
        return Err(wrong("fewer values than the tensors have"));
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Writes config.json into `folder`.
///
/// # Errors
/// When it cannot be written.
pub fn write_config(folder: &Path, config: &ModelConfig) -> io::Result<()> {
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config_json(config))?)
}
