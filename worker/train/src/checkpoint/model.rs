//! What makes a checkpoint a model that is served: `config.json` beside the weights, and the texts.

use dunlin_model::ModelConfig;
use serde_json::{Map, Value};

use super::texts::Texts;

/// Names and bytes of the files beside the weights, but for the index.
#[must_use]
pub fn files(config: &ModelConfig, texts: &Texts) -> Vec<(String, Vec<u8>)> {
    let json = format!("{:#}\n", config_json(config, &texts.special));
    let mut files = vec![("config.json".to_owned(), json.into_bytes())];
    files.extend(texts.files.iter().cloned());
    files
}

/// Hugging Face's `config.json`, for weights of f32, with these fields of tokens.
#[must_use]
pub fn config_json(config: &ModelConfig, special: &Map<String, Value>) -> Value {
    let mut out = dunlin_model::training::export::config_json(config);
    if let Some(fields) = out.as_object_mut() {
        fields.extend(special.clone());
    }
    out
}
