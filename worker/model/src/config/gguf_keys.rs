//! The keys of an architecture in a GGUF file: those that are honoured, those that change no number, and those that must say what is so here
//! anyway. Any other key of the architecture could change numbers. Keys of other beginnings (`general.`, `tokenizer.`, `quantize.`) do not say
//! how a model computes.

use super::gguf_values::Keys;
use crate::error::{ModelError, excerpt};
use crate::gguf::Value;

/// Read by [`super::gguf`] and all families.
const HONOURED: [&str; 16] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
];

const WITHOUT_EFFECT: [&str; 3] = [
    "rope.scaling.finetuned",
    // Names for one and the same layout of the file.
    "tensor_data_layout",
    // The embedding has as many rows as there are tokens.
    "vocab_size",
];

/// Every key of the architecture has its place; `of_family` are those that only this family reads.
///
/// # Errors
/// With the first that has none.
pub(super) fn check(keys: &Keys<'_>, head_dim: usize, of_family: &[&str]) -> Result<(), ModelError> {
    // llama.cpp takes 0 for "not set".
    let neutral: [(&str, &[f64]); 13] = [
        ("attention.causal", &[1.0]),
        ("attention.clamp_kqv", &[0.0]),
        ("attention.max_alibi_bias", &[0.0]),
        ("attention.scale", &[0.0, 1.0 / (head_dim as f64).sqrt()]),
        ("attention.value_length", &[head_dim as f64]),
        ("embedding_scale", &[0.0, 1.0]),
        ("expert_used_count", &[0.0]),
        ("logit_scale", &[0.0, 1.0]),
        ("pooling_type", &[0.0]),
        ("residual_scale", &[0.0, 1.0]),
        ("rope.scaling.attn_factor", &[1.0]),
        ("rope.scaling.yarn_log_multiplier", &[0.0]),
        ("use_parallel_residual", &[0.0]),
    ];
    let prefix = format!("{}.", keys.architecture);
    for (name, value) in keys.values.range(prefix.clone()..) {
        let Some(key) = name.strip_prefix(&prefix) else { break };
        if HONOURED.contains(&key) || of_family.contains(&key) || WITHOUT_EFFECT.contains(&key) {
            continue;
        }
        let Some((_, neutral)) = neutral.iter().find(|(name, _)| *name == key) else {
            return Err(keys.refused(
                &format!("`{}` is not known here, and could change what the model computes", excerpt(name)),
                "if it does not, remove it with gguf-py's `gguf_new_metadata.py --remove-metadata`",
            ));
        };
        // f32 in the file.
        let same = |found: f64| neutral.iter().any(|wanted| (found - wanted).abs() <= 1e-6 * wanted.abs());
        if !value.as_f64().is_some_and(same) {
            let found = match value {
                Value::Integer(number) => number.to_string(),
                // As most are stored: 0.1 and not 0.10000000149011612.
                Value::Float(number) => (*number as f32).to_string(),
                Value::Text(text) => format!("\"{}\"", excerpt(text)),
                Value::Texts(_) | Value::Numbers(_) => "a list".to_owned(),
            };
            let wanted: Vec<String> = neutral.iter().map(f64::to_string).collect();
            let remedy = format!("only models where it is {} run here", wanted.join(" or "));
            return Err(keys.refused(&format!("`{name}` is {found}"), &remedy));
        }
    }
    Ok(())
}
