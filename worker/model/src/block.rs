//! One decoder block over rows of many sequences (Touvron et al. 2023).

use dunlin_kernels::{
    AttentionRow, PAGE, Pool, RopeTable, Scratch, add_bias, all_finite, attention, linear_add, linear_many,
    page_len, rms_norm, rope_rows, swiglu, write_kv,
};

use crate::adapter::Projection;
use crate::adapter::low_rank::{self, AdaptedRows};
use crate::config::ModelConfig;
use crate::error::NonFinite;
use crate::weights::LayerWeights;

/// The KV cache of one sequence in one layer: page `i` has positions `16 i .. 16 i + 16`.
#[derive(Default)]
pub struct KvPages {
    /// Pages of [`Block::page_len`] values.
    pub pages: Vec<Box<[f32]>>,
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

/// A block but for its attention, which serving does over pages of many sequences and training over whole ones.
pub(crate) struct Parts {
    pub(crate) config: ModelConfig,
    pub(crate) rope: RopeTable,
    pub(crate) scratch: Scratch,
    normed: Vec<f32>,
    product: Vec<f32>,
    /// Between both matrices of an adapter; heads while they are normed.
    inner: Vec<f32>,
}

fn fit(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

impl Parts {
    /// For positions below `positions_max`.
    pub(crate) fn new(config: &ModelConfig, positions_max: usize) -> Self {
        let rope =
            RopeTable::new(config.head_dim, config.rope_base, config.rope_scaling.clone(), positions_max);
        Self {
            config: config.clone(),
            rope,
            scratch: Scratch::default(),
            normed: Vec::new(),
            product: Vec::new(),
            inner: Vec::new(),
        }
    }

    /// Norm, projections with biases, norms of heads where the model has them, and rotation of queries and keys to the rows' positions.
    pub(crate) fn project(
        &mut self,
        pool: &Pool,
        w: &LayerWeights,
        adapted: &[AdaptedRows<'_>],
        x: &[f32],
        positions: &[u32],
        out: &mut Projected,
    ) -> Result<(), Flaw> {
        let (c, m) = (&self.config, positions.len());
        let (q_width, kv_width) = (c.q_width(), c.kv_width());
        fit(&mut self.normed, m * c.hidden);
        fit(&mut out.q, m * q_width);
        fit(&mut out.k, m * kv_width);
        fit(&mut out.v, m * kv_width);
        rms_norm(pool, x, &w.attention_norm, c.rms_eps, m, &mut self.normed);
        let outs = &mut [out.q.as_mut_slice(), &mut out.k, &mut out.v];
        linear_many(pool, &[&w.q, &w.k, &w.v], &self.normed, m, outs, &mut self.scratch);
        for (which, out) in
            [Projection::Query, Projection::Key, Projection::Value].into_iter().zip(&mut *outs)
        {
            low_rank::add(pool, adapted, which, &self.normed, out, &mut self.inner, &mut self.scratch);
        }
        if let Some(bias) = &w.bias {
            for (out, bias) in outs.iter_mut().zip(bias) {
                add_bias(pool, out, bias);
            }
        }
        if let Some(norms) = &w.qk_norm {
            for (heads, norm) in [&mut out.q, &mut out.k].into_iter().zip(norms) {
                fit(&mut self.inner, heads.len());
                rms_norm(pool, heads, norm, c.rms_eps, heads.len() / c.head_dim, &mut self.inner);
                std::mem::swap(heads, &mut self.inner);
            }
        }
        if m > 0 {
            rope_rows(pool, &self.rope, c.rope_layout, &mut out.q, positions, false);
            rope_rows(pool, &self.rope, c.rope_layout, &mut out.k, positions, false);
        }
        // The softmax gives no weight to a score that is NaN, so what is not finite would be lost there.
        Flaw::find("queries", &out.q, q_width)?;
        Flaw::find("keys", &out.k, kv_width)?;
        Flaw::find("values", &out.v, kv_width)
    }

    /// Adds the projection of what was attended to, to the rows.
    pub(crate) fn attention_output(
        &mut self,
        pool: &Pool,
        w: &LayerWeights,
        adapted: &[AdaptedRows<'_>],
        attended: &[f32],
        x: &mut [f32],
    ) {
        let m = x.len() / self.config.hidden;
        linear_add(pool, &w.o, attended, m, x, &mut self.scratch);
        low_rank::add(pool, adapted, Projection::Output, attended, x, &mut self.inner, &mut self.scratch);
    }

    /// Adds the feed-forward part to the rows.
    pub(crate) fn feed_forward(
        &mut self,
        pool: &Pool,
        w: &LayerWeights,
        adapted: &[AdaptedRows<'_>],
        x: &mut [f32],
        inner: &mut Inner,
    ) -> Result<(), Flaw> {
        let c = &self.config;
        let m = x.len() / c.hidden;
        fit(&mut self.normed, m * c.hidden);
        fit(&mut self.product, m * c.ffn);
        fit(&mut inner.gate, m * c.ffn);
        fit(&mut inner.up, m * c.ffn);
        rms_norm(pool, x, &w.ffn_norm, c.rms_eps, m, &mut self.normed);
        let outs = &mut [inner.gate.as_mut_slice(), &mut inner.up];
        linear_many(pool, &[&w.gate, &w.up], &self.normed, m, outs, &mut self.scratch);
        for (which, out) in [Projection::Gate, Projection::Up].into_iter().zip(&mut *outs) {
            low_rank::add(pool, adapted, which, &self.normed, out, &mut self.inner, &mut self.scratch);
        }
        swiglu(pool, &inner.gate, &inner.up, &mut self.product);
        linear_add(pool, &w.down, &self.product, m, x, &mut self.scratch);
        low_rank::add(pool, adapted, Projection::Down, &self.product, x, &mut self.inner, &mut self.scratch);
        Flaw::find("feed-forward", x, c.hidden)
    }
}

/// What all blocks of a model share, and buffers.
pub struct Block {
    parts: Parts,
    projected: Projected,
    inner: Inner,
    attended: Vec<f32>,
    positions: Vec<u32>,
}

impl Block {
    /// For positions below `positions_max`.
    #[must_use]
    pub fn new(config: &ModelConfig, positions_max: usize) -> Self {
        Self {
            parts: Parts::new(config, positions_max),
            projected: Projected::default(),
            inner: Inner::default(),
            attended: Vec::new(),
            positions: Vec::new(),
        }
    }

    /// Values of one page of one layer.
    #[must_use]
    pub fn page_len(&self) -> usize {
        page_len(self.parts.config.kv_heads, self.parts.config.head_dim)
    }

    /// Buffers of matrix products, for the head.
    pub fn scratch(&mut self) -> &mut Scratch {
        &mut self.parts.scratch
    }

    /// Runs block `layer` over the rows `x` (`rows.len() * hidden`, changed in place); keys and values go into the pages of their
    /// sequences, `kv[sequence]`, which must reach up to the row's position. Adapters of this block are for the rows `adapted`.
    ///
    /// # Errors
    /// When a result is not finite.
    ///
    /// # Panics
    /// When lengths do not fit or a page is missing.
    pub fn forward(
        &mut self,
        pool: &Pool,
        layer: u32,
        w: &LayerWeights,
        adapted: &[AdaptedRows<'_>],
        x: &mut [f32],
        rows: &[RowOf],
        kv: &mut [&mut KvPages],
    ) -> Result<(), NonFinite> {
        let (hidden, m) = (self.parts.config.hidden, rows.len());
        assert_eq!(x.len(), m * hidden, "{m} rows of {hidden}");
        let found = |flaw: Flaw| NonFinite { layer, row: flaw.row };
        self.positions.clear();
        self.positions.extend(rows.iter().map(|row| row.position));
        self.parts.project(pool, w, adapted, x, &self.positions, &mut self.projected).map_err(found)?;
        self.attend(pool, rows, kv);
        self.parts.attention_output(pool, w, adapted, &self.attended, x);
        self.parts.feed_forward(pool, w, adapted, x, &mut self.inner).map_err(found)
    }

    fn attend(&mut self, pool: &Pool, rows: &[RowOf], kv: &mut [&mut KvPages]) {
        let c = &self.parts.config;
        let Projected { q, k, v } = &self.projected;
        let kv_width = c.kv_width();
        let keys_values = k.chunks_exact(kv_width).zip(v.chunks_exact(kv_width));
        for (row, (k, v)) in rows.iter().zip(keys_values) {
            let position = row.position as usize;
            let page = &mut kv[row.sequence].pages[position / PAGE];
            write_kv(page, position % PAGE, k, v, c.kv_heads, c.head_dim);
        }
        let pages: Vec<Vec<&[f32]>> =
            kv.iter().map(|kv| kv.pages.iter().map(|page| page.as_ref()).collect()).collect();
        let attended: Vec<AttentionRow<'_>> = rows
            .iter()
            .map(|row| AttentionRow { pages: &pages[row.sequence], len: row.position as usize + 1 })
            .collect();
        fit(&mut self.attended, q.len());
        attention(pool, q, &attended, c.heads, c.kv_heads, c.head_dim, &mut self.attended);
    }
}
