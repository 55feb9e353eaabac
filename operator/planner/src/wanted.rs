//! What a layout is for: a model, and how much memory its layers take wherever they are.

use std::collections::BTreeSet;

use dunlin_swarm::{Layers, ModelId, ModelSizes};

/// What a layout is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayoutGoal {
    /// The model to divide.
    pub model: ModelId,
    /// Weights of each layer in memory, in bytes; the first with the embedding, the last with the head.
    pub layer_bytes: Vec<u64>,
    /// What the first and the last layer share when one peer has both, in bytes.
    pub shared_bytes: u64,
    /// KV cache of one sequence of the greatest length in one layer, in bytes: who executes a layer needs that much at least.
    pub sequence_bytes: u64,
    /// Stage peers.
    pub peers: usize,
    /// How many other peers hold each layer.
    pub shadows: usize,
}

impl LayoutGoal {
    /// A model of these sizes over so many peers, each layer on so many others.
    #[must_use]
    pub fn of(model: ModelId, sizes: ModelSizes, peers: usize, shadows: usize) -> Self {
        let ModelSizes { layer_bytes, shared_bytes, sequence_bytes } = sizes;
        Self { model, layer_bytes, shared_bytes, sequence_bytes, peers, shadows }
    }

    /// Number of layers of the model.
    #[must_use]
    pub fn layers(&self) -> u32 {
        u32::try_from(self.layer_bytes.len()).unwrap_or(u32::MAX)
    }

    /// Weights of one layer; 0 beyond the model.
    #[must_use]
    pub fn bytes(&self, layer: u32) -> u64 {
        self.layer_bytes.get(layer as usize).copied().unwrap_or(0)
    }

    /// What a peer needs room for that executes `span` and holds the layers of `shadows` for others.
    #[must_use]
    pub fn need(&self, span: Layers, shadows: &BTreeSet<u32>) -> u64 {
        let others = shadows.iter().copied().filter(|layer| !span.contains(*layer));
        let held: BTreeSet<u32> = span.iter().chain(others).collect();
        let both = self.layers() > 1 && held.contains(&0) && held.contains(&(self.layers() - 1));
        let weights = held.iter().map(|layer| self.bytes(*layer)).fold(0, u64::saturating_add);
        let cache = u64::from(span.len()).saturating_mul(self.sequence_bytes);
        weights.saturating_add(cache).saturating_sub(if both { self.shared_bytes } else { 0 })
    }

    /// How many peers with this room it takes to execute all layers; `None` when no number suffices.
    #[must_use]
    pub fn peers_with(&self, room_bytes: u64) -> Option<u32> {
        let (mut start, mut peers) = (0, 0);
        while start < self.layers() {
            let fits = |end: &u32| self.need(Layers::new(start, *end), &BTreeSet::new()) <= room_bytes;
            (start, peers) = ((start + 1..=self.layers()).rev().find(fits)?, peers + 1);
        }
        Some(peers)
    }
}
