//! The kernels of a decoder block in their order, which is that of `dunlin_model::block`.

use std::ops::Range;

use dunlin_cuda::attention::{Places, SeenPages, attention, write_kv};
use dunlin_cuda::linear::{linear, linear_add};
use dunlin_cuda::rows::{DeviceRope, add, add_bias, find_not_finite, geglu, rms_norm, rope, scale, swiglu};
use dunlin_cuda::{DeviceBuffer, Gpu, GpuError, Scratch, Slice, SliceMut};
use dunlin_kernels::RopeLayout;
use dunlin_model::ModelConfig;
use dunlin_model::spec::{Activation, BlockSpec, Projection, TensorRole};

use crate::batch::LayerTables;
use crate::weights::{DeviceAdapter, DeviceLayer};

/// What is looked at in each layer for values that are not finite, in this order.
const LOOKS: u32 = 4;

/// The layer, counted from the first of a batch, in which a flaw of this code was seen.
pub(crate) fn slot_of(code: u32) -> u32 {
    code / LOOKS
}

/// Rows that have an adapter, side by side.
pub(crate) type Adapted<'a> = (Range<usize>, &'a DeviceAdapter);

/// What is computed on the way through a block. The memory is kept for the next ones.
pub(crate) struct Buffers {
    pub(crate) rows: RowBuffers,
    q: DeviceBuffer<f32>,
    k: DeviceBuffer<f32>,
    v: DeviceBuffer<f32>,
    attended: DeviceBuffer<f32>,
    gate: DeviceBuffer<f32>,
    up: DeviceBuffer<f32>,
    product: DeviceBuffer<f32>,
}

/// What every part of a block needs.
pub(crate) struct RowBuffers {
    pub(crate) x: DeviceBuffer<f32>,
    pub(crate) normed: DeviceBuffer<f32>,
    /// Rows on their way through a norm behind a part of the block.
    outputs: DeviceBuffer<f32>,
    /// Between both matrices of an adapter; heads while they are normed.
    inner: DeviceBuffer<f32>,
    /// What was found that is not finite: see [`find_not_finite`].
    pub(crate) flaw: DeviceBuffer<u32>,
    pub(crate) scratch: Scratch,
}

impl Buffers {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        let rows = RowBuffers {
            x: gpu.buffer(0)?,
            normed: gpu.buffer(0)?,
            outputs: gpu.buffer(0)?,
            inner: gpu.buffer(0)?,
            flaw: gpu.buffer(1)?,
            scratch: Scratch::new(gpu)?,
        };
        Ok(Self {
            rows,
            q: gpu.buffer(0)?,
            k: gpu.buffer(0)?,
            v: gpu.buffer(0)?,
            attended: gpu.buffer(0)?,
            gate: gpu.buffer(0)?,
            up: gpu.buffer(0)?,
            product: gpu.buffer(0)?,
        })
    }

    /// Makes room for `m` rows.
    pub(crate) fn ensure(&mut self, model: &ModelConfig, m: usize) -> Result<(), GpuError> {
        let BlockSpec { attention, mlp, .. } = &model.block;
        let (hidden, q, kv) = (model.hidden, attention.q_width(), attention.kv_width());
        let rows = &mut self.rows;
        for buffer in [&mut rows.x, &mut rows.normed, &mut rows.outputs] {
            buffer.ensure(m * hidden)?;
        }
        // Keys may change places with what is inside: they have as much room.
        for buffer in [&mut rows.inner, &mut self.q, &mut self.k, &mut self.attended] {
            buffer.ensure(m * q)?;
        }
        self.v.ensure(m * kv)?;
        for buffer in [&mut self.gate, &mut self.up, &mut self.product] {
            buffer.ensure(m * mlp.width)?;
        }
        Ok(())
    }
}

/// A block, and the rows that go through it.
pub(crate) struct Block<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) spec: &'a BlockSpec,
    pub(crate) hidden: usize,
    pub(crate) layer: u32,
    /// Its number in the batch.
    pub(crate) slot: usize,
    pub(crate) weights: &'a DeviceLayer,
    pub(crate) turns: (&'a DeviceRope, RopeLayout),
    pub(crate) adapted: &'a [Adapted<'a>],
    pub(crate) tables: LayerTables<'a>,
    pub(crate) m: usize,
}

