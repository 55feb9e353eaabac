//! Layers of a model, and ranges of them.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A half-open range of layers, `start..end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Layers {
    /// First layer.
    pub start: u32,
    /// One past the last layer.
    pub end: u32,
}

impl Layers {
    /// `start..end`; an `end` before `start` gives an empty range at `start`.
    #[must_use]
    pub fn new(start: u32, end: u32) -> Self {
        Self { start, end: end.max(start) }
    }

    /// Number of layers.
    #[must_use]
    pub fn len(self) -> u32 {
        self.end - self.start
    }

    /// No layers at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Is `layer` inside?
    #[must_use]
    pub fn contains(self, layer: u32) -> bool {
        self.start <= layer && layer < self.end
    }

    /// Is all of `other` inside?
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// Do the two share a layer?
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// The layers of both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Every layer index.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.start..self.end
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{},{})", self.start, self.end)
    }
}

/// `layers 0 to 1, 7 and 9 to 11`, the last ones included.
pub(crate) fn in_words(layers: &[Layers]) -> String {
    let range = |l: &Layers| match l.end.saturating_sub(1) {
        last if last > l.start => format!("{} to {last}", l.start),
        _ => l.start.to_string(),
    };
    let noun = if let [Layers { start, end }] = layers
        && end - start < 2
    {
        "layer"
    } else {
        "layers"
    };
    match layers {
        [] => "some layers".to_owned(),
        [one] => format!("{noun} {}", range(one)),
        [all @ .., last] => {
            let all: Vec<String> = all.iter().map(range).collect();
            format!("{noun} {} and {}", all.join(", "), range(last))
        }
    }
}

/// Joins sorted or unsorted layer indices into maximal ranges.
#[must_use]
pub fn ranges(layers: &BTreeSet<u32>) -> Vec<Layers> {
    let mut out: Vec<Layers> = Vec::new();
    for &layer in layers {
        match out.last_mut() {
            Some(last) if last.end == layer => last.end = layer + 1,
            _ => out.push(Layers::new(layer, layer + 1)),
        }
    }
    out
}

/// Every layer index of a list of ranges.
#[must_use]
pub fn layer_set(ranges: &[Layers]) -> BTreeSet<u32> {
    ranges.iter().flat_map(|r| r.iter()).collect()
}
