//! The state of a stage as it was at one moment, for whoever reads it while training goes on: mates that join, checkpoints.
//!
//! Taking one copies nothing. The next update does, what is still being read.

use std::ops::Range;

use dunlin_kernels::{Isa, Pool};

use crate::optimizer::Checked;
use crate::root::{self, Node};

/// Parameters, and what is kept beside them, after `step` updates.
#[derive(Clone)]
pub struct Snapshot {
    stage: u32,
    step: u64,
    /// The parameters, the optimizer's vectors, the parameters before the last update.
    vectors: Vec<Checked>,
}

impl Snapshot {
    pub(super) fn new(stage: u32, step: u64, vectors: Vec<Checked>) -> Self {
        Self { stage, step, vectors }
    }

    /// Index of the stage in the pipeline.
    #[must_use]
    pub fn stage(&self) -> u32 {
        self.stage
    }

    /// Updates applied.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Parameters.
    ///
    /// # Panics
    /// Never: a state has parameters.
    #[must_use]
    pub fn parameters(&self) -> &[f32] {
        self.vectors.first().map_or(&[], Checked::values)
    }

    /// What is kept beside them.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.vectors.get(1..).unwrap_or_default().iter().map(Checked::values)
    }

    /// All vectors.
    pub fn vectors(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.vectors.iter().map(Checked::values)
    }

    /// Whether all of it is what updates have written; else a chunk that is not, counted through all vectors.
    #[must_use]
    pub fn changed(&self) -> Option<Range<usize>> {
        let isa = Isa::best();
        let len = self.parameters().len();
        (0..).zip(&self.vectors).find_map(|(i, vector)| {
            let Range { start, end } = vector.changed(isa)?;
            Some(i * len + start..i * len + end)
        })
    }

    /// The leaves of its tree ([`root`]).
    #[must_use]
    pub fn leaves(&self, pool: &Pool) -> Vec<Node> {
        let vectors: Vec<&[f32]> = self.vectors().collect();
        root::leaves(pool, &vectors)
    }
}
