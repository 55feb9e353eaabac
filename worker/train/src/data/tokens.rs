//! One stream of tokens in memory.

use std::ops::Range;

use dunlin_store::digest::Hash;

/// Tokens held in memory: 16 GiB as 32-bit numbers.
pub(super) const TOKENS_MAX: usize = 1 << 32;

/// Tokens in as few bytes as the vocabulary needs.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Of at most 65,536 different ones.
    Narrow(Vec<u16>),
    /// Of a larger vocabulary.
    Wide(Vec<u32>),
}

impl Tokens {
    /// No tokens yet, of `vocab` different ones.
    #[must_use]
    pub fn new(vocab: usize) -> Self {
        if vocab <= 1 << 16 { Self::Narrow(Vec::new()) } else { Self::Wide(Vec::new()) }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(tokens) => tokens.len(),
            Self::Wide(tokens) => tokens.len(),
        }
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of each.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Narrow(_) => size_of::<u16>(),
            Self::Wide(_) => size_of::<u32>(),
        }
    }

    /// Adds `tokens`, all of the vocabulary.
    pub(super) fn push(&mut self, tokens: impl Iterator<Item = u32>) {
        match self {
            Self::Narrow(all) => all.extend(tokens.map(|t| t as u16)),
            Self::Wide(all) => all.extend(tokens),
        }
    }

    /// Appends those at `range` to `out`.
    pub(super) fn copy_to(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Self::Narrow(tokens) => out.extend(tokens[range].iter().map(|t| u32::from(*t))),
            Self::Wide(tokens) => out.extend_from_slice(&tokens[range]),
        }
    }

    /// SHA-256 of all tokens as little-endian 32-bit numbers, in hexadecimal: what the data is, whatever file it came from.
    #[must_use]
    pub fn sha256(&self) -> String {
        const AT_ONCE: usize = 1 << 12;
        let mut hash = Hash::default();
        let (mut tokens, mut bytes) = (Vec::new(), Vec::new());
        for start in (0..self.len()).step_by(AT_ONCE) {
            tokens.clear();
            bytes.clear();
            self.copy_to(start..self.len().min(start + AT_ONCE), &mut tokens);
            bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
            hash.update(&bytes);
        }
        hash.finish()
    }
}
