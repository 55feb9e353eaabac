//! The keys of config.json: those that are honoured, those that change no number, and those that must say what is so here anyway. Any other
//! key could change numbers.

use serde_json::{Value, json};

use super::json_section::Section;
use crate::error::{ModelError, excerpt};

/// Read by [`super::json`], [`super::json_rope`] and all families.
const HONOURED: [&str; 22] = [
    "architectures",
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// What no number depends on, and why not.
const WITHOUT_EFFECT: [(&str, &[&str]); 9] = [
    (
        "where the model comes from, and who wrote it",
        &[
            "_commit_hash",
            "_name_or_path",
            "is_llama_config",
            "transformers.js_config",
            "transformers_version",
            "transformers_weights",
            "unsloth_fixed",
            "unsloth_version",
        ],
    ),
    ("code of the folder, which transformers runs only if it is told to", &["auto_map", "custom_pipelines"]),
    ("the tensors say in what type they are", &["dtype", "torch_dtype", "use_bfloat16"]),
    (
        "how others compute the same, and what their functions return",
        &[
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_attn_implementation_internal",
            "_flash_attn_2_enabled",
            "_use_flash_attention_2",
            "attn_implementation",
            "cache_implementation",
            "chunk_size_feed_forward",
            "flash_attn",
            "flash_attention",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "pretraining_tp",
            "return_dict",
            "return_dict_in_generate",
            "tf_legacy_loss",
            "torchscript",
            "use_cache",
            "use_flash_attention",
            "use_flash_attention_2",
            "use_flash_attn",
            "use_return_dict",
        ],
    ),
    (
        "for training only",
        &[
            "attention_dropout",
            "attention_dropout_prob",
            "attention_probs_dropout_prob",
            "attn_dropout",
            "attn_pdrop",
            "dropout",
            "embd_pdrop",
            "embedding_dropout",
            "gradient_checkpointing",
            "hidden_dropout",
            "hidden_dropout_prob",
            "initializer_factor",
            "initializer_range",
            "label_smoothing",
            "loss_type",
            "resid_pdrop",
            "residual_dropout",
            "use_gradient_checkpointing",
        ],
    ),
    (
        "the tokenizer looks at these, or has its own",
        &[
            "additional_special_tokens",
            "bos_token",
            "bos_token_id",
            "chat_template",
            "cls_token_id",
            "decoder_start_token_id",
            "eos_token",
            "eos_token_id",
            "mask_token_id",
            "model_max_length",
            "pad_token",
            "pad_token_id",
            "sep_token_id",
            "tokenizer_class",
            "unk_token",
            "unk_token_id",
        ],
    ),
    (
        "every request says how it is sampled",
        &[
            "bad_words_ids",
            "begin_suppress_tokens",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "length_penalty",
            "max_length",
            "max_new_tokens",
            "min_length",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "remove_invalid_values",
            "repetition_penalty",
            "suppress_tokens",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
        ],
    ),
    (
        "for other tasks than the next token",
        &[
            "classifier_dropout",
            "finetuning_task",
            "id2label",
            "label2id",
            "num_labels",
            "prefix",
            "problem_type",
            "task_specific_params",
        ],
    ),
    // `max_position_embeddings` is what counts.
    ("said again in other words", &["is_decoder", "max_seq_len", "max_sequence_length", "seq_length"]),
];

/// Keys of relatives of these families, and the value with which they do nothing.
fn neutral() -> [(&'static str, Value); 33] {
    let [no, yes, one, none] = [json!(false), json!(true), json!(1.0), json!(0)];
    [
        ("add_cross_attention", no.clone()),
        ("alibi", no.clone()),
        ("attention_output_bias", no.clone()),
        ("attn_bias", no.clone()),
        ("attn_temperature_tuning", no.clone()),
        ("bias", no.clone()),
        ("embedding_multiplier", one.clone()),
        ("is_causal", yes),
        ("is_encoder_decoder", no.clone()),
        ("logit_scale", one.clone()),
        ("logits_scaling", one.clone()),
        ("mlp_bias", no.clone()),
        ("n_routed_experts", none.clone()),
        ("num_experts", none.clone()),
        ("num_experts_per_tok", none.clone()),
        ("num_local_experts", none.clone()),
        ("parallel_attn", no.clone()),
        ("partial_rotary_factor", one.clone()),
        ("pruned_heads", json!({})),
        ("qk_layernorm", no.clone()),
        ("qk_norm", no.clone()),
        ("residual_multiplier", one.clone()),
        ("rope_interleaved", no.clone()),
        ("rope_pct", one.clone()),
        ("rotary_pct", one.clone()),
        ("scale_emb", one),
        ("scale_embedding", no.clone()),
        ("tie_encoder_decoder", no.clone()),
        ("use_bias", no.clone()),
        ("use_bidirectional_attention", no.clone()),
        ("use_mrope", no.clone()),
        ("use_parallel_residual", no.clone()),
        ("use_qk_norm", no),
    ]
}

/// Every key has its place; `of_family` are those that only this family reads.
///
/// # Errors
/// With the first that has none.
pub(super) fn check(c: &Section<'_>, of_family: &[&str]) -> Result<(), ModelError> {
    quantisation(c)?;
    let neutral = neutral();
    // Who sets a key to null asks for nothing.
    for (key, value) in c.map.iter().filter(|(_, value)| !value.is_null()) {
        let key = key.as_str();
        let honoured = HONOURED.contains(&key) || of_family.contains(&key);
        let known = honoured || WITHOUT_EFFECT.iter().any(|(_, keys)| keys.contains(&key));
        match neutral.iter().find(|(name, _)| *name == key) {
            _ if known => {}
            Some((_, neutral)) if same(neutral, value) => {}
            Some((_, neutral)) => {
                let found = format!("`{key}` is {}", excerpt(&value.to_string()));
                return Err(c.refused(&found, &format!("only models where it is {neutral} run here")));
            }
            None => return Err(c.unknown(key)),
        }
    }
    Ok(())
}

/// 1 and 1.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// Weights that are quantised in another way than GGUF's.
fn quantisation(c: &Section<'_>) -> Result<(), ModelError> {
    let Some(how) = c.get("quantization_config") else { return Ok(()) };
    let method = how["quant_method"].as_str().unwrap_or("a method that is not named");
    Err(c.refused(
        &format!("`quantization_config` says that the weights are quantised with {}", excerpt(method)),
        "use the model in F32, F16 or BF16, or a quantised GGUF file of it",
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{HONOURED, WITHOUT_EFFECT, neutral};

    #[test]
    fn no_key_is_in_two_lists() {
        let listed = WITHOUT_EFFECT.iter().flat_map(|(_, keys)| keys.iter().copied());
        let keys: Vec<&str> =
            HONOURED.into_iter().chain(listed).chain(neutral().iter().map(|(key, _)| *key)).collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    }
}
