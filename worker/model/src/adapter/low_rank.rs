//! `y += B (A x) * alpha / rank` beside a matrix (Hu et al. 2021).

use std::ops::Range;

use dunlin_kernels::{Matrix, Pool, RopeLayout, linear, linear_add};

use crate::config::ModelConfig;
use crate::spec::Projection;

/// Two thin matrices beside one of a block.
pub struct LowRank {
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    pub(crate) scale: f32,
}

impl LowRank {
    /// From `a` (`rank` rows of `k`) and `b` (`n` rows of `rank`).
    pub(crate) fn new((n, k, rank): (usize, usize, usize), a: &[f32], b: &[f32], scale: f32) -> Self {
        Self { a: Matrix::from_f32(rank, k, a), b: Matrix::from_f32(n, rank, b), scale }
    }

    /// All zero, to be set by training.
    pub(crate) fn zeroed(n: usize, k: usize, rank: usize, scale: f32) -> Self {
        Self { a: Matrix::zeroed_f32(rank, k), b: Matrix::zeroed_f32(n, rank), scale }
    }

    /// The first matrix, `rank x k`.
    #[must_use]
    pub fn a(&self) -> &Matrix {
        &self.a
    }

    /// The second one, `n x rank`, its rows in the order of the model's file.
    #[must_use]
    pub fn b(&self) -> &Matrix {
        &self.b
    }

    /// What the values between both are multiplied by: `alpha / rank`.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// `A x * scale` of `m` rows, `m * rank` values.
    pub(crate) fn inner(&self, pool: &Pool, x: &[f32], m: usize, out: &mut Vec<f32>) {
        out.resize(m * self.a.n(), 0.0);
        linear(pool, &self.a, x, m, out);
        out.iter_mut().for_each(|v| *v *= self.scale);
    }
}

/// What an adapter adds in one block; by [`Projection`].
#[derive(Default)]
pub struct LayerAdapter {
    pub(crate) pairs: [Option<LowRank>; Projection::ALL.len()],
}

impl LayerAdapter {
    /// Memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.pairs.iter().flatten().map(|pair| pair.a.bytes() + pair.b.bytes()).sum()
    }

    /// What it adds beside a matrix.
    #[must_use]
    pub fn pair(&self, which: Projection) -> Option<&LowRank> {
        self.pairs[which as usize].as_ref()
    }
}

/// Rows of a batch that an adapter is for.
#[derive(Clone)]
pub struct AdaptedRows<'a> {
    /// Indices of the rows in the batch.
    pub rows: Range<usize>,
    /// What it adds in the block that is computed.
    pub adapter: &'a LayerAdapter,
}

/// Adds what the adapters of some rows add behind one matrix: `x` has the inputs of all rows of the batch, `y` their outputs.
pub(crate) fn add(
    pool: &Pool,
    adapted: &[AdaptedRows<'_>],
    which: Projection,
    x: &[f32],
    y: &mut [f32],
    inner: &mut Vec<f32>,
) {
    for AdaptedRows { rows, adapter } in adapted {
        let Some(pair) = adapter.pair(which) else { continue };
        let (n, k, m) = (pair.b.n(), pair.a.k(), rows.len());
        pair.inner(pool, &x[rows.start * k..rows.end * k], m, inner);
        linear_add(pool, &pair.b, inner, m, &mut y[rows.start * n..rows.end * n]);
    }
}

/// Row `i` of a matrix in Hugging Face's order is row `file_row(i)` in the file's: GGUF files of some families interleave both halves of each
/// head of queries and keys.
pub(crate) fn file_row(config: &ModelConfig, which: Projection, i: usize) -> usize {
    let rotated = matches!(which, Projection::Query | Projection::Key);
    if !rotated || config.block.rotary.layout == RopeLayout::Halves {
        return i;
    }
    let (head_dim, half) = (config.block.attention.head_dim, config.block.attention.head_dim / 2);
    let (head, at) = (i / head_dim, i % head_dim);
    head * head_dim + 2 * (at % half) + at / half
}

/// Rows of `width` values in the file's order.
pub(crate) fn in_file_order(
    config: &ModelConfig,
    which: Projection,
    values: &[f32],
    width: usize,
    out: &mut Vec<f32>,
) {
    out.resize(values.len(), 0.0);
    for (i, row) in values.chunks_exact(width).enumerate() {
        out[file_row(config, which, i) * width..][..width].copy_from_slice(row);
    }
}
