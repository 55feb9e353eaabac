//! Tokens to text, with stop strings that never show.

use dunlin_model::{Decoder, Tokenizer};

/// Turns tokens into text and looks for stop strings.
#[derive(Clone, Debug, Default)]
pub struct TextWriter {
    decoder: Decoder,
    stop: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl TextWriter {
    /// For these stop strings (none of them empty).
    #[must_use]
    pub fn new(stop: Vec<String>) -> Self {
        Self { stop, ..Self::default() }
    }

    /// A stop string was found: what comes after it does not exist.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text that a token makes certain.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> String {
        let text = self.decoder.push(tokenizer, token);
        self.push_text(&text)
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> String {
        let rest = self.decoder.finish();
        let mut out = self.push_text(&rest);
        if !self.stopped {
            out.push_str(&std::mem::take(&mut self.held));
        }
        out
    }

    fn push_text(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stop.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Counts the characters of an answer.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    decoder: Decoder,
    whole: usize,
}

impl Counter {
    /// Characters that are whole before this token.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> usize {
        let before = self.whole;
        self.whole += self.decoder.push(tokenizer, token).chars().count();
        before
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Counter, TextWriter};
    use crate::testing::model;

    fn write(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut writer = TextWriter::new(stop.iter().map(|s| (*s).to_owned()).collect());
        let mut out: Vec<String> = pieces.iter().map(|piece| writer.push_text(piece)).collect();
        out.push(writer.finish());
        (out, writer.stopped())
    }

    #[test]
    fn text_flows_when_nothing_could_be_a_stop_string() {
        assert_eq!(write(&[], &["a", "b"]), (vec!["a".into(), "b".into(), String::new()], false));
    }

    #[test]
    fn a_stop_string_across_pieces_never_shows() {
        let (out, stopped) = write(&["\n\nEND"], &["one\n", "\nEN", "D two", " three"]);
        assert_eq!((out.concat().as_str(), stopped), ("one", true));
        assert_eq!(out[0], "one", "what may be a stop string is held back");
    }

    #[test]
    fn what_turns_out_not_to_be_one_is_given_out() {
        let (out, stopped) = write(&["abc"], &["xab", "d", "ab"]);
        assert_eq!((out, stopped), (vec!["x".into(), "abd".into(), String::new(), "ab".into()], false));
    }

    #[test]
    fn the_first_of_several_counts_and_characters_stay_whole() {
        let (out, stopped) = write(&["zz", "é!"], &["aé", "!bzz"]);
        assert_eq!((out.concat().as_str(), stopped), ("a", true));
    }

    #[test]
    fn a_character_of_several_tokens_counts_once() {
        let (mut counter, tokenizer) = (Counter::default(), model().tokenizer);
        let tokens = tokenizer.encode("aéé.", false).unwrap();
        let offsets: Vec<usize> = tokens.iter().map(|token| counter.push(&tokenizer, *token)).collect();
        assert_eq!(offsets, [0, 1, 1, 2, 2, 3]);
    }
}