impl Block<'_> {
    /// From the rows before a block to those behind it, in place.
    pub(crate) fn forward(&self, b: &mut Buffers) -> Result<(), GpuError> {
        self.project(b)?;
        self.attend(b)?;
        self.feed_forward(b)
    }

    /// Norm, projections with biases, norms of heads where the model has them, and rotation of queries and keys to the rows' positions.
    fn project(&self, b: &mut Buffers) -> Result<(), GpuError> {
        let (gpu, m, attention) = (self.gpu, self.m, &self.spec.attention);
        let (q_width, kv_width) = (attention.q_width(), attention.kv_width());
        let rows = &mut b.rows;
        self.norm(TensorRole::AttentionNorm, &rows.x, m, &mut rows.normed)?;
        let which = [Projection::Query, Projection::Key, Projection::Value];
        let normed = rows.normed.range(0..m * self.hidden);
        let ws = which.map(|which| self.weights.matrix(which));
        let widths = [q_width, kv_width, kv_width];
        {
            let (q, k, v) = (&mut b.q, &mut b.k, &mut b.v);
            let outs = &mut [
                q.range_mut(0..m * q_width),
                k.range_mut(0..m * kv_width),
                v.range_mut(0..m * kv_width),
            ];
            linear(gpu, &mut rows.scratch, &ws, normed, m, outs)?;
        }
        for ((which, out), width) in which.into_iter().zip([&mut b.q, &mut b.k, &mut b.v]).zip(widths) {
            self.adapt(which, normed, out, &mut rows.inner, &mut rows.scratch)?;
            if attention.bias {
                let bias = self.weights.vector(TensorRole::Bias(which)).all();
                add_bias(gpu, out.range_mut(0..m * width), bias)?;
            }
        }
        if attention.qk_norm {
            for (heads, width, role) in
                [(&mut b.q, q_width, TensorRole::QueryNorm), (&mut b.k, kv_width, TensorRole::KeyNorm)]
            {
                let count = m * width / attention.head_dim;
                self.norm(role, heads, count, &mut rows.inner)?;
                std::mem::swap(heads, &mut rows.inner);
            }
        }
        let (table, layout) = self.turns;
        for (heads, width) in [(&mut b.q, q_width), (&mut b.k, kv_width)] {
            rope(gpu, table, layout, heads.range_mut(0..m * width), self.tables.positions)?;
        }
        // The softmax gives no weight to a score that is NaN, so what is not finite would be lost there.
        self.look(0, &b.q, q_width, &mut rows.flaw)?;
        self.look(1, &b.k, kv_width, &mut rows.flaw)?;
        self.look(2, &b.v, kv_width, &mut rows.flaw)
    }

    /// Keys and values into their pages, what each row sees there, and the output projection.
    fn attend(&self, b: &mut Buffers) -> Result<(), GpuError> {
        let (gpu, m, tables) = (self.gpu, self.m, &self.tables);
        let own = &self.spec.attention;
        let (heads, q, kv) = (own.heads(), 0..m * own.q_width(), 0..m * own.kv_width());
        let places = Places { pages: tables.own, positions: tables.positions };
        let seen = SeenPages {
            tables: tables.pages,
            pages_max: tables.pages_max,
            sequences: tables.sequences,
            positions: tables.positions,
            from: tables.from,
            splits: tables.splits,
        };
        // SAFETY: the tables have the pages of these rows, as long as the segments have them.
        unsafe {
            write_kv(gpu, b.k.range(kv.clone()), b.v.range(kv), &places, &heads)?;
            let (scratch, attended) = (&mut b.rows.scratch, b.attended.range_mut(q.clone()));
            attention(gpu, scratch, b.q.range(q.clone()), &seen, &heads, attended)?;
        }
        let roles = (Projection::Output, TensorRole::AttentionPostNorm);
        self.add_to_rows(&mut b.rows, roles, b.attended.range(q))
    }

    /// Adds the feed-forward part to the rows.
    fn feed_forward(&self, b: &mut Buffers) -> Result<(), GpuError> {
        let (gpu, m, width) = (self.gpu, self.m, self.spec.mlp.width);
        let rows = &mut b.rows;
        self.norm(TensorRole::MlpNorm, &rows.x, m, &mut rows.normed)?;
        let which = [Projection::Gate, Projection::Up];
        let normed = rows.normed.range(0..m * self.hidden);
        let ws = which.map(|which| self.weights.matrix(which));
        {
            let outs = &mut [b.gate.range_mut(0..m * width), b.up.range_mut(0..m * width)];
            linear(gpu, &mut rows.scratch, &ws, normed, m, outs)?;
        }
        for (which, out) in which.into_iter().zip([&mut b.gate, &mut b.up]) {
            self.adapt(which, normed, out, &mut rows.inner, &mut rows.scratch)?;
        }
        let (gate, up) = (b.gate.range(0..m * width), b.up.range(0..m * width));
        let product = b.product.range_mut(0..m * width);
        match self.spec.mlp.activation {
            Activation::Silu => swiglu(gpu, gate, up, product)?,
            Activation::GeluTanh => geglu(gpu, gate, up, product)?,
        }
        let product = b.product.range(0..m * width);
        self.add_to_rows(&mut b.rows, (Projection::Down, TensorRole::MlpPostNorm), product)?;
        self.look(3, &b.rows.x, self.hidden, &mut b.rows.flaw)
    }

    /// Adds to the rows what a matrix and the adapters beside it make of `inputs`; normed before, where the block has norms there.
    fn add_to_rows(
        &self,
        b: &mut RowBuffers,
        (which, post_norm): (Projection, TensorRole),
        inputs: Slice<'_, f32>,
    ) -> Result<(), GpuError> {
        let (gpu, m, rows) = (self.gpu, self.m, 0..self.m * self.hidden);
        let matrix = self.weights.matrix(which);
        if !self.spec.post_norms {
            linear_add(gpu, &mut b.scratch, &[matrix], inputs, m, &mut [b.x.range_mut(rows)])?;
            return self.adapt(which, inputs, &mut b.x, &mut b.inner, &mut b.scratch);
        }
        linear(gpu, &mut b.scratch, &[matrix], inputs, m, &mut [b.outputs.range_mut(rows.clone())])?;
        self.adapt(which, inputs, &mut b.outputs, &mut b.inner, &mut b.scratch)?;
        self.norm(post_norm, &b.outputs, m, &mut b.normed)?;
        add(gpu, b.x.range_mut(rows.clone()), b.normed.range(rows))
    }

    /// Adds what the adapters of some rows add behind one matrix: `x` has the inputs of all rows, `y` their outputs.
    fn adapt(
        &self,
        which: Projection,
        x: Slice<'_, f32>,
        y: &mut DeviceBuffer<f32>,
        inner: &mut DeviceBuffer<f32>,
        scratch: &mut Scratch,
    ) -> Result<(), GpuError> {
        for (rows, adapter) in self.adapted {
            let Some(pair) = adapter.pair(self.layer, which) else { continue };
            let (k, rank, n, m) = (pair.a.k(), pair.a.n(), pair.b.n(), rows.len());
            inner.ensure(m * rank)?;
            let own = x.range(rows.start * k..rows.end * k);
            linear(self.gpu, scratch, &[&pair.a], own, m, &mut [inner.range_mut(0..m * rank)])?;
            scale(self.gpu, inner.range_mut(0..m * rank), pair.scale)?;
            let outs = &mut [y.range_mut(rows.start * n..rows.end * n)];
            linear_add(self.gpu, scratch, &[&pair.b], inner.range(0..m * rank), m, outs)?;
        }
        Ok(())
    }

    /// The norm of `count` rows.
    fn norm(
        &self,
        role: TensorRole,
        x: &DeviceBuffer<f32>,
        count: usize,
        out: &mut DeviceBuffer<f32>,
    ) -> Result<(), GpuError> {
        let w = self.weights.vector(role);
        let values = 0..count * w.len();
        let out: SliceMut<'_, f32> = out.range_mut(values.clone());
        rms_norm(self.gpu, x.range(values), w.all(), self.spec.norm.eps, count, out)
    }

    /// Looks for values that are not finite.
    fn look(
        &self,
        place: u32,
        x: &DeviceBuffer<f32>,
        width: usize,
        flaw: &mut DeviceBuffer<u32>,
    ) -> Result<(), GpuError> {
        let code = self.slot as u32 * LOOKS + place;
        find_not_finite(self.gpu, x.range(0..self.m * width), width, code, flaw.all_mut())
    }
}
