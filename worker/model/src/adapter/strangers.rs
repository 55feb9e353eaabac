//! Why a tensor of an adapter has no place in a model.

use super::modules;
use crate::config::ModelConfig;
use crate::error::excerpt;

/// What the names of PEFT's tensors begin with, for a model with a head.
pub(super) const PREFIX: &str = "base_model.model.";

/// What is known of `name`, a tensor that nobody asked for, and what to do.
pub(super) fn why(name: &str, config: &ModelConfig) -> String {
    let saved = "save it with PEFT's `save_pretrained`";
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return format!("names of adapters begin with `{PREFIX}model.layers.`; {saved}");
    };
    if ["embed_tokens", "lm_head", "lora_embedding", "norm"].iter().any(|part| rest.contains(part)) {
        return "adapters of embeddings, norms and the output matrix are not known here".to_owned();
    }
    let Some((layer, module)) = rest.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'))
    else {
        return format!(
            "names of adapters of a model with a head begin with `{PREFIX}model.layers.`; {saved}"
        );
    };
    if layer.parse::<u32>().is_ok_and(|layer| layer >= config.layers) {
        return format!("the model has {} layers, the adapter was made for one with more", config.layers);
    }
    if module.ends_with(".default.weight") {
        return format!("it has the name of a model in training; {saved}");
    }
    let known: Vec<&str> = modules::of(config).map(|module| module.name).collect();
    match known.iter().find(|known| module.starts_with(*known)) {
        Some(known) => format!(
            "what is known beside `{}` is a pair of `lora_A.weight` and `lora_B.weight`",
            excerpt(known)
        ),
        None => format!("adapters are known beside {}", known.join(", ")),
    }
}
