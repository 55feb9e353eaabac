//! GGUF's lists of tokens as the JSON that the `tokenizers` crate reads, and its special tokens; both as llama.cpp takes them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::pre_tokenizer::{FOLDER, PreTokenizer};
use super::sentence_piece::{SPACE, SentencePiece};
use super::special::Special;
use crate::error::{ModelError, excerpt};
use crate::gguf;

/// GGUF token types: those that stand for themselves in text, and bytes.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const BYTE: f64 = 6.0;

/// Control tokens that end an answer whatever `eos_token_id` is: a file names one end only, and a chat model has several.
const ENDS: [&str; 11] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
];

/// What a file says of its tokenizer.
pub(super) struct FromGguf {
    /// `tokenizer.json`: of SentencePiece without its merges.
    pub json: Value,
    pub special: Special,
    pub sentence_piece: Option<SentencePiece>,
}

/// The tokenizer that this metadata describes.
pub(super) fn read(values: &BTreeMap<String, gguf::Value>) -> Result<FromGguf, ModelError> {
    let lists = Lists::new(values)?;
    match lists.get("model").and_then(gguf::Value::as_text) {
        Some("gpt2") => byte_level(&lists),
        Some("llama") => sentence_piece(&lists),
        Some(other) => Err(ModelError::tokenizer(format!(
            "its kind is `{}`, and byte-level BPE (`gpt2`) and SentencePiece (`llama`) can be read from GGUF; {FOLDER}",
            excerpt(other)
        ))),
        None => Err(ModelError::tokenizer(format!("the file has none; {FOLDER}"))),
    }
}

/// The lists of both kinds.
struct Lists<'a> {
    values: &'a BTreeMap<String, gguf::Value>,
    tokens: &'a [String],
    /// GGUF token types.
    kinds: Vec<f64>,
    ids: BTreeMap<&'a str, usize>,
}

impl<'a> Lists<'a> {
    fn new(values: &'a BTreeMap<String, gguf::Value>) -> Result<Self, ModelError> {
        let Some(gguf::Value::Texts(tokens)) = values.get("tokenizer.ggml.tokens") else {
            return Err(ModelError::tokenizer(format!("the file has no list of tokens; {FOLDER}")));
        };
        let kinds = match values.get("tokenizer.ggml.token_type") {
            Some(gguf::Value::Numbers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
            None => vec![1.0; tokens.len()],
            _ => {
                return Err(ModelError::tokenizer(
                    "the list of token types is not as long as that of tokens",
                ));
            }
        };
        let ids: BTreeMap<&str, usize> =
            tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        if ids.len() != tokens.len() {
            return Err(ModelError::tokenizer("two tokens are the same text"));
        }
        Ok(Self { values, tokens, kinds, ids })
    }

    fn get(&self, key: &str) -> Option<&'a gguf::Value> {
        self.values.get(&format!("tokenizer.ggml.{key}"))
    }

    /// A token that a key names.
    fn id(&self, key: &str) -> Option<u32> {
        self.get(key).and_then(gguf::Value::as_u32).filter(|id| (*id as usize) < self.tokens.len())
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(gguf::Value::as_u32).map_or(default, |value| value == 1)
    }

    /// Tokens that stand for themselves in text; `special` are those that are no text.
    fn added(&self, special: &[f64]) -> Vec<Value> {
        let phi_3 = self.is_phi_3();
        let tokens = self.tokens.iter().zip(&self.kinds).enumerate();
        tokens
            .filter(|(_, (_, kind))| special.contains(kind) || **kind == USER_DEFINED)
            .map(|(id, (token, kind))| {
                let rstrip = phi_3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token.as_str());
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": rstrip,
                       "normalized": false, "special": special.contains(kind)})
            })
            .collect()
    }

    /// White space behind special tokens of Phi-3 belongs to them, which no key of the file says. llama.cpp goes by the name as well.
    fn is_phi_3(&self) -> bool {
        let said = |key: &str| self.values.get(key).and_then(gguf::Value::as_text).unwrap_or_default();
        let name = said("general.name").to_lowercase();
        said("tokenizer.ggml.model") == "llama"
            && (name.contains("phi-3") || name.contains("phi3") || said("general.architecture") == "phi3")
    }

    /// What begins and ends texts and answers, `defaults` being what the keys say when they are not there.
    fn special(&self, defaults: &Defaults) -> Special {
        let known = |id: u32| Some(id).filter(|id| (*id as usize) < self.tokens.len());
        let or = |key: &str, id: Option<u32>| match self.get(key) {
            Some(_) => self.id(key),
            None => id.and_then(known),
        };
        let (bos, eos) = (or("bos_token_id", defaults.bos), or("eos_token_id", defaults.eos));
        let control =
            |name: &&str| self.ids.get(*name).filter(|id| self.kinds[**id] == CONTROL).map(|id| *id as u32);
        let others = ["eot_token_id", "eom_token_id"].into_iter().filter_map(|key| self.id(key));
        let mut ends: Vec<u32> = eos.into_iter().chain(others).collect();
        let document_end = ends.first().copied();
        ends.extend(ENDS.iter().filter_map(control));
        ends.sort_unstable();
        ends.dedup();
        let names = [("bos_token", bos), ("eos_token", eos.or(document_end))];
        let named =
            |(name, id): (&str, Option<u32>)| Some((name.to_owned(), self.tokens[id? as usize].clone()));
        Special {
            before: bos.filter(|_| self.flag("add_bos_token", defaults.add_bos)).into_iter().collect(),
            after: eos.filter(|_| self.flag("add_eos_token", false)).into_iter().collect(),
            ends,
            document_end,
            names: names.into_iter().filter_map(named).collect(),
        }
    }
}

