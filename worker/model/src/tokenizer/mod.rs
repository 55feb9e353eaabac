//! Text to tokens and back.
//!
//! GGUF metadata is turned into the JSON that the `tokenizers` crate reads, so that both kinds of model go one way.
//! Decoding is ours: a token is some bytes, and text is what is complete UTF-8 so far.
//!
//! * [`from_gguf`] tokenizers of GGUF files: [`pre_tokenizer`] how byte-level ones split text, [`sentence_piece`] the others
//! * [`special`] tokens that begin and end texts · [`pieces`] long texts in pieces

mod from_gguf;
mod pieces;
mod pre_tokenizer;
mod sentence_piece;
mod special;

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::{NormalizerWrapper, OffsetReferential, OffsetType};

use crate::error::ModelError;
use crate::gguf;
use from_gguf::FromGguf;
use pieces::{LOOSE_TOKENS, bytes_per_token_max, cuts_cleanly, pieces, steps};
use sentence_piece::SentencePiece;
use special::Special;
pub use special::TokenFiles;

/// A tokenizer with the ids that begin and end sequences.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What makes tokens of text between special ones in place of `inner`, if it is of that kind.
    sentence_piece: Option<SentencePiece>,
    /// Bytes of every token; none for special ones.
    bytes: Vec<Vec<u8>>,
    special: Special,
    /// Longest text that a token stands for, in bytes, if that can be told.
    bytes_per_token_max: Option<usize>,
    /// Long texts may be cut in pieces between words.
    cuts_cleanly: bool,
    /// The first word is given a space when it is read, which goes when it is written.
    first_space: bool,
}

/// More tokens than any model has.
const VOCAB_MAX: usize = 1 << 22;

impl Tokenizer {
    /// From GGUF metadata.
    ///
    /// # Errors
    /// When the kind of tokenizer is not known here, or its lists do not fit together.
    pub fn from_gguf(values: &BTreeMap<String, gguf::Value>) -> Result<Self, ModelError> {
        let FromGguf { json, special, sentence_piece } = from_gguf::read(values)?;
        Ok(Self { special, sentence_piece, ..Self::build(&json)? })
    }

    /// From `tokenizer.json`, with the files that say which tokens begin and end sequences.
    ///
    /// # Errors
    /// When the `tokenizers` crate does not take it.
    pub fn from_json(json: &[u8], files: &TokenFiles) -> Result<Self, ModelError> {
        let json: Value = serde_json::from_slice(json)
            .map_err(|e| ModelError::tokenizer(format!("tokenizer.json: {e}")))?;
        let out = Self::build(&json)?;
        let special = Special::of_files(files, &json, &out.inner);
        Ok(Self { special, ..out })
    }

