//! Tokenizers of GGUF files beside sentencepiece, llama.cpp and the tokenizers package: what generate.py in `tokenizers` wrote.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;

use dunlin_model::gguf::Value;
use dunlin_model::{Decoder, Tokenizer};
use serde_json::Value as Json;
use support::vocabulary::{fixture, numbers, texts};

fn ids(json: &Json) -> Vec<u32> {
    numbers(json).iter().map(|id| *id as u32).collect()
}

fn tokenizer(values: Vec<(&str, Value)>) -> Tokenizer {
    let values: BTreeMap<String, Value> =
        values.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    Tokenizer::from_gguf(&values).unwrap()
}

/// Like Llama 2, like Gemma, and with scores that many pieces share.
fn sentence_pieces(json: &Json) -> Vec<(&'static str, Tokenizer)> {
    let build = |scores: &str, space: i128| {
        tokenizer(vec![
            ("model", Value::Text("llama".to_owned())),
            ("tokens", Value::Texts(texts(&json["tokens"]))),
            ("scores", Value::Numbers(numbers(&json[scores]))),
            ("token_type", Value::Numbers(numbers(&json["kinds"]))),
            ("add_space_prefix", Value::Integer(space)),
        ])
    };
    vec![("llama", build("scores", 1)), ("gemma", build("scores", 0)), ("ties", build("ties", 1))]
}

#[test]
fn sentence_piece_has_the_tokens_of_sentencepiece_and_llama_cpp() {
    let json = fixture("sentence_piece");
    for (name, tokenizer) in sentence_pieces(&json) {
        for (text, want) in texts(&json["texts"]).iter().zip(json["ids"][name].as_array().unwrap()) {
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(want), "{name}: {text:?}");
        }
    }
}

fn noise(i: u64) -> u64 {
    let mut z = i.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// As generate.py makes it.
fn random_text(i: u64, parts: &[String]) -> String {
    let count = 1 + noise(i * 64) % 24;
    let part = |j| parts[(noise(i * 64 + 1 + j) % parts.len() as u64) as usize].as_str();
    (0..count).map(part).collect()
}

#[test]
fn ten_thousand_random_texts_have_the_tokens_of_llama_cpp() {
    const PER_HASH: u64 = 500;
    let json = fixture("sentence_piece");
    let parts = texts(&json["parts"]);
    for (name, tokenizer) in sentence_pieces(&json) {
        for (i, want) in (0u64..).zip(texts(&json["hashes"][name])) {
            let mut hash = 0xcbf2_9ce4_8422_2325u64;
            for text in i * PER_HASH..(i + 1) * PER_HASH {
                let ids = tokenizer.encode(&random_text(text, &parts), false).unwrap();
                for byte in ids.iter().chain(&[u32::MAX]).flat_map(|id| id.to_le_bytes()) {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
                }
            }
            assert_eq!(format!("{hash:016x}"), want, "{name}: texts {} and after", i * PER_HASH);
        }
    }
}

#[test]
fn text_of_sentence_piece_comes_back_whole_and_piece_by_piece() {
    let json = fixture("sentence_piece");
    let parts: Vec<String> =
        texts(&json["parts"]).into_iter().filter(|part| !part.starts_with('<')).collect();
    for (name, tokenizer) in sentence_pieces(&json) {
        let random = (0..500).map(|i| random_text(i, &parts));
        for text in texts(&json["texts"]).into_iter().chain(random) {
            let special = text.contains("<s>") || text.contains("<unk>");
            // Pieces of spaces that stand for themselves in text part it, and what is behind them is given a space.
            if special || (name != "gemma" && (text.contains("   ") || text.contains("<|mark|>"))) {
                continue;
            }
            let ids = tokenizer.encode(&text, false).unwrap();
            // What SentencePiece writes for a space is read back as one.
            let text = text.replace('\u{2581}', " ");
            assert_eq!(tokenizer.decode(&ids), text, "{name}");
            let (mut decoder, mut streamed) = (Decoder::default(), String::new());
            for id in &ids {
                streamed += &decoder.push(&tokenizer, *id);
            }
            streamed += &decoder.finish();
            let space = if name == "gemma" || text.is_empty() { "" } else { " " };
            assert_eq!(streamed, format!("{space}{text}"), "{name}");
        }
    }
}

#[test]
fn sentence_piece_begins_texts_as_llama_cpp_does() {
    let json = fixture("sentence_piece");
    let (_, tokenizer) = &sentence_pieces(&json)[0];
    let id = |text: &str| texts(&json["tokens"]).iter().position(|token| token == text).unwrap() as u32;
    // Neither first token nor end is named: they are 1 and 2, and only the first is put there.
    assert_eq!(tokenizer.encode("", true).unwrap(), [id("<s>")]);
    assert_eq!(tokenizer.encode("<s>", true).unwrap(), [id("<s>")]);
    assert_eq!(tokenizer.eos(), [id("</s>")]);
    assert_eq!(tokenizer.names()["bos_token"], "<s>");
    assert!(tokenizer.token_bytes(id("<s>")).is_empty() && tokenizer.token_bytes(id("<unk>")).is_empty());
    assert_eq!(tokenizer.token_bytes(id("<0x0A>")), b"\n");
    let long = "the LORD said unto him, ".repeat(4000);
    let all = tokenizer.encode(&long, true).unwrap();
    assert_eq!(tokenizer.encode_at_most(&long, true, all.len()).unwrap().unwrap(), all);
    assert!(tokenizer.encode_at_most(&long, true, all.len() - 1).unwrap().is_none());
}

#[test]
fn byte_level_text_is_split_as_the_models_do() {
    let json = fixture("byte_level");
    for (name, all) in json["ids"].as_object().unwrap() {
        let tokenizer = tokenizer(vec![
            ("model", Value::Text("gpt2".to_owned())),
            ("pre", Value::Text(name.clone())),
            ("tokens", Value::Texts(texts(&json["tokens"]))),
            ("merges", Value::Texts(texts(&json["merges"]))),
        ]);
        for (text, want) in texts(&json["texts"]).iter().zip(all.as_array().unwrap()) {
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(want), "{name}: {text:?}");
        }
    }
}