/// What holds where a file says nothing.
struct Defaults {
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
}

fn byte_level(lists: &Lists<'_>) -> Result<FromGguf, ModelError> {
    let Some(gguf::Value::Texts(merges)) = lists.get("merges") else {
        return Err(ModelError::tokenizer(format!("the file has no list of merges; {FOLDER}")));
    };
    let mut pre = PreTokenizer::new(lists.get("pre").and_then(gguf::Value::as_text).unwrap_or("default"))?;
    pre.splits.push(
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
    );
    let json = json!({
        "version": "1.0",
        "added_tokens": lists.added(&[CONTROL]),
        "normalizer": if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.splits},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": lists.ids, "merges": merges, "ignore_merges": pre.ignore_merges},
    });
    let special = lists.special(&Defaults { bos: None, eos: None, add_bos: pre.add_bos });
    Ok(FromGguf { json, special, sentence_piece: None })
}

fn sentence_piece(lists: &Lists<'_>) -> Result<FromGguf, ModelError> {
    if lists.flag("remove_extra_whitespaces", false) || lists.get("precompiled_charsmap").is_some() {
        return Err(ModelError::tokenizer(format!(
            "it is SentencePiece that changes text before it reads it (remove_extra_whitespaces or precompiled_charsmap); {FOLDER}"
        )));
    }
    let scores = match lists.get("scores") {
        Some(gguf::Value::Numbers(scores))
            if scores.len() == lists.tokens.len() && scores.iter().all(|score| !score.is_nan()) =>
        {
            scores
        }
        _ => {
            return Err(ModelError::tokenizer(format!(
                "it is SentencePiece, and the file has no list with a score for every token; {FOLDER}"
            )));
        }
    };
    let mut bytes = [0; 256];
    for (byte, token) in (0..=u8::MAX).zip(&mut bytes) {
        let name = format!("<0x{byte:02X}>");
        let Some(id) = lists.ids.get(name.as_str()) else {
            return Err(ModelError::tokenizer(format!(
                "it is SentencePiece without a token for every byte (`{name}`); {FOLDER}"
            )));
        };
        *token = *id as u32;
    }
    let text = |(_, kind): &(usize, &f64)| ![UNKNOWN, CONTROL, BYTE].contains(kind);
    let pieces = lists.kinds.iter().enumerate().filter(text).map(|(id, _)| {
        // Scores are f32 in the file.
        (lists.tokens[id].clone(), id as u32, scores[id] as f32)
    });
    let space_first = lists.flag("add_space_prefix", true);
    let steps = [
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
        json!({"type": "Strip", "content": " ", "start": u32::from(space_first), "stop": 0}),
    ];
    let json = json!({
        "version": "1.0",
        "added_tokens": lists.added(&[CONTROL, UNKNOWN]),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {"type": "BPE", "vocab": lists.ids, "merges": []},
    });
    let special = lists.special(&Defaults { bos: Some(1), eos: Some(2), add_bos: true });
    Ok(FromGguf { json, special, sentence_piece: Some(SentencePiece::new(pieces, bytes, space_first)) })
}

#[cfg(test)]
mod tests {
    use super::super::{Tokenizer, byte_of_char};
    use super::*;

    const BOS: u32 = 260;
    const EOS: u32 = 261;
    const TURN: u32 = 262;

