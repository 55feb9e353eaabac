//! A model's text for tests.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use dunlin_model::ModelFile;
use dunlin_model::random_model::{self, RandomModelSpec};

use crate::model_text::{ModelText, ServedAdapter};
use crate::template::ChatTemplate;

/// Tokens of the vocabulary.
pub const VOCAB: u32 = 300;

/// The model `base` for sequences of 20, with the adapters `lora` and, with three rows before every sequence, `prompt`.
pub fn model() -> ModelText {
    let folder = tempfile::tempdir().unwrap();
    let spec = RandomModelSpec {
        layers: 1,
        hidden: 8,
        heads: 1,
        kv_heads: 1,
        ffn: 8,
        vocab: VOCAB as usize,
        seed: 1,
    };
    random_model::write(folder.path(), &spec).unwrap();
    let file = ModelFile::open_path(folder.path()).unwrap();
    let adapter = |name: &str, rows| ServedAdapter { name: name.into(), prompt: VOCAB..VOCAB + rows };
    ModelText {
        name: "base".to_owned(),
        adapters: vec![adapter("lora", 0), adapter("prompt", 3)],
        tokenizer: file.tokenizer().unwrap(),
        template: Some(ChatTemplate::new(&file.chat_template().unwrap().unwrap(), BTreeMap::new()).unwrap()),
        vocab: VOCAB,
        max_len: 20,
        windows: dunlin_protocol::Windows::default(),
        since_s: 7,
    }
}
