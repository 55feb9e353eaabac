//! The keys of PEFT's `adapter_config.json`: those that are honoured, those that change no number, and those that must say nothing here. Any
//! other key could change numbers.

use serde_json::Value;

use crate::error::excerpt;

/// Of adapters of every kind: read by [`super::peft`], or of no effect.
const OF_ALL: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
    // The tensors say it, and every one of them must have a place.
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
];

const OF_LORA: [&str; 15] = [
    "init_lora_weights",
    "lora_alpha",
    "r",
    "rank_pattern",
    "use_rslora",
    // The tensors say it.
    "target_parameters",
    // For training, or for an `init_lora_weights` that is refused.
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    // Counts only with `use_qalora`.
    "qalora_group_size",
];

const OF_PROMPTS: [&str; 8] = [
    "num_virtual_tokens",
    // Of the model.
    "num_attention_heads",
    "num_layers",
    "token_dim",
    // For training.
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
];

/// `init_lora_weights` that leave the model as it is. The others (`pissa`, `olora`, `corda`, `loftq`, ...) take something out of its weights, which
/// PEFT does again whenever such an adapter is loaded.
const INITIALISATIONS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Every key of `json` has its place.
///
/// # Errors
/// With the first that has none, as the rest of a sentence about the adapter.
pub(super) fn check(json: &Value, lora: bool) -> Result<(), String> {
    let Some(map) = json.as_object() else { return Err("its configuration is not an object".to_owned()) };
    let own: &[&str] = if lora { &OF_LORA } else { &OF_PROMPTS };
    for (key, value) in map.iter().filter(|(_, value)| is_set(value)) {
        let key = key.as_str();
        // PEFT writes 1 for models that are a decoder and nothing else.
        let one = !lora && key == "num_transformer_submodules" && *value == 1;
        if !OF_ALL.contains(&key) && !own.contains(&key) && !one {
            return Err(format!("it has `{}`, which is not known here", excerpt(key)));
        }
        let leaves_the_model = match value {
            Value::String(how) => INITIALISATIONS.contains(&how.as_str()),
            value => value.is_boolean(),
        };
        if key == "init_lora_weights" && !leaves_the_model {
            return Err(format!(
                "its `init_lora_weights` is {}, which changes the weights of the model: save it as an ordinary LoRA with \
                 PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`",
                excerpt(&value.to_string())
            ));
        }
    }
    Ok(())
}

/// What PEFT writes where nothing is asked for: null, false, `"none"`, an empty list.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => text != "none",
        _ => true,
    }
}