    fn build(json: &Value) -> Result<Self, ModelError> {
        let inner = tokenizers::Tokenizer::from_bytes(json.to_string())
            .map_err(|error| ModelError::tokenizer(format!("the vocabulary is not sound: {error}")))?;
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
            return Err(ModelError::tokenizer(format!(
                "its largest token is {}, beyond {VOCAB_MAX}",
                size - 1
            )));
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
            sentence_piece: None,
            bytes,
            special: Special::default(),
            bytes_per_token_max: bytes_per_token_max(json, longest),
            cuts_cleanly: cuts_cleanly(json, &pre_tokenizer::PATTERNS),
            first_space: takes_first_space(&json["decoder"]),
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

    /// Texts of special tokens, by the names that chat templates have for them: `bos_token`, `eos_token`, ...
    #[must_use]
    pub fn names(&self) -> &BTreeMap<String, String> {
        &self.special.names
    }

    /// Tokens of `text`; `whole` puts those before and behind it that the model wants around a text that is no chat.
    ///
    /// # Errors
    /// When the `tokenizers` crate fails.
    pub fn encode(&self, text: &str, whole: bool) -> Result<Vec<u32>, ModelError> {
        Ok(self.around(self.ids(text)?, whole))
    }

    /// The same, but `None` when they are more than `most`: that is found out without looking at much more of the text.
    ///
    /// # Errors
    /// When the `tokenizers` crate fails.
    pub fn encode_at_most(
        &self,
        text: &str,
        whole: bool,
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
        let ids = self.around(ids, whole);
        Ok((ids.len() <= most).then_some(ids))
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        if let Some(pieces) = &self.sentence_piece {
            return Ok(self.ids_of_pieces(pieces, text));
        }
        let encoding =
            self.inner.encode_fast(text, false).map_err(|error| ModelError::tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Special tokens as the crate finds them, and what is between them by SentencePiece.
    fn ids_of_pieces(&self, pieces: &SentencePiece, text: &str) -> Vec<u32> {
        let parts = self.inner.get_added_vocabulary().extract_and_normalize(None::<&NormalizerWrapper>, text);
        let mut ids = Vec::new();
        for (part, _, tokens) in parts.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => pieces.encode(part, &mut ids),
            }
        }
        ids
    }

    /// With the tokens around them that are wanted and not there.
    fn around(&self, mut ids: Vec<u32>, whole: bool) -> Vec<u32> {
        let Special { before, after, .. } = &self.special;
        if whole && !ids.starts_with(before) {
            ids.splice(0..0, before.iter().copied());
        }
        if whole && !ids.ends_with(after) {
            ids.extend(after);
        }
        ids
    }

    /// Bytes of one token; none when it is special or unknown.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The name of a token that stands for no text: `<|im_end|>`, ...; none for one that has bytes or is unknown.
    #[must_use]
    pub fn token_name(&self, id: u32) -> Option<String> {
        let name = self.inner.id_to_token(id)?;
        (self.token_bytes(id).is_empty() && !name.is_empty()).then_some(name)
    }

    /// The whole text of `ids`; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token_bytes(*id)).copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let cut = text.strip_prefix(' ').filter(|_| self.first_space);
        cut.unwrap_or(&text).to_owned()
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

/// Does this decoder (of `tokenizer.json`) take a space away from the beginning of a text, as SentencePiece does?
fn takes_first_space(decoder: &Value) -> bool {
    steps(decoder, "decoders").iter().any(|step| match step["type"].as_str() {
        Some("Strip") => step["content"] == " " && step["start"].as_u64() > Some(0),
        Some("Metaspace") => step["prepend_scheme"] != "never" && step["add_prefix_space"] != false,
        _ => false,
    })
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

    use super::pre_tokenizer::{NAMES, PreTokenizer, pattern};
    use super::{Special, Tokenizer, byte_of_char};

    /// All bytes and some merges, also of letters with a space before them, behind each way to split.
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
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
        let mut named: Vec<(Value, bool)> = NAMES
            .iter()
            .map(|name| {
                let PreTokenizer { mut splits, nfc, .. } = PreTokenizer::new(name).unwrap();
                splits.push(byte_level(false));
                (sequence(splits), nfc)
            })
            .collect();
        named.sort_by_key(|(splits, nfc)| (splits.to_string(), *nfc));
        named.dedup();
        // Nothing is known of the last one: a word is everything up to a full stop.
        let others = [byte_level(true), sequence(vec![pattern("[^.]+"), byte_level(false)])];
        named.into_iter().chain(others.map(|other| (other, false)))
        .map(|(pre_tokenizer, nfc)| {
            let json = json!({
                "version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer,
                "normalizer": nfc.then(|| json!({"type": "NFC"})),
                "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
                "model": {"type": "BPE", "vocab": vocab, "merges": merges},
            });
            let special = Special { before: vec![0], ..Special::default() };
            Tokenizer { special, ..Tokenizer::build(&json).unwrap() }
        })
        .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_text_in_pieces_has_the_tokens_of_the_whole(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "ab", " ab", " a", "  ", "\n\n", " \n", "the", " the", "'s", "12", " 345", "é", " 鳥", "\u{1f426}", "!?", " (",
                    "\t", "e\u{301}", " \u{301}", "n't", "A1b2", ".", ", ", "\u{a0}",
                ]),
                300..600,
            ),
            times in 28..34usize,
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
        assert_eq!(known.iter().filter(|known| !**known).count(), 1, "{known:?}");
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
