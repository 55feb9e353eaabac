//! Long texts in pieces: so that one with too many tokens is found out before all of it has been looked at.
//!
//! Where a piece ends in front of a space between a word and a word, the byte-level tokenizers that are known here cut as well: none of
//! their patterns goes from one word into the space behind it. The tokens of such pieces, one after the other, are those of the whole.

use serde_json::Value;

/// Bytes of a piece, about.
const PIECE_BYTES: usize = 16 << 10;
/// A cut that may go through a token makes no more than so many tokens more than there are.
pub(super) const LOOSE_TOKENS: usize = 8;

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub text: &'a str,
    /// It ends where known tokenizers cut, or with the text.
    pub clean: bool,
}

/// `text` in pieces.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (end, clean) = end_of_piece(rest);
        let (piece, more) = rest.split_at(end);
        rest = more;
        Some(Piece { text: piece, clean })
    })
}

fn end_of_piece(text: &str) -> (usize, bool) {
    if text.len() <= PIECE_BYTES + PIECE_BYTES / 2 {
        return (text.len(), true);
    }
    let bytes = text.as_bytes();
    let between_words = |at: &usize| {
        let (before, here, after) = (bytes[at - 1], bytes[*at], bytes[at + 1]);
        before.is_ascii_alphanumeric() && here == b' ' && after.is_ascii_alphabetic()
    };
    if let Some(at) = (PIECE_BYTES / 2..=PIECE_BYTES).rev().find(between_words) {
        return (at, true);
    }
    let end = (0..=PIECE_BYTES).rev().find(|at| text.is_char_boundary(*at));
    (end.filter(|at| *at > 0).unwrap_or(text.len()), false)
}

/// Longest text that a token can stand for, in bytes, if that can be told: not when the tokenizer (`tokenizer.json`) drops some of the text, or
/// makes one token of any number of unknown characters. `longest`: bytes of its longest token.
pub(super) fn bytes_per_token_max(json: &Value, longest: usize) -> Option<usize> {
    let byte_level = steps(&json["pre_tokenizer"], "pretokenizers").iter().any(|s| s["type"] == "ByteLevel");
    let (shrinks, drops) = (shrink(&json["normalizer"])?, drops_text(json));
    (byte_level && json["model"]["type"] == "BPE" && !drops).then_some(longest * shrinks)
}

/// By how much a normaliser may shorten a text at most, if it is known.
fn shrink(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        // Three jamo of three bytes each become a syllable of three.
        Some("NFC") => Some(3),
        _ => None,
    }
}

fn drops_text(json: &Value) -> bool {
    let removes = |step: &Value| {
        step["behavior"] == "Removed"
            || !matches!(step["type"].as_str(), Some("ByteLevel" | "Digits" | "Split"))
    };
    let strips = |token: &Value| token["lstrip"] == true || token["rstrip"] == true;
    steps(&json["pre_tokenizer"], "pretokenizers").iter().any(|step| removes(step))
        || json["added_tokens"].as_array().into_iter().flatten().any(strips)
}

/// Are the tokens of clean pieces those of the whole text?
pub(super) fn cuts_cleanly(json: &Value, patterns: &[&str]) -> bool {
    let known = |step: &&Value| match step["type"].as_str() {
        Some("ByteLevel") => step["add_prefix_space"] != true,
        Some("Digits") => true,
        Some("Split") => step["pattern"]["Regex"].as_str().is_some_and(|p| patterns.contains(&p)),
        _ => false,
    };
    let steps = steps(&json["pre_tokenizer"], "pretokenizers");
    let splits = |step: &&Value| step["type"] == "Split" || step["use_regex"] == true;
    let across = |token: &Value| {
        let text = token["content"].as_str().unwrap_or_default();
        text.contains(' ') || token["lstrip"] == true || token["rstrip"] == true
    };
    // Canonical composition goes across no space.
    (json["normalizer"].is_null() || json["normalizer"]["type"] == "NFC")
        && json["model"]["type"] == "BPE"
        && steps.iter().all(known)
        && steps.iter().any(splits)
        && !json["added_tokens"].as_array().into_iter().flatten().any(across)
}

/// A step, or the steps of a sequence.
pub(super) fn steps<'a>(step: &'a Value, of: &str) -> Vec<&'a Value> {
    match step["type"].as_str() {
        Some("Sequence") => step[of].as_array().into_iter().flatten().collect(),
        Some(_) => vec![step],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_are_the_text_and_end_between_words_where_they_can() {
        let words = "some words, and more of them; ".repeat(4000);
        let all: Vec<Piece<'_>> = pieces(&words).collect();
        assert!(all.len() > 5 && all.iter().all(|p| p.clean && p.text.len() <= PIECE_BYTES * 3 / 2));
        assert!(all[1..].iter().all(|p| p.text.starts_with(' ')));
        assert_eq!(all.iter().map(|p| p.text).collect::<String>(), words);
        for text in ["\u{1f426}".repeat(20_000), "x".repeat(100_000), " ".repeat(100_000)] {
            let all: Vec<Piece<'_>> = pieces(&text).collect();
            assert!(all[..all.len() - 1].iter().all(|p| !p.clean && p.text.len() > PIECE_BYTES - 4));
            assert_eq!(all.iter().map(|p| p.text).collect::<String>(), text);
        }
        assert_eq!(pieces("").count(), 0);
    }

    #[test]
    fn what_is_dropped_or_changed_is_seen() {
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        let plain = json!({"normalizer": null, "pre_tokenizer": byte_level, "model": {"type": "BPE"}, "added_tokens": []});
        assert_eq!(bytes_per_token_max(&plain, 10), Some(10));
        assert!(cuts_cleanly(&plain, &[]));
        let changed = |path: &str, value: Value| {
            let mut json = plain.clone();
            *json.pointer_mut(path).unwrap() = value;
            (bytes_per_token_max(&json, 10), cuts_cleanly(&json, &["known"]))
        };
        let split = |pattern: &str, behavior: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior});
            json!({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": false}]})
        };
        assert_eq!(changed("/normalizer", json!({"type": "NFC"})), (Some(30), true));
        assert_eq!(changed("/normalizer", json!({"type": "Strip"})), (None, false));
        assert_eq!(changed("/pre_tokenizer", json!({"type": "Whitespace"})), (None, false));
        assert_eq!(changed("/pre_tokenizer", split("known", "Isolated")), (Some(10), true));
        assert_eq!(changed("/pre_tokenizer", split("other", "Isolated")), (Some(10), false));
        assert_eq!(changed("/pre_tokenizer", split("other", "Removed")), (None, false));
        assert_eq!(changed("/model/type", json!("WordPiece")), (None, false));
        let added = |token: Value| changed("/added_tokens", json!([token]));
        assert_eq!(added(json!({"content": "<s>"})), (Some(10), true));
        assert_eq!(added(json!({"content": "a b"})), (Some(10), false));
        assert_eq!(added(json!({"content": "<m>", "lstrip": true})), (None, false));
    }
}
