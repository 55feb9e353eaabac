//! One decoder block over rows of many sequences (Touvron et al. 2023).

use dunlin_kernels::{
    AttentionRow, PAGE, Pool, RopeTable, Scratch, add, all_finite, attention, linear, linear_many, page_len,
    rms_norm, rope, swiglu, write_kv,
};
use thiserror::Error;

use crate::config::ModelConfig;
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

/// A value that is not finite appeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a value that is not finite appeared in layer {layer}, row {row}")]
pub struct NonFinite {
    /// In which layer.
    pub layer: u32,
    /// In the first row of this index in the batch.
    pub row: usize,
}

/// What all blocks of a model share, and buffers.
pub struct Block {
    config: ModelConfig,
    rope: RopeTable,
    scratch: Scratch,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    out: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Block {
    /// For positions below `positions_max`.
    #[must_use]
    pub fn new(config: &ModelConfig, positions_max: usize) -> Self {
        let rope = RopeTable::new(config.head_dim, config.rope_base, config.rope_scaling, positions_max);
        Self {
            config: config.clone(),
            rope,
            scratch: Scratch::default(),
            normed: Vec::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            attended: Vec::new(),
            out: Vec::new(),
            gate: Vec::new(),
            up: Vec::new(),
        }
    }

    /// Values of one page of one layer.
    #[must_use]
    pub fn page_len(&self) -> usize {
        page_len(self.config.kv_heads, self.config.head_dim)
    }

    /// Buffers of matrix products, for the head.
    pub fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    /// Runs block `layer` over the rows `x` (`rows.len() * hidden`, changed in place); keys and values go into the pages of their
    /// sequences, `kv[sequence]`, which must reach up to the row's position.
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
        x: &mut [f32],
        rows: &[RowOf],
        kv: &mut [&mut KvPages],
    ) -> Result<(), NonFinite> {
        let c = &self.config;
        let m = rows.len();
        assert_eq!(x.len(), m * c.hidden, "{m} rows of {}", c.hidden);
        let (q_width, kv_width) = (c.q_width(), c.kv_width());
        let fit = |buffer: &mut Vec<f32>, len: usize| buffer.resize(len, 0.0);
        fit(&mut self.normed, m * c.hidden);
        fit(&mut self.q, m * q_width);
        fit(&mut self.k, m * kv_width);
        fit(&mut self.v, m * kv_width);
        fit(&mut self.attended, m * q_width);
        fit(&mut self.out, m * c.hidden);
        fit(&mut self.gate, m * c.ffn);
        fit(&mut self.up, m * c.ffn);

        rms_norm(x, &w.attention_norm, c.rms_eps, m, &mut self.normed);
        let outs = &mut [self.q.as_mut_slice(), &mut self.k, &mut self.v];
        linear_many(pool, &[&w.q, &w.k, &w.v], &self.normed, m, outs, &mut self.scratch);
        if let Some(bias) = &w.bias {
            for (out, bias) in outs.iter_mut().zip(bias) {
                for row in out.chunks_exact_mut(bias.len()) {
                    add(row, bias);
                }
            }
        }
        for (i, row) in rows.iter().enumerate() {
            let position = row.position as usize;
            let k = &mut self.k[i * kv_width..][..kv_width];
            rope(&self.rope, c.rope_layout, &mut self.q[i * q_width..][..q_width], c.heads, position);
            rope(&self.rope, c.rope_layout, k, c.kv_heads, position);
            let page = &mut kv[row.sequence].pages[position / PAGE];
            write_kv(page, position % PAGE, k, &self.v[i * kv_width..][..kv_width], c.kv_heads, c.head_dim);
        }
        // The softmax gives no weight to a score that is NaN, so what is not finite would be lost here.
        for (values, width) in [(&self.q, q_width), (&self.k, kv_width), (&self.v, kv_width)] {
            if let Some(row) = values.chunks_exact(width).position(|row| !all_finite(row)) {
                return Err(NonFinite { layer, row });
            }
        }
        let pages: Vec<Vec<&[f32]>> =
            kv.iter().map(|kv| kv.pages.iter().map(|page| page.as_ref()).collect()).collect();
        let attended: Vec<AttentionRow<'_>> = rows
            .iter()
            .map(|row| AttentionRow { pages: &pages[row.sequence], len: row.position as usize + 1 })
            .collect();
        attention(pool, &self.q, &attended, c.heads, c.kv_heads, c.head_dim, &mut self.attended);
        linear(pool, &w.o, &self.attended, m, &mut self.out, &mut self.scratch);
        add(x, &self.out);

        rms_norm(x, &w.ffn_norm, c.rms_eps, m, &mut self.normed);
        let outs = &mut [self.gate.as_mut_slice(), &mut self.up];
        linear_many(pool, &[&w.gate, &w.up], &self.normed, m, outs, &mut self.scratch);
        swiglu(&mut self.gate, &self.up);
        linear(pool, &w.down, &self.gate, m, &mut self.out, &mut self.scratch);
        add(x, &self.out);

        match x.chunks_exact(c.hidden).position(|row| !all_finite(row)) {
            Some(row) => Err(NonFinite { layer, row }),
            None => Ok(()),
        }
    }
}
