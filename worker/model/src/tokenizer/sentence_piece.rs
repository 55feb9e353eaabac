//! SentencePiece's byte-pair encoding, as `llama` tokenizers of GGUF files have it.
//!
//! A text begins as its characters. Of all neighbours that make a piece when put together, those with the best score are (the leftmost of the
//! same score), until there are none. A character that is no piece becomes its bytes. The `tokenizers` crate ranks *pairs*: that is the same only as
//! long as no two pieces have one score and no piece is made from two pairs at one place, which a vocabulary that was extended by hand does not hold to.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

/// Pieces of a vocabulary.
pub(super) struct SentencePiece {
    /// Those that text can become, with their scores.
    pieces: HashMap<String, (u32, f32)>,
    /// The token of every byte.
    bytes: [u32; 256],
    /// A text, and what is behind a special token, is given a space at its beginning.
    space_first: bool,
}

/// What a space is written as.
pub(super) const SPACE: char = '\u{2581}';

/// A part of the text that is a piece or a character.
struct Symbol {
    start: usize,
    /// The same as `start` when the symbol before has taken it.
    end: usize,
    before: Option<usize>,
    behind: Option<usize>,
}

/// Neighbours that make a piece. The greatest comes first.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Of both, to see that neither has changed since.
    bytes: usize,
}

impl SentencePiece {
    pub(super) fn new(
        pieces: impl IntoIterator<Item = (String, u32, f32)>,
        bytes: [u32; 256],
        space_first: bool,
    ) -> Self {
        // Zeroes of both signs are the same score.
        let pieces = pieces.into_iter().map(|(text, id, score)| (text, (id, score + 0.0))).collect();
        Self { pieces, bytes, space_first }
    }

    /// The tokens of a text without special ones.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let space = if self.space_first { " " } else { "" };
        let text = [space, text].concat().replace(' ', SPACE.encode_utf8(&mut [0; 4]));
        let mut symbols = characters(&text);
        let mut pairs = BinaryHeap::new();
        for right in 1..symbols.len() {
            pairs.extend(self.pair(&text, &symbols, right - 1, right));
        }
        while let Some(Pair { left, right, bytes, .. }) = pairs.pop() {
            let (a, b) = (&symbols[left], &symbols[right]);
            if a.start == a.end || b.start == b.end || b.end - a.start != bytes {
                continue;
            }
            let (end, before, behind) = (b.end, a.before, b.behind);
            (symbols[left].end, symbols[left].behind) = (end, behind);
            symbols[right].end = symbols[right].start;
            if let Some(behind) = behind {
                symbols[behind].before = Some(left);
                pairs.extend(self.pair(&text, &symbols, left, behind));
            }
            if let Some(before) = before {
                pairs.extend(self.pair(&text, &symbols, before, left));
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let piece = &text[symbol.start..symbol.end];
            match self.pieces.get(piece) {
                Some((id, _)) => out.push(*id),
                None => out.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let whole = &text[symbols[left].start..symbols[right].end];
        let (_, score) = self.pieces.get(whole)?;
        Some(Pair { score: *score, left, right, bytes: whole.len() })
    }
}

fn characters(text: &str) -> Vec<Symbol> {
    let starts = text.char_indices().map(|(start, _)| start);
    let ends = starts.clone().skip(1).chain([text.len()]);
    let mut symbols: Vec<Symbol> = starts
        .zip(ends)
        .enumerate()
        .map(|(i, (start, end))| Symbol { start, end, before: i.checked_sub(1), behind: Some(i + 1) })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.behind = None;
    }
    symbols
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}
