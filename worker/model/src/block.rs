//! The forward pass of a decoder block (Touvron et al. 2023) over rows of many sequences, as its [`BlockSpec`] says.

use dunlin_kernels::{
    AttentionRow, PAGE, Pool, RopeLayout, RopeTable, add, add_bias, all_finite, attention, geglu, linear,
    linear_add, linear_many, page_len, rms_norm, rope_rows, swiglu, write_kv,
};

use crate::adapter::low_rank::{self, AdaptedRows};
use crate::config::ModelConfig;
use crate::error::NonFinite;
use crate::spec::{Activation, Attention, BlockSpec, Mlp, Projection, Rotary, TensorRole};
use crate::weights::LayerWeights;

/// The KV cache of one sequence in one layer: page `i` has positions `16 i .. 16 i + 16`.
#[derive(Default)]
pub struct KvPages {
    /// Pages of [`Block::page_len`] values; empty where they were taken out.
    pub pages: Vec<Box<[f32]>>,
    /// So many of the first pages were taken out.
    taken: usize,
}

impl KvPages {
    /// Takes out the pages before page `first`: no row that is computed from now on sees them.
    pub fn take_before(&mut self, first: usize) -> impl Iterator<Item = Box<[f32]>> {
        let first = first.min(self.pages.len());
        let from = self.taken.min(first);
        self.taken = self.taken.max(first);
        self.pages[from..first].iter_mut().map(std::mem::take)
    }

    /// Takes out the pages from page `end` on.
    pub fn take_from(&mut self, end: usize) -> impl Iterator<Item = Box<[f32]>> {
        self.taken = self.taken.min(end);
        self.pages.drain(end.min(self.pages.len())..).filter(|page| !page.is_empty())
    }
}

/// Whose row it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowOf {
    /// Index of the sequence in the batch.
    pub sequence: usize,
    /// Its position; rows of one sequence come in order, without gaps.
    pub position: u32,
}

/// A value that is not finite, and where it was seen.
pub(crate) struct Flaw {
    pub(crate) op: &'static str,
    pub(crate) row: usize,
}

impl Flaw {
    /// The first row of `width` values with one that is not finite.
    pub(crate) fn find(op: &'static str, values: &[f32], width: usize) -> Result<(), Self> {
        match values.chunks_exact(width).position(|row| !all_finite(row)) {
            Some(row) => Err(Self { op, row }),
            None => Ok(()),
        }
    }
}

/// Queries, keys and values of some rows.
#[derive(Default)]
pub(crate) struct Projected {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

/// Both inner projections of the feed-forward part.
#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) gate: Vec<f32>,
    pub(crate) up: Vec<f32>,
}

/// What the forward pass of a block computes on its way. Serving has one for all blocks; training keeps one for each, as a tape.
#[derive(Default)]
pub(crate) struct Activations {
    pub(crate) projected: Projected,
    pub(crate) attended: Vec<f32>,
    pub(crate) inner: Inner,
    /// Rows between attention and feed-forward part, where they are kept.
    pub(crate) middle: Option<Vec<f32>>,
}

/// The forward pass of the blocks of a model, but for what rows see of one another: serving looks that up in pages of many sequences, and training in
/// whole ones.
pub(crate) struct Parts {
    pub(crate) config: ModelConfig,
    /// One for each way of turning.
    tables: Vec<(Rotary, RopeTable)>,
    normed: Vec<f32>,
    product: Vec<f32>,
    /// Rows on their way through a norm, where the block has norms behind its parts.
    outputs: Vec<f32>,
    /// Between both matrices of an adapter; heads while they are normed.
    inner: Vec<f32>,
}

fn fit(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

/// The block that is computed.
#[derive(Clone, Copy)]
pub struct BlockWeights<'a> {
    /// Its number in the model.
    pub layer: u32,
    /// Its weights.
    pub weights: &'a LayerWeights,
    /// Adapters of this block, and which rows they are for.
    pub adapted: &'a [AdaptedRows<'a>],
}

impl Parts {
    /// For positions below `positions_max`.
    pub(crate) fn new(config: &ModelConfig, positions_max: usize) -> Self {
        let head_dim = config.block.attention.head_dim;
        let table = |rotary: &Rotary| (rotary.clone(), rotary.table(head_dim, positions_max));
        Self {
            tables: config.rotaries().into_iter().map(table).collect(),
            config: config.clone(),
            normed: Vec::new(),
            product: Vec::new(),
            outputs: Vec::new(),
            inner: Vec::new(),
        }
    }

    /// How a layer turns.
    pub(crate) fn table(&self, layer: u32) -> (&RopeTable, RopeLayout) {
        let rotary = &self.config.block(layer).rotary;
        let table = self.tables.iter().find(|(own, _)| own == rotary);
        let (_, table) = table.expect("there is a table for each way of turning of the model's blocks");
        (table, rotary.layout)
    }