    /// All bytes, a word with its beginning, a word that no merge leads to, and three control tokens.
    fn tokenizer(pre: &str, flags: &[(&str, u32)]) -> Tokenizer {
        let mut tokens: Vec<String> = byte_of_char().into_keys().map(String::from).collect();
        tokens.extend(["th", "the", "xyz", "é", "<s>", "</s>", "<|eot_id|>"].map(str::to_owned));
        let kinds = (0..tokens.len()).map(|id| if id < 260 { 1.0 } else { CONTROL }).collect();
        let merges = ["t h", "th e", "Ã ©"].map(str::to_owned).to_vec();
        // As bytes spell it.
        tokens[259] = "Ã©".to_owned();
        let mut values = BTreeMap::from([
            ("model".to_owned(), gguf::Value::Text("gpt2".to_owned())),
            ("pre".to_owned(), gguf::Value::Text(pre.to_owned())),
            ("tokens".to_owned(), gguf::Value::Texts(tokens)),
            ("token_type".to_owned(), gguf::Value::Numbers(kinds)),
            ("merges".to_owned(), gguf::Value::Texts(merges)),
            ("bos_token_id".to_owned(), gguf::Value::Integer(BOS.into())),
            ("eos_token_id".to_owned(), gguf::Value::Integer(EOS.into())),
        ]);
        values.extend(flags.iter().map(|(key, v)| ((*key).to_owned(), gguf::Value::Integer(i128::from(*v)))));
        let values =
            values.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
        Tokenizer::from_gguf(&values).unwrap()
    }

    #[test]
    fn a_text_begins_and_ends_as_llama_cpp_has_it() {
        let around = |pre: &str, flags: &[(&str, u32)]| {
            let ids = tokenizer(pre, flags).encode("the", true).unwrap();
            (ids.first() == Some(&BOS), ids.last() == Some(&EOS))
        };
        assert_eq!(around("llama-bpe", &[]), (true, false));
        assert_eq!(around("llama-bpe", &[("add_bos_token", 0)]), (false, false));
        assert_eq!(around("qwen2", &[]), (false, false));
        assert_eq!(around("qwen2", &[("add_bos_token", 1), ("add_eos_token", 1)]), (true, true));
    }

    #[test]
    fn a_word_of_llama_3_is_one_token_though_no_merge_leads_to_it() {
        let tokens = |pre: &str| tokenizer(pre, &[]).encode("xyz", false).unwrap().len();
        assert_eq!((tokens("llama-bpe"), tokens("qwen2")), (1, 3));
    }

    #[test]
    fn white_space_behind_special_tokens_of_phi_3_belongs_to_them() {
        let mut tokens = ["<unk>", "<s>", "</s>", "a", "\u{2581}", "<|user|>"].map(str::to_owned).to_vec();
        tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
        let kinds = [UNKNOWN, CONTROL, CONTROL, 1.0, 1.0, CONTROL].into_iter().chain([BYTE; 256]);
        let ids = |name: &str| {
            let values = [
                ("general.name", gguf::Value::Text(name.to_owned())),
                ("tokenizer.ggml.model", gguf::Value::Text("llama".to_owned())),
                ("tokenizer.ggml.tokens", gguf::Value::Texts(tokens.clone())),
                ("tokenizer.ggml.token_type", gguf::Value::Numbers(kinds.clone().collect())),
                ("tokenizer.ggml.scores", gguf::Value::Numbers(vec![0.0; tokens.len()])),
                ("tokenizer.ggml.add_space_prefix", gguf::Value::Integer(0)),
            ];
            let values = values.map(|(key, value)| (key.to_owned(), value)).into();
            Tokenizer::from_gguf(&values).unwrap().encode("<s> <|user|>\n a", false).unwrap()
        };
        assert_eq!(ids("Phi-3 mini"), [1, 4, 5, 3]);
        assert_eq!(ids("Llama 2"), [1, 4, 5, 6 + 10, 4, 3]);
    }

    #[test]
    fn accents_of_qwen_2_are_composed() {
        let same = |pre: &str| {
            let tokenizer = tokenizer(pre, &[]);
            tokenizer.encode("e\u{301}", false).unwrap() == tokenizer.encode("é", false).unwrap()
        };
        assert!(same("qwen2") && !same("llama-bpe"));
    }

    #[test]
    fn control_tokens_that_are_known_to_end_a_turn_end_an_answer() {
        let tokenizer = tokenizer("llama-bpe", &[]);
        assert_eq!(tokenizer.eos(), [EOS, TURN]);
        assert_eq!(tokenizer.document_end(), Some(EOS));
        let name = |name: &str| tokenizer.names().get(name).map(String::as_str);
        assert_eq!((name("bos_token"), name("eos_token")), (Some("<s>"), Some("</s>")));
    }
}
