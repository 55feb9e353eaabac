//! What a folder in Hugging Face's form says of tokens and templates, read as transformers reads it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use dunlin_model::random_model::{self, RandomModelSpec};
use dunlin_model::{ModelFile, Tokenizer};
use serde_json::{Value, json};

/// The token that is a space.
const SPACE: u32 = b' ' as u32;

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
        let name = |name: &str| tokenizer.names().get(name).cloned();
        (name("bos_token"), name("eos_token"))
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
    // The form of before counts where tokenizer_config.json says nothing.
    let map = ("special_tokens_map.json", json!({"bos_token": "b", "eos_token": {"content": "c"}}));
    assert_eq!(texts(std::slice::from_ref(&map)), (some("b"), some("c")));
    let both = [("tokenizer_config.json", json!({"bos_token": "a"})), map.clone()];
    assert_eq!(texts(&both), (some("a"), some("c")));
    let tokenizer = Folder::new(&[map]).open().tokenizer().unwrap();
    assert_eq!(tokenizer.eos(), [u32::from(b'c'), 299], "it ends answers, too");
    assert_eq!(tokenizer.document_end(), Some(299));
}

/// The model with another `tokenizer.json`: `change` is made to the usual one.
fn changed(files: &[(&str, Value)], change: impl FnOnce(&mut Value)) -> Tokenizer {
    let folder = Folder::new(files);
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
    folder.open().tokenizer().unwrap()
}

#[test]
fn a_text_has_the_tokens_around_it_that_transformers_puts_there() {
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let template = |single: Value| {
        json!({"type": "TemplateProcessing", "single": single, "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
               "special_tokens": {"<s>": {"id": "<s>", "ids": [298], "tokens": ["<s>"]},
                                  "</s>": {"id": "</s>", "ids": [299], "tokens": ["</s>"]}}})
    };
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let begun = template(json!([special("<s>"), text]));
    // As Llama 3 has it.
    let llama = json!({"type": "Sequence", "processors": [level, begun]});
    let closed = template(json!([special("<s>"), text, special("</s>")]));
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 299], "cls": ["<s>", 298], "trim_offsets": true, "add_prefix_space": false});
    let fast = "PreTrainedTokenizerFast";
    for (processor, config, around) in [
        (Value::Null, json!({}), (false, false)),
        (Value::Null, json!({"add_bos_token": true}), (true, false)),
        (begun.clone(), json!({}), (true, false)),
        (begun.clone(), json!({"add_bos_token": false}), (false, false)),
        (llama.clone(), json!({"tokenizer_class": fast}), (true, false)),
        // These classes do not heed the flags, others go by nothing else.
        (llama.clone(), json!({"tokenizer_class": fast, "add_bos_token": false}), (true, false)),
        (Value::Null, json!({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": true}), (false, false)),
        (Value::Null, json!({"tokenizer_class": "LlamaTokenizerFast"}), (true, false)),
        (begun, json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}), (false, false)),
        (llama, json!({"tokenizer_class": "LlamaTokenizer", "add_eos_token": true}), (true, true)),
        (closed, json!({"tokenizer_class": fast}), (true, true)),
        (roberta, json!({"tokenizer_class": fast}), (true, true)),
    ] {
        let tokenizer = changed(&[("tokenizer_config.json", config.clone())], |json| {
            json["post_processor"] = processor.clone()
        });
        let b = u32::from(b'b');
        let expected = match around {
            (false, false) => vec![b],
            (true, false) => vec![298, b],
            (_, true) => vec![298, b, 299],
        };
        assert_eq!(tokenizer.encode("b", true).unwrap(), expected, "{config}, {processor}");
        assert_eq!(tokenizer.encode_at_most("b", true, 3).unwrap(), Some(expected.clone()));
        assert_eq!(tokenizer.encode("b", false).unwrap(), [b], "a chat has what its template writes");
        if around.0 {
            assert_eq!(tokenizer.encode("<s>b", true).unwrap(), expected, "never twice");
        }
    }
}

#[test]
fn a_decoder_that_takes_the_first_space_away_does_so_once() {
    let text = |decoder: Value| {
        let tokenizer = changed(&[], |json| json["decoder"] = decoder);
        let ids = tokenizer.encode("b", false).unwrap();
        // What stands for a space in the vocabulary is a letter to these decoders.
        assert_eq!(tokenizer.decode(&ids), "b");
        tokenizer.decode(&[298, SPACE, SPACE, ids[0]])
    };
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let replace = json!({"type": "Replace", "pattern": {"String": "\u{120}"}, "content": " "});
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    assert_eq!(text(level.clone()), "  b");
    assert_eq!(text(json!({"type": "Sequence", "decoders": [replace, level, strip]})), " b");
}

#[test]
fn a_template_is_where_transformers_looks_for_it() {
    let template = |files: &[(&str, Value)]| Folder::new(files).open().chat_template().unwrap();
    let in_config = |template: Value| ("tokenizer_config.json", json!({"chat_template": template}));
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(template(&[in_config(Value::Null)]), None);
    assert_eq!(template(&[in_config(json!("b"))]), some("b"));
    assert_eq!(template(&[("chat_template.jinja", json!("a"))]), some("a"));
    assert_eq!(template(&[("chat_template.jinja", json!("a")), in_config(json!("b"))]), some("a"));
    let named = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    assert_eq!(template(&[in_config(named)]), some("d"));
    let without = json!([{"name": "tool_use", "template": "t"}]);
    assert_eq!(template(&[in_config(without)]), None);
    // Older processors.
    let json = ("chat_template.json", json!({"chat_template": "c"}));
    assert_eq!(template(&[json.clone(), in_config(json!("b"))]), some("c"));
    assert_eq!(template(&[json, ("chat_template.jinja", json!("a"))]), some("a"));
    for broken in [("chat_template.json", json!("{")), ("tokenizer_config.json", json!("{}}"))] {
        let error = Folder::new(std::slice::from_ref(&broken)).open().chat_template().unwrap_err();
        assert!(!error.is_unreachable() && error.to_string().contains(broken.0), "{error}");
    }
    let broken = Folder::new(&[]);
    std::fs::write(broken.path().join("chat_template.jinja"), b"\xff").unwrap();
    let error = broken.open().chat_template().unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}

#[test]
fn a_folder_without_a_tokenizer_is_refused_with_what_to_do() {
    let folder = Folder::new(&[]);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = folder.open().tokenizer().err().unwrap();
    assert!(!error.is_unreachable() && error.to_string().contains("save_pretrained"), "{error}");
}