    /// From the rows before a block to those behind it, in place. `attend` fills in what the rows see of one another.
    #[expect(
        clippy::too_many_arguments,
        reason = "a block, its rows, what it leaves, and what is outside of it"
    )]
    pub(crate) fn forward(
        &mut self,
        pool: &Pool,
        w: BlockWeights<'_>,
        x: &mut [f32],
        positions: &[u32],
        out: &mut Activations,
        attend: impl FnOnce(&Attention, &Projected, &mut [f32]),
    ) -> Result<(), Flaw> {
        self.project(pool, w, x, positions, &mut out.projected)?;
        fit(&mut out.attended, out.projected.q.len());
        attend(&self.config.block(w.layer).attention, &out.projected, &mut out.attended);
        self.add_to_rows(pool, w, (Projection::Output, TensorRole::AttentionPostNorm), &out.attended, x);
        if let Some(middle) = &mut out.middle {
            middle.clear();
            middle.extend_from_slice(x);
        }
        self.feed_forward(pool, w, x, &mut out.inner)
    }

    /// Norm, projections with biases, norms of heads where the model has them, and rotation of queries and keys to the rows' positions.
    fn project(
        &mut self,
        pool: &Pool,
        BlockWeights { layer, weights: w, adapted }: BlockWeights<'_>,
        x: &[f32],
        positions: &[u32],
        out: &mut Projected,
    ) -> Result<(), Flaw> {
        let (hidden, m) = (self.config.hidden, positions.len());
        let BlockSpec { norm, attention, .. } = self.config.block(layer);
        let (q_width, kv_width) = (attention.q_width(), attention.kv_width());
        fit(&mut self.normed, m * hidden);
        fit(&mut out.q, m * q_width);
        fit(&mut out.k, m * kv_width);
        fit(&mut out.v, m * kv_width);
        rms_norm(pool, x, w.vector(TensorRole::AttentionNorm), norm.eps, m, &mut self.normed);
        let outs = &mut [out.q.as_mut_slice(), &mut out.k, &mut out.v];
        let which = [Projection::Query, Projection::Key, Projection::Value];
        linear_many(pool, &which.map(|which| w.matrix(which)), &self.normed, m, outs);
        for (which, out) in which.into_iter().zip(&mut *outs) {
            low_rank::add(pool, adapted, which, &self.normed, out, &mut self.inner);
        }
        if attention.bias {
            for (out, which) in outs.iter_mut().zip(which) {
                add_bias(pool, out, w.vector(TensorRole::Bias(which)));
            }
        }
        if attention.qk_norm {
            for (heads, role) in [(&mut out.q, TensorRole::QueryNorm), (&mut out.k, TensorRole::KeyNorm)] {
                fit(&mut self.inner, heads.len());
                let count = heads.len() / attention.head_dim;
                rms_norm(pool, heads, w.vector(role), norm.eps, count, &mut self.inner);
                std::mem::swap(heads, &mut self.inner);
            }
        }
        if m > 0 {
            let (table, layout) = self.table(layer);
            rope_rows(pool, table, layout, &mut out.q, positions, false);
            rope_rows(pool, table, layout, &mut out.k, positions, false);
        }
        // The softmax gives no weight to a score that is NaN, so what is not finite would be lost there.
        Flaw::find("queries", &out.q, q_width)?;
        Flaw::find("keys", &out.k, kv_width)?;
        Flaw::find("values", &out.v, kv_width)
    }

    /// Adds the feed-forward part to the rows.
    fn feed_forward(
        &mut self,
        pool: &Pool,
        w: BlockWeights<'_>,
        x: &mut [f32],
        inner: &mut Inner,
    ) -> Result<(), Flaw> {
        let BlockWeights { layer, weights, adapted } = w;
        let hidden = self.config.hidden;
        let m = x.len() / hidden;
        let BlockSpec { norm, mlp, .. } = self.config.block(layer);
        let (eps, Mlp { width, activation }) = (norm.eps, *mlp);
        let mut product = std::mem::take(&mut self.product);
        fit(&mut self.normed, m * hidden);
        fit(&mut product, m * width);
        fit(&mut inner.gate, m * width);
        fit(&mut inner.up, m * width);
        rms_norm(pool, x, weights.vector(TensorRole::MlpNorm), eps, m, &mut self.normed);
        let outs = &mut [inner.gate.as_mut_slice(), &mut inner.up];
        let which = [Projection::Gate, Projection::Up];
        linear_many(pool, &which.map(|which| weights.matrix(which)), &self.normed, m, outs);
        for (which, out) in which.into_iter().zip(&mut *outs) {
            low_rank::add(pool, adapted, which, &self.normed, out, &mut self.inner);
        }
        match activation {
            Activation::Silu => swiglu(pool, &inner.gate, &inner.up, &mut product),
            Activation::GeluTanh => geglu(pool, &inner.gate, &inner.up, &mut product),
        }
        self.add_to_rows(pool, w, (Projection::Down, TensorRole::MlpPostNorm), &product, x);
        self.product = product;
        Flaw::find("feed-forward", x, hidden)
    }

    /// Adds to the rows what a matrix and the adapters beside it make of `inputs`; normed before, where the block has norms there.
    fn add_to_rows(
        &mut self,
        pool: &Pool,
        BlockWeights { layer, weights, adapted }: BlockWeights<'_>,
        (which, post_norm): (Projection, TensorRole),
        inputs: &[f32],
        x: &mut [f32],
    ) {
        let m = x.len() / self.config.hidden;
        let BlockSpec { norm, post_norms, .. } = self.config.block(layer);
        let matrix = weights.matrix(which);
        if !post_norms {
            linear_add(pool, matrix, inputs, m, x);
            return low_rank::add(pool, adapted, which, inputs, x, &mut self.inner);
        }
        let mut rows = std::mem::take(&mut self.outputs);
        fit(&mut rows, x.len());
        fit(&mut self.normed, x.len());
        linear(pool, matrix, inputs, m, &mut rows);
        low_rank::add(pool, adapted, which, inputs, &mut rows, &mut self.inner);
        rms_norm(pool, &rows, weights.vector(post_norm), norm.eps, m, &mut self.normed);
        add(x, &self.normed);
        self.outputs = rows;
    }
}

