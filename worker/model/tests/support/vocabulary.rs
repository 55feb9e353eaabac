//! The vocabularies of `tokenizers`, which its generate.py wrote.

use serde_json::Value;

use super::gguf::{ARRAY, F32, Gguf, array};

/// GGUF's number for i32.
const I32: u32 = 5;

pub fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/tokenizers/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn texts(json: &Value) -> Vec<String> {
    json.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

pub fn numbers(json: &Value) -> Vec<f64> {
    json.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Gives a file a tokenizer: `llama`, or byte-level BPE split as `pre` says. Returns the number of its tokens.
pub fn add(file: &mut Gguf, pre: Option<&str>) -> u64 {
    let json = fixture(if pre.is_some() { "byte_level" } else { "sentence_piece" });
    let tokens = texts(&json["tokens"]);
    let count = tokens.len() as u64;
    file.set_texts("tokenizer.ggml.tokens", &tokens);
    if let Some(pre) = pre {
        file.set_text("tokenizer.ggml.model", "gpt2").set_text("tokenizer.ggml.pre", pre);
        file.set_texts("tokenizer.ggml.merges", &texts(&json["merges"]));
    } else {
        let scores: Vec<u8> =
            numbers(&json["scores"]).iter().flat_map(|s| (*s as f32).to_le_bytes()).collect();
        let kinds: Vec<u8> = numbers(&json["kinds"]).iter().flat_map(|k| (*k as i32).to_le_bytes()).collect();
        file.set_text("tokenizer.ggml.model", "llama");
        file.set("tokenizer.ggml.scores", ARRAY, array(F32, count, &scores));
        file.set("tokenizer.ggml.token_type", ARRAY, array(I32, count, &kinds));
    }
    count
}
