//! What makes a checkpoint a model that is served: `config.json` and a tokenizer.
//!
//! The tokenizer of bytes is a byte-level BPE with no merges: its 256 tokens are the bytes, and a token's number is its byte. Byte 0, which
//! ends documents, ends sequences.

use dunlin_model::ModelConfig;
use serde_json::{Map, Value, json};

use super::CheckpointError;
use crate::data::TextTokenizer;

/// Names and bytes of the files beside the weights, but for the index.
///
/// # Errors
/// When a file of the tokenizer can no longer be read.
pub fn files(
    config: &ModelConfig,
    tokenizer: &TextTokenizer,
) -> Result<Vec<(String, Vec<u8>)>, CheckpointError> {
    let text = |name: &str, value: &Value| (name.to_owned(), format!("{value:#}\n").into_bytes());
    let mut out = vec![text("config.json", &config_json(config, tokenizer.end_of_document()))];
    match tokenizer {
        TextTokenizer::Bytes => {
            out.push(text("tokenizer.json", &bytes_tokenizer()));
            let extra =
                json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
            out.push(text("tokenizer_config.json", &extra));
        }
        TextTokenizer::Model { files, .. } => {
            for (path, name) in files.iter().zip(["tokenizer.json", "tokenizer_config.json"]) {
                let bytes = std::fs::read(path)
                    .map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
                out.push((name.to_owned(), bytes));
            }
        }
    }
    Ok(out)
}

/// Hugging Face's `config.json`, for weights of f32, with the token that ends a document.
#[must_use]
pub fn config_json(config: &ModelConfig, eos: Option<u32>) -> Value {
    let mut out = dunlin_model::training::export::config_json(config);
    out["eos_token_id"] = eos.into();
    out["bos_token_id"] = Value::Null;
    out
}

/// `tokenizer.json` of the tokens that are bytes.
#[must_use]
pub fn bytes_tokenizer() -> Value {
    // GPT-2's printable stand-ins: printable bytes stand for themselves, the others for U+0100 on.
    let mut next = 0xff;
    let vocab: Map<String, Value> = (0..=255u8)
        .map(|byte| {
            let code = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
                _ => {
                    next += 1;
                    next
                }
            };
            (char::from_u32(code).map(String::from).unwrap_or_default(), json!(byte))
        })
        .collect();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}
