//! The root of a state: what a stage is after so many updates, in 32 bytes that nobody can find another state for.
//!
//! SHA-256 over a tree. Its leaves are chunks of [`CHUNK`] values of the parameters, then of the vectors that are kept beside them, one after the other:
//! `H(0x00 || version of the arithmetic, 4 bytes || index of the chunk, 8 bytes || values, 4 bytes each)`, all little-endian. Its nodes are
//! `H(0x01 || left || right)`; an odd one out goes up as it is. A chunk can be checked by itself, so that whoever gets a state from several
//! others knows which of them gave a wrong one. States that were computed with different arithmetic are never the same state.

use std::fmt;
use std::ops::Range;

use dunlin_kernels::{ARITHMETIC_VERSION, Pool};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::parts::in_parts;

/// Values of a leaf; the last of a vector may have fewer.
pub const CHUNK: usize = 1 << 15;

/// A node of the tree.
pub type Node = [u8; 32];

/// The root of a state; as text, hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct StateRoot(pub Node);

impl fmt::Display for StateRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<StateRoot> for String {
    fn from(root: StateRoot) -> Self {
        root.to_string()
    }
}

impl TryFrom<String> for StateRoot {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let byte = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
        let node = bytes.filter(|_| text.len() == 64).and_then(|bytes| bytes.try_into().ok());
        node.map(Self).ok_or_else(|| format!("`{text}` is no root: 64 hexadecimal digits"))
    }
}

/// The chunks of a vector of `len` values.
pub fn chunks(len: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    (0..len.div_ceil(CHUNK)).map(move |i| i * CHUNK..len.min((i + 1) * CHUNK))
}

/// The leaf of chunk `index` of a state.
#[must_use]
pub fn leaf(index: usize, values: &[f32]) -> Node {
    let mut hash = Sha256::new();
    hash.update([0]);
    hash.update(ARITHMETIC_VERSION.to_le_bytes());
    hash.update((index as u64).to_le_bytes());
    let mut bytes = [0u8; 4096];
    for values in values.chunks(bytes.len() / 4) {
        for (value, out) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
            *out = value.to_le_bytes();
        }
        hash.update(&bytes[..4 * values.len()]);
    }
    hash.finalize().into()
}

/// The leaves of a state: of its vectors, one after the other.
#[must_use]
pub fn leaves(pool: &Pool, vectors: &[&[f32]]) -> Vec<Node> {
    let all = vectors.iter().flat_map(|vector| chunks(vector.len()).map(|range| &vector[range]));
    let work = all.enumerate().map(|(index, values)| (index, values, Node::default())).collect();
    let work: Vec<(usize, &[f32], Node)> =
        in_parts(pool, work, |(index, values, out)| *out = leaf(*index, values));
    work.into_iter().map(|(.., node)| node).collect()
}

/// The root above some leaves; of none, the hash of nothing.
#[must_use]
pub fn root(leaves: &[Node]) -> StateRoot {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => {
                    let mut hash = Sha256::new();
                    hash.update([1]);
                    hash.update(left);
                    hash.update(right);
                    hash.finalize().into()
                }
                odd => odd[0],
            })
            .collect();
    }
    StateRoot(level.first().copied().unwrap_or_else(|| Sha256::digest([]).into()))
}

#[cfg(test)]
mod tests {
    use dunlin_kernels::{ARITHMETIC_VERSION, Pool};
    use sha2::{Digest, Sha256};

    use super::{CHUNK, StateRoot, chunks, leaf, leaves, root};

    #[test]
    fn a_root_is_the_hash_of_the_tree() {
        let values =
            |len: usize, from: usize| -> Vec<f32> { (from..from + len).map(|i| i as f32 * 0.5).collect() };
        let (a, b) = (values(CHUNK + 3, 0), values(7, 9));
        let hash = |parts: &[&[u8]]| -> [u8; 32] {
            let mut hash = Sha256::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().into()
        };
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let version = ARITHMETIC_VERSION.to_le_bytes();
        let expected = [
            hash(&[&[0], &version, &0u64.to_le_bytes(), &bytes(&a[..CHUNK])]),
            hash(&[&[0], &version, &1u64.to_le_bytes(), &bytes(&a[CHUNK..])]),
            hash(&[&[0], &version, &2u64.to_le_bytes(), &bytes(&b)]),
        ];
        for threads in [1, 2, 4] {
            assert_eq!(leaves(&Pool::new(threads), &[&a, &b]), expected);
        }
        let node = hash(&[&[1], &expected[0], &expected[1]]);
        assert_eq!(root(&expected).0, hash(&[&[1], &node, &expected[2]]));
        assert_eq!(root(&expected[..1]).0, expected[0]);
        // Vectors of other lengths are another state, and so are vectors in another order.
        assert_ne!(leaves(&Pool::new(1), &[&b, &a])[0], expected[0]);
        assert_eq!(chunks(2 * CHUNK).len(), 2);
        assert_eq!(chunks(0).len(), 0);
    }

    #[test]
    fn a_root_is_written_as_hexadecimal_digits() {
        let one = root(&[leaf(0, &[1.0])]);
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(text.len(), 66);
        assert_eq!(serde_json::from_str::<StateRoot>(&text).unwrap(), one);
        for wrong in ["", "00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(65)] {
            StateRoot::try_from(wrong.to_owned()).unwrap_err();
        }
    }
}
