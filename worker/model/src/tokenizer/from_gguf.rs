//! GGUF's lists of tokens and merges as the JSON that the `tokenizers` crate reads, and its special tokens; both as llama.cpp takes them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::special::Special;
use crate::error::ModelError;
use crate::gguf;

/// Splits of the pre-tokenizers that GGUF names, as regular expressions.
pub(super) const GPT2_SPLIT: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GGUF token types that stand for themselves in text: control (3) and user-defined (4).
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

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

/// What to do about a tokenizer that cannot be read from GGUF.
const FOLDER: &str = "use the model's safetensors folder with its tokenizer.json in place of the GGUF file";

/// What a pre-tokenizer stands for.
struct Pre {
    /// The ways to split, one after the other.
    splits: Vec<Value>,
    /// A word that is a token is taken whole, whatever its merges are.
    ignore_merges: bool,
    /// A text begins with the first token, unless the file says otherwise.
    add_bos: bool,
    /// Accents become one with their letters first.
    nfc: bool,
}

impl Pre {
    fn new(name: &str) -> Result<Self, ModelError> {
        let plain = |splits| Self { splits, ignore_merges: false, add_bos: false, nfc: false };
        Ok(match name {
            "default" | "gpt-2" => plain(vec![pattern(GPT2_SPLIT)]),
            "smollm" => {
                plain(vec![json!({"type": "Digits", "individual_digits": true}), pattern(GPT2_SPLIT)])
            }
            "llama-bpe" | "llama3" => {
                Self { ignore_merges: true, add_bos: true, ..plain(vec![pattern(LLAMA3_SPLIT)]) }
            }
            "qwen2" => Self { nfc: true, ..plain(vec![pattern(QWEN2_SPLIT)]) },
            other => {
                return Err(ModelError::tokenizer(format!(
                    "the way in which it splits text is `{other}`, and default, gpt-2, smollm, llama-bpe and qwen2 can be read from GGUF; {FOLDER}"
                )));
            }
        })
    }
}

/// `tokenizer.json` for this metadata, and its special tokens.
pub(super) fn read(values: &BTreeMap<String, gguf::Value>) -> Result<(Value, Special), ModelError> {
    let get = |key: &str| values.get(&format!("tokenizer.ggml.{key}"));
    match get("model").and_then(gguf::Value::as_text) {
        Some("gpt2") => {}
        Some("llama") => {
            return Err(ModelError::tokenizer(format!(
                "it is SentencePiece (`llama`), and only byte-level BPE (`gpt2`) can be read from GGUF; {FOLDER}"
            )));
        }
        Some(other) => {
            return Err(ModelError::tokenizer(format!(
                "its kind is `{other}`, and only byte-level BPE (`gpt2`) can be read from GGUF; {FOLDER}"
            )));
        }
        None => return Err(ModelError::tokenizer(format!("the file has none; {FOLDER}"))),
    }
    let (Some(gguf::Value::Texts(tokens)), Some(gguf::Value::Texts(merges))) = (get("tokens"), get("merges"))
    else {
        return Err(ModelError::tokenizer(format!("the file has no lists of tokens and merges; {FOLDER}")));
    };
    let kinds = match get("token_type") {
        Some(gguf::Value::Numbers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
        None => vec![1.0; tokens.len()],
        _ => return Err(ModelError::tokenizer("the list of token types is not as long as that of tokens")),
    };
    let mut pre = Pre::new(get("pre").and_then(gguf::Value::as_text).unwrap_or("default"))?;
    pre.splits.push(
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
    );
    let added: Vec<Value> = tokens
        .iter()
        .zip(&kinds)
        .enumerate()
        .filter(|(_, (_, kind))| **kind == CONTROL || **kind == USER_DEFINED)
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *kind == CONTROL})
        })
        .collect();
    let vocab: BTreeMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    if vocab.len() != tokens.len() {
        return Err(ModelError::tokenizer("two tokens are the same text"));
    }
    let json = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.splits},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": pre.ignore_merges},
    });
    let id = |key: &str| get(key).and_then(gguf::Value::as_u32).filter(|id| (*id as usize) < tokens.len());
    let (bos, eos) = (id("bos_token_id"), id("eos_token_id"));
    let control = |name: &&str| vocab.get(*name).filter(|id| kinds[**id] == CONTROL).map(|id| *id as u32);
    let mut ends: Vec<u32> =
        ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(id).collect();
    let document_end = ends.first().copied();
    ends.extend(ENDS.iter().filter_map(control));
    ends.sort_unstable();
    ends.dedup();
    let flag = |key: &str, default: bool| get(key).and_then(gguf::Value::as_u32).map_or(default, |v| v == 1);
    let names = [("bos_token", bos), ("eos_token", eos.or(document_end))];
    let named = |(name, id): (&str, Option<u32>)| Some((name.to_owned(), tokens[id? as usize].clone()));
    let special = Special {
        before: bos.filter(|_| flag("add_bos_token", pre.add_bos)).into_iter().collect(),
        after: eos.filter(|_| flag("add_eos_token", false)).into_iter().collect(),
        ends,
        document_end,
        names: names.into_iter().filter_map(named).collect(),
    };
    Ok((json, special))
}

pub(super) fn pattern(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
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
