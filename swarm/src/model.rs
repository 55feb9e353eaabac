//! Models, as far as it matters who has which of their layers.

use serde::{Deserialize, Serialize};

/// A model, by its name and by what it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// The name clients ask for.
    pub name: String,
    /// A digest of its source: peers of different digests never work together.
    pub digest: String,
}

/// Whether two processes are of different models, by the digests that they say of themselves. Whoever says none (it is empty) may be of any: builds
/// from before, and the processes of a swarm on one machine.
#[must_use]
pub fn is_other_model(own: &str, said: &str) -> bool {
    !own.is_empty() && !said.is_empty() && own != said
}

/// Sizes of a model, as its workers read them from its header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSizes {
    /// Weights of each layer in memory, in bytes; the first with the embedding, the last with the head.
    pub layer_bytes: Vec<u64>,
    /// What the first and the last layer share when one peer has both, in bytes.
    pub shared_bytes: u64,
    /// KV cache of one sequence of the greatest length in one layer, in bytes.
    pub sequence_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::is_other_model;

    #[test]
    fn who_says_no_digest_is_of_no_other_model() {
        assert!(is_other_model("a", "b"));
        assert!(!is_other_model("a", "a"));
        assert!(!is_other_model("", "b") && !is_other_model("a", "") && !is_other_model("", ""));
    }
}