/// What all blocks of a model share, and buffers.
pub struct Block {
    parts: Parts,
    activations: Activations,
    positions: Vec<u32>,
}

impl Block {
    /// For positions below `positions_max`.
    #[must_use]
    pub fn new(config: &ModelConfig, positions_max: usize) -> Self {
        let parts = Parts::new(config, positions_max);
        Self { parts, activations: Activations::default(), positions: Vec::new() }
    }

    /// Values of one page of one layer.
    #[must_use]
    pub fn page_len(&self) -> usize {
        let attention = &self.parts.config.block.attention;
        page_len(attention.kv_heads, attention.head_dim)
    }

    /// Runs a block over the rows `x` (`rows.len() * hidden`, changed in place); keys and values go into the pages of their sequences,
    /// `kv[sequence]`, which must reach up to the row's position.
    ///
    /// # Errors
    /// When a result is not finite.
    ///
    /// # Panics
    /// When lengths do not fit or a page is missing.
    pub fn forward(
        &mut self,
        pool: &Pool,
        w: BlockWeights<'_>,
        x: &mut [f32],
        rows: &[RowOf],
        kv: &mut [&mut KvPages],
    ) -> Result<(), NonFinite> {
        let (hidden, m) = (self.parts.config.hidden, rows.len());
        assert_eq!(x.len(), m * hidden, "{m} rows of {hidden}");
        self.positions.clear();
        self.positions.extend(rows.iter().map(|row| row.position));
        let attend = |c: &Attention, projected: &Projected, out: &mut [f32]| {
            attend(pool, c, projected, rows, kv, out);
        };
        self.parts
            .forward(pool, w, x, &self.positions, &mut self.activations, attend)
            .map_err(|flaw| NonFinite { layer: w.layer, row: flaw.row })
    }
}

/// Puts keys and values into their pages, and looks up what each row sees there.
fn attend(
    pool: &Pool,
    c: &Attention,
    Projected { q, k, v }: &Projected,
    rows: &[RowOf],
    kv: &mut [&mut KvPages],
    out: &mut [f32],
) {
    let kv_width = c.kv_width();
    let keys_values = k.chunks_exact(kv_width).zip(v.chunks_exact(kv_width));
    for (row, (k, v)) in rows.iter().zip(keys_values) {
        let position = row.position as usize;
        let page = &mut kv[row.sequence].pages[position / PAGE];
        write_kv(page, position % PAGE, k, v, c.kv_heads, c.head_dim);
    }
    let pages: Vec<Vec<&[f32]>> =
        kv.iter().map(|kv| kv.pages.iter().map(|page| page.as_ref()).collect()).collect();
    let seen: Vec<AttentionRow<'_>> = rows
        .iter()
        .map(|row| AttentionRow {
            pages: &pages[row.sequence],
            from: c.first_seen(row.position) as usize,
            len: row.position as usize + 1,
        })
        .collect();
    attention(pool, q, &seen, c.heads(), out);
}
