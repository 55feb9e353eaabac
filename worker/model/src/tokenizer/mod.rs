//! Text to tokens and back.
//!
//! GGUF metadata (byte-level BPE) is turned into the JSON that the `tokenizers` crate reads, so that both kinds of model go one way.
//! Decoding is ours: a token is some bytes, and text is what is complete UTF-8 so far.

mod pieces;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::error::ModelError;
use crate::gguf;
use pieces::{LOOSE_TOKENS, bytes_per_token_max, cuts_cleanly, pieces};

/// A tokenizer with the ids that begin and end sequences.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes of every token; none for special ones.
    bytes: Vec<Vec<u8>>,
    special: Special,
    /// Longest text that a token stands for, in bytes, if that can be told.
    bytes_per_token_max: Option<usize>,
    /// Long texts may be cut in pieces between words.
    cuts_cleanly: bool,
}

/// Tokens that stand for no text.
#[derive(Clone, Debug, Default)]
struct Special {
    /// Begins sequences.
    bos: Option<u32>,
    /// Whether a prompt that is no chat begins with it.
    add_bos: bool,
    /// End an answer, in order.
    ends: Vec<u32>,
    /// What a chat template calls the end of a sequence.
    eos: Option<u32>,
    /// Ends a document of training data.
    document_end: Option<u32>,
}

/// The files of a folder that say which tokens begin and end sequences; those that are not there are null.
#[derive(Clone, Debug, Default)]
pub struct TokenFiles {
    /// `config.json`.
    pub config: Value,
    /// `tokenizer_config.json`.
    pub tokenizer: Value,
    /// `generation_config.json`.
    pub generation: Value,
}

/// Splits of the pre-tokenizers that GGUF names, as regular expressions.
const GPT2_SPLIT: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// More tokens than any model has.
const VOCAB_MAX: usize = 1 << 22;

/// GGUF token types that stand for themselves in text: control (3) and user-defined (4).
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

fn unusable(what: impl Into<String>) -> ModelError {
    ModelError::Tokenizer(what.into())
}

