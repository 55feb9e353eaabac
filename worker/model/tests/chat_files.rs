//! What a folder in Hugging Face's form says of tokens and templates, read as transformers reads it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use dunlin_model::ModelFile;
use dunlin_model::random_model::{self, RandomModelSpec};
use serde_json::{Value, json};

/// A model of 300 tokens, 298 of which begins and 299 of which ends sequences, as `config.json` says.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over says what went wrong with its removal.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new(files: &[(&str, Value)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = Self(std::env::temp_dir().join(format!("dunlin-chat-{}-{count}", std::process::id())));
        let spec =
            RandomModelSpec { layers: 1, hidden: 16, heads: 2, kv_heads: 1, ffn: 16, vocab: 300, seed: 1 };
        random_model::write(&folder.0, &spec).unwrap();
        for (name, value) in files {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            std::fs::write(folder.0.join(name), text).unwrap();
        }
        folder
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn open(&self) -> ModelFile {
        ModelFile::open_path(self.path()).unwrap()
    }
}

#[test]
fn answers_end_with_what_generation_config_says_too() {
    for (generation, ends) in [
        (json!({}), vec![299]),
        (json!({"eos_token_id": 7}), vec![7, 299]),
        (json!({"eos_token_id": [299, 7, 8]}), vec![7, 8, 299]),
        (json!({"eos_token_id": Value::Null}), vec![299]),
    ] {
        let folder = Folder::new(&[("generation_config.json", generation)]);
        let tokenizer = folder.open().tokenizer().unwrap();
        assert_eq!(tokenizer.eos(), ends);
        // Data that was tokenised before such a file was read stays what it is.
        assert_eq!(tokenizer.document_end(), Some(299));
    }
    let broken = Folder::new(&[("generation_config.json", json!("{"))]);
    let error = broken.open().tokenizer().err().unwrap().to_string();
    assert!(error.contains("generation_config.json"), "{error}");
}

#[test]
fn templates_call_the_beginning_and_the_end_what_tokenizer_config_calls_them() {
    let texts = |files: &[(&str, Value)]| {
        let tokenizer = Folder::new(files).open().tokenizer().unwrap();
        (tokenizer.bos_text(), tokenizer.eos_text())
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(texts(&[]), (some("<s>"), some("</s>")));
    let named =
        |bos: Value, eos: Value| [("tokenizer_config.json", json!({"bos_token": bos, "eos_token": eos}))];
    assert_eq!(texts(&named(json!("</s>"), json!("<s>"))), (some("</s>"), some("<s>")));
    let object = json!({"content": "</s>", "special": true});
    assert_eq!(texts(&named(object, json!("a"))), (some("</s>"), some("a")));
    // None is none, as for Qwen2, whatever config.json says.
    assert_eq!(texts(&named(Value::Null, Value::Null)).0, None);
}

#[test]
fn a_template_is_where_transformers_looks_for_it() {
    let template = |files: &[(&str, Value)]| Folder::new(files).open().chat_template().unwrap();
    let in_config = |template: Value| ("tokenizer_config.json", json!({"chat_template": template}));
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(template(&[]), None);
    assert_eq!(template(&[in_config(json!("b"))]), some("b"));
    assert_eq!(template(&[("chat_template.jinja", json!("a"))]), some("a"));
    assert_eq!(template(&[("chat_template.jinja", json!("a")), in_config(json!("b"))]), some("a"));
    let named = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    assert_eq!(template(&[in_config(named)]), some("d"));
    let broken = Folder::new(&[]);
    std::fs::write(broken.path().join("chat_template.jinja"), b"\xff").unwrap();
    let error = broken.open().chat_template().unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}
