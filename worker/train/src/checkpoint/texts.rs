//! What a checkpoint has beside its weights, so that it is served as the model that it was made from: its tokenizer, the tokens that begin and
//! end sequences, its chat template.
//!
//! The tokenizer of bytes is a byte-level BPE with no merges: its 256 tokens are the bytes, and a token's number is its byte. Byte 0, which
//! ends documents, ends sequences.

use std::path::{Path, PathBuf};

use dunlin_model::source::{Folder, LocalFolder};
use dunlin_model::{ModelFile, file};
use serde_json::{Map, Value, json};

use super::error::CheckpointError;
use crate::config::{TokenizerConfig, TrainingConfig};
use crate::data::TextTokenizer;

/// How the model is used when nobody says otherwise, the ends of answers among it.
pub(super) const GENERATION: &str = "generation_config.json";
/// Names of files as transformers writes them, with the longest that is taken.
pub(super) const FILES: [(&str, u64); 7] = [
    ("tokenizer.json", 64 << 20),
    ("tokenizer_config.json", 4 << 20),
    ("special_tokens_map.json", 4 << 20),
    ("added_tokens.json", 4 << 20),
    ("chat_template.jinja", 1 << 20),
    ("chat_template.json", 4 << 20),
    (GENERATION, 1 << 20),
];
/// Fields of `config.json` that name tokens.
const SPECIAL: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Files of a model beside its weights, and what its `config.json` says of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    pub(super) files: Vec<(String, Vec<u8>)>,
    /// Fields of `config.json`.
    pub(super) special: Map<String, Value>,
}

impl Texts {
    /// Those of a run. `model`: what training goes on from, or what an adapter is trained over; `tokenizer`: what makes the tokens.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn open(
        config: &TrainingConfig,
        model: Option<&ModelFile>,
        tokenizer: &TextTokenizer,
    ) -> Result<Self, CheckpointError> {
        let own = model.and_then(ModelFile::folder);
        match config.tokenizer() {
            TokenizerConfig::Model => match own {
                Some(folder) => Self::of_folder(folder, true, tokenizer),
                // A GGUF file is all in one; only adapters are trained over it.
                None => Ok(Self::ending_with(tokenizer)),
            },
            TokenizerConfig::Bytes => match own {
                Some(folder) if folder.open("tokenizer.json")?.is_some() => {
                    Self::of_folder(folder, true, tokenizer)
                }
                _ => Ok(Self::of_bytes()),
            },
            TokenizerConfig::Path(path) if path.extension().is_some_and(|e| e == "gguf") => {
                Ok(Self::ending_with(tokenizer))
            }
            TokenizerConfig::Path(path) => {
                let folder =
                    if path.is_dir() { path } else { path.parent().map(Path::to_owned).unwrap_or_default() };
                let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
                Self::of_folder(&LocalFolder(folder), false, tokenizer)
            }
        }
    }

    /// Those of the tokens that are bytes.
    #[must_use]
    pub fn of_bytes() -> Self {
        let text = |name: &str, value: &Value| (name.to_owned(), format!("{value:#}\n").into_bytes());
        let config =
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
        let files = vec![text("tokenizer.json", &bytes_tokenizer()), text("tokenizer_config.json", &config)];
        Self { files, ..Self::ending_with(&TextTokenizer::Bytes) }
    }

    fn ending_with(tokenizer: &TextTokenizer) -> Self {
        let special = [("bos_token_id", Value::Null), ("eos_token_id", tokenizer.end_of_document().into())];
        Self {
            files: Vec::new(),
            special: special.map(|(key, id)| (key.to_owned(), id)).into_iter().collect(),
        }
    }

    /// `model`: the folder is that of the model, not of a tokenizer alone.
    fn of_folder(
        folder: &dyn Folder,
        model: bool,
        tokenizer: &TextTokenizer,
    ) -> Result<Self, CheckpointError> {
        let mut texts = Self::ending_with(tokenizer);
        for (name, bytes_max) in FILES {
            if name == GENERATION && !model {
                continue;
            }
            if let Some(bytes) = file::file_if_there(folder, name, bytes_max)? {
                texts.files.push((name.to_owned(), bytes));
            }
        }
        if let Some(bytes) = file::file_if_there(folder, "config.json", 4 << 20)? {
            let config: Value = serde_json::from_slice(&bytes).map_err(|e| {
                CheckpointError::Mismatch(format!("config.json of {} is no JSON: {e}", folder.describe()))
            })?;
            for key in SPECIAL {
                if let Some(ids) = config.get(key) {
                    texts.special.insert(key.to_owned(), ids.clone());
                }
            }
        }
        Ok(texts)
    }
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

#[cfg(test)]
mod tests {
    use dunlin_model::random_model::{self, RandomModelSpec};

    use super::*;
    use crate::testing::Folder as TestFolder;

    /// A run that goes on from `model`, with a tokenizer as said.
    fn config(model: &Path, tokenizer: &Value) -> TrainingConfig {
        let mut json = json!({
            "model": {"checkpoint": model}, "data": {"text": {"path": "a"}},
            "sequenceLength": 8, "globalBatch": 6, "microbatch": 2, "steps": 100,
            "optimizer": {"kind": "AdamW", "learningRate": 0.1},
        });
        if !tokenizer.is_null() {
            json["data"]["tokenizer"] = tokenizer.clone();
        }
        TrainingConfig::from_json(&json.to_string()).unwrap()
    }

    fn texts(model: &Path, tokenizer: &Value) -> Texts {
        let config = config(model, tokenizer);
        let file = ModelFile::open_path(model).unwrap();
        let tokenizer = TextTokenizer::open(&config, Some(&file)).unwrap();
        Texts::open(&config, Some(&file), &tokenizer).unwrap()
    }

    #[test]
    fn what_makes_a_chat_model_one_stays_with_it() {
        let folder = TestFolder::new();
        let spec =
            RandomModelSpec { layers: 1, hidden: 16, heads: 2, kv_heads: 1, ffn: 16, vocab: 300, seed: 1 };
        random_model::write(folder.path(), &spec).unwrap();
        let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        let mut model_config: Value = serde_json::from_str(&text).unwrap();
        (model_config["eos_token_id"], model_config["pad_token_id"]) = (json!([299, 7]), json!(3));
        folder.file("config.json", model_config.to_string().as_bytes());
        folder.file("chat_template.jinja", b"{{ bos_token }}");
        folder.file("tokenizer_config.json", b"{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\"}");
        folder.file("generation_config.json", b"{\"eos_token_id\": [299, 7]}");
        folder.file("README.md", b"not this");
        let special = json!({"bos_token_id": 298, "eos_token_id": [299, 7], "pad_token_id": 3});
        let names = |texts: &Texts| texts.files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let tokens = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
        for said in [Value::Null, json!("Model"), json!({"path": folder.path()})] {
            let texts = texts(folder.path(), &said);
            assert_eq!(json!(texts.special), special);
            assert_eq!(names(&texts), [&tokens[..], &["generation_config.json"]].concat());
            assert_eq!(texts.files[2].1, b"{{ bos_token }}");
        }
        // Of a tokenizer that lies elsewhere only what belongs to tokens is taken.
        let other = TestFolder::new();
        random_model::write(other.path(), &spec).unwrap();
        let elsewhere = texts(other.path(), &json!({"path": folder.path().join("tokenizer.json")}));
        assert_eq!(names(&elsewhere), tokens);
        assert_eq!(json!(elsewhere.special), special);
    }
}
