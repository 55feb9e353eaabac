//! Buffers of the way back through matrices, with adapters beside them or without.

use dunlin_kernels::{Scratch, TransposedScratch};

/// Buffers on the way through matrices.
#[derive(Default)]
pub(super) struct Through {
    pub(super) linear: Scratch,
    pub(super) transposed: TransposedScratch,
    /// Gradients between both matrices of adapters, by [`Projection`].
    pub(super) dinner: [Vec<f32>; 7],
}