impl Tokenizer {
    /// From GGUF metadata.
    ///
    /// # Errors
    /// When the kind of tokenizer is not known here, or its lists do not fit together.
    pub fn from_gguf(values: &BTreeMap<String, gguf::Value>) -> Result<Self, ModelError> {
        let get = |key: &str| values.get(&format!("tokenizer.ggml.{key}"));
        match get("model").and_then(gguf::Value::as_text) {
            Some("gpt2") => {}
            other => return Err(unusable(format!("its kind is {other:?}, not byte-level BPE (`gpt2`)"))),
        }
        let (Some(gguf::Value::Texts(tokens)), Some(gguf::Value::Texts(merges))) =
            (get("tokens"), get("merges"))
        else {
            return Err(unusable("the file has no lists of tokens and merges"));
        };
        let kinds = match get("token_type") {
            Some(gguf::Value::Numbers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
            None => vec![1.0; tokens.len()],
            _ => return Err(unusable("the list of token types is not as long as that of tokens")),
        };
        let split = match get("pre").and_then(gguf::Value::as_text).unwrap_or("default") {
            "default" | "gpt-2" => json!([pattern(GPT2_SPLIT)]),
            "smollm" => json!([{"type": "Digits", "individual_digits": true}, pattern(GPT2_SPLIT)]),
            "llama-bpe" | "llama3" => json!([pattern(LLAMA3_SPLIT)]),
            "qwen2" => json!([pattern(QWEN2_SPLIT)]),
            other => return Err(unusable(format!("its pre-tokenizer is `{other}`"))),
        };
        let mut steps = split.as_array().cloned().unwrap_or_default();
        steps.push(
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
            return Err(unusable("two tokens are the same text"));
        }
        let json = json!({
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        });
        let id =
            |key: &str| get(key).and_then(gguf::Value::as_u32).filter(|id| (*id as usize) < tokens.len());
        let mut eos: Vec<u32> =
            ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(id).collect();
        eos.dedup();
        let add_bos = get("add_bos_token").and_then(gguf::Value::as_u32).unwrap_or(0) == 1;
        let first = eos.first().copied();
        let special =
            Special { bos: id("bos_token_id"), add_bos, eos: first, document_end: first, ends: eos };
        Ok(Self { special, ..Self::build(&json)? })
    }

    /// From `tokenizer.json`, with the files that say which tokens begin and end sequences.
    ///
    /// As in transformers, the names in `tokenizer_config.json` are what a template calls `bos_token` and `eos_token`; answers end with what
    /// `generation_config.json` says, `config.json` and `tokenizer_config.json` too.
    ///
    /// # Errors
    /// When the `tokenizers` crate does not take it.
    pub fn from_json(json: &[u8], files: &TokenFiles) -> Result<Self, ModelError> {
        let json: Value =
            serde_json::from_slice(json).map_err(|e| unusable(format!("tokenizer.json: {e}")))?;
        let out = Self::build(&json)?;
        let TokenFiles { config, tokenizer, generation } = files;
        let ids = |value: &Value| -> Vec<u32> {
            let one = value.as_u64().into_iter();
            let many = value.as_array().into_iter().flatten().filter_map(Value::as_u64);
            one.chain(many).filter_map(|id| u32::try_from(id).ok()).collect()
        };
        let named = |key: &str| {
            let name = tokenizer[key].as_str().or_else(|| tokenizer[key]["content"].as_str());
            name.and_then(|name| out.inner.token_to_id(name))
        };
        // A file that says `null` means none.
        let bos = match tokenizer.get("bos_token") {
            Some(_) => named("bos_token"),
            None => ids(&config["bos_token_id"]).first().copied(),
        };
        let mut of_documents = ids(&config["eos_token_id"]);
        of_documents.extend(named("eos_token"));
        of_documents.sort_unstable();
        let document_end = of_documents.first().copied();
        let mut ends = of_documents;
        ends.extend(ids(&generation["eos_token_id"]));
        ends.sort_unstable();
        ends.dedup();
        let add_bos = tokenizer["add_bos_token"].as_bool().unwrap_or(false);
        let eos = named("eos_token").or(document_end);
        Ok(Self { special: Special { bos, add_bos, ends, eos, document_end }, ..out })
    }

    fn build(json: &Value) -> Result<Self, ModelError> {
        let inner = tokenizers::Tokenizer::from_bytes(json.to_string())
            .map_err(|error| unusable(format!("the vocabulary is not sound: {error}")))?;
        let byte_level = json["decoder"].to_string().contains("ByteLevel");
        let special: BTreeMap<u64, bool> = json["added_tokens"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|t| Some((t["id"].as_u64()?, t["special"].as_bool().unwrap_or(false))))
            .collect();
        let unbyte = byte_of_char();
        let size = inner.get_vocab(true).values().max().map_or(0, |max| *max as usize + 1);
        if size > VOCAB_MAX {
            return Err(unusable(format!("its largest token is {}, beyond {VOCAB_MAX}", size - 1)));
        }
        let bytes: Vec<Vec<u8>> = (0..size as u32)
            .map(|id| {
                let token = inner.id_to_token(id).unwrap_or_default();
                match special.get(&u64::from(id)) {
                    Some(true) => Vec::new(),
                    Some(false) => token.into_bytes(),
                    None if byte_level => token.chars().filter_map(|c| unbyte.get(&c).copied()).collect(),
                    None => sentence_piece(&token),
                }
            })
            .collect();
        let added = json["added_tokens"].as_array().into_iter().flatten();
        let added = added.filter_map(|t| t["content"].as_str()).map(str::len);
        let longest = bytes.iter().map(Vec::len).chain(added).max().unwrap_or(0);
        Ok(Self {
            inner,
            bytes,
            special: Special::default(),
            bytes_per_token_max: bytes_per_token_max(json, longest),
            cuts_cleanly: cuts_cleanly(json, &[GPT2_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT]),
        })
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Is every byte a token, and that byte its number?
    #[must_use]
    pub fn is_of_bytes(&self) -> bool {
        self.bytes.len() == 256 && (0..=255).zip(&self.bytes).all(|(byte, token)| *token == [byte])
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn eos(&self) -> &[u32] {
        &self.special.ends
    }

    /// The token behind each document of training data, if there is one.
    #[must_use]
    pub fn document_end(&self) -> Option<u32> {
        self.special.document_end
    }

    /// The text of the token that begins sequences, if any.
    #[must_use]
    pub fn bos_text(&self) -> Option<String> {
        self.inner.id_to_token(self.special.bos?)
    }

    /// The text of the token that ends sequences, if any.
    #[must_use]
    pub fn eos_text(&self) -> Option<String> {
        self.inner.id_to_token(self.special.eos?)
    }

    /// Tokens of `text`; `begin` puts the beginning-of-sequence token before them if this model wants one.
    ///
    /// # Errors
    /// When the `tokenizers` crate fails.
    pub fn encode(&self, text: &str, begin: bool) -> Result<Vec<u32>, ModelError> {
        Ok(self.begun(self.ids(text)?, begin))
    }

    /// The same, but `None` when they are more than `most`: that is found out without looking at much more of the text.
    ///
    /// # Errors
    /// When the `tokenizers` crate fails.
    pub fn encode_at_most(
        &self,
        text: &str,
        begin: bool,
        most: usize,
    ) -> Result<Option<Vec<u32>>, ModelError> {
        if self.bytes_per_token_max.is_some_and(|bytes| text.len() > most.saturating_mul(bytes)) {
            return Ok(None);
        }
        let (mut ids, mut loose) = (Vec::new(), 0);
        for piece in pieces(text) {
            ids.extend(self.ids(piece.text)?);
            loose += usize::from(!(piece.clean && self.cuts_cleanly || piece.text.len() == text.len()));
            if ids.len() > most.saturating_add(loose * LOOSE_TOKENS) {
                return Ok(None);
            }
        }
        if loose > 0 {
            ids = self.ids(text)?;
        }
        let ids = self.begun(ids, begin);
        Ok((ids.len() <= most).then_some(ids))
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| unusable(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// With the token that begins sequences, if it is wanted and not there.
    fn begun(&self, mut ids: Vec<u32>, begin: bool) -> Vec<u32> {
        if let (true, true, Some(bos)) = (begin, self.special.add_bos, self.special.bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// Bytes of one token; none when it is special or unknown.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// Text of `ids`; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token_bytes(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Turns tokens into text piece by piece, holding back what is not yet a whole character.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// The text that `id` completes; may be empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.pending.extend_from_slice(tokenizer.token_bytes(id));
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending.clear();
                    return out;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    let Some(wrong) = error.error_len() else {
                        self.pending.drain(..valid);
                        return out;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + wrong);
                }
            }
        }
    }

    /// What was held back to the end.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

fn pattern(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// GPT-2's printable stand-ins for bytes: printable bytes stand for themselves, the others for U+0100 on.
fn byte_of_char() -> BTreeMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..=255u8)
        .map(|b| {
            if printable(b) {
                return (char::from(b), b);
            }
            next += 1;
            (char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER), b)
        })
        .collect()
}

/// SentencePiece: `▁` is a space, `<0xAB>` a byte.
fn sentence_piece(token: &str) -> Vec<u8> {
    let byte = token
        .strip_prefix("<0x")
        .and_then(|t| t.strip_suffix('>'))
        .and_then(|t| u8::from_str_radix(t, 16).ok());
    byte.map_or_else(|| token.replace('\u{2581}', " ").into_bytes(), |byte| vec![byte])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{GPT2_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT, Special, Tokenizer, byte_of_char, pattern};

    /// All bytes and some merges, also of letters with a space before them, behind each of the known ways to split.
    fn tokenizers() -> Vec<Tokenizer> {
        let mut tokens: Vec<String> = byte_of_char().into_keys().map(String::from).collect();
        let mut merges = Vec::new();
        for (left, right) in
            [("Ġ", "a"), ("a", "b"), ("Ġ", "Ġ"), ("Ġa", "b"), ("t", "h"), ("Ġ", "th"), ("Ċ", "Ċ"), ("1", "2")]
        {
            merges.push(format!("{left} {right}"));
            tokens.push(format!("{left}{right}"));
        }
        let vocab: std::collections::BTreeMap<&str, usize> =
            tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let digits = json!({"type": "Digits", "individual_digits": true});
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
        [
            byte_level(true),
            sequence(vec![pattern(GPT2_SPLIT), byte_level(false)]),
            sequence(vec![digits, pattern(GPT2_SPLIT), byte_level(false)]),
            sequence(vec![pattern(LLAMA3_SPLIT), byte_level(false)]),
            sequence(vec![pattern(QWEN2_SPLIT), byte_level(false)]),
            // Nothing is known of this one: a word is everything up to a full stop.
            sequence(vec![pattern("[^.]+"), byte_level(false)]),
        ]
        .into_iter()
        .map(|pre_tokenizer| {
            let json = json!({
                "version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer,
                "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
                "model": {"type": "BPE", "vocab": vocab, "merges": merges},
            });
            let special = Special { bos: Some(0), add_bos: true, ..Special::default() };
            Tokenizer { special, ..Tokenizer::build(&json).unwrap() }
        })
        .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_text_in_pieces_has_the_tokens_of_the_whole(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "ab", " ab", " a", "  ", "\n\n", " \n", "the", " the", "'s", "12", " 345", "é", " 鳥", "\u{1f426}", "!?", " (",
                    "\t", "tha", "n't", "A1b2", ".", ", ", "\u{a0}",
                ]),
                300..600,
            ),
            times in 20..60usize,
        ) {
            let text = words.concat().repeat(times);
            for tokenizer in tokenizers() {
                let whole = tokenizer.encode(&text, true).unwrap();
                let found = tokenizer.encode_at_most(&text, true, whole.len()).unwrap();
                prop_assert!(found.as_ref() == Some(&whole));
                prop_assert!(tokenizer.encode_at_most(&text, true, whole.len() - 1).unwrap().is_none());
            }
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_not_looked_at() {
        let known: Vec<bool> = tokenizers().iter().map(|t| t.cuts_cleanly).collect();
        assert_eq!(known, [true, true, true, true, true, false]);
        let tokenizer = &tokenizers()[0];
        assert_eq!(tokenizer.bytes_per_token_max, Some(3));
        let began = std::time::Instant::now();
        for text in ["ab the ".repeat(1 << 20), "x".repeat(8 << 20)] {
            assert!(tokenizer.encode_at_most(&text, true, 4000).unwrap().is_none());
            // By its bytes it could have so few.
            assert!(tokenizer.encode_at_most(&text[..190_000], true, 66_000).unwrap().is_none());
        }
        // All of it takes many seconds.
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }
}
