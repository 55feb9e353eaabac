//! One block in training, and the way back through it: all of it, with its weights twice, as they are and transposed; or an adapter beside
//! weights that stay as they are.

use std::collections::BTreeMap;
use std::ops::Range;

use dunlin_kernels::{
    Begin, CausalForward, CausalShape, Matrix, Pool, bias_gradient, causal_attention,
    causal_attention_backward, linear, linear_add, linear_transposed, rms_norm, rms_norm_backward, rope_rows,
    swiglu_backward, weight_gradient,
};

use super::adapter::{AdapterWork, TrainedAdapter};
use super::copies::{Bits, HeldValues};
use super::error::TrainingError;
use super::layout::{ParameterLayout, slices};
use crate::adapter::{AdaptedRows, AdapterShape};
use crate::block::{Activations, BlockWeights, Flaw, Inner, Parts, Projected};
use crate::config::ModelConfig;
use crate::spec::{Attention, Projection, TensorRole};
use crate::weights::LayerWeights;

/// Where the tensors of a block are in the stage's vector.
struct Places {
    /// Norms and biases.
    vectors: BTreeMap<TensorRole, Range<usize>>,
    /// By [`Projection`].
    matrices: [Range<usize>; 7],
}

/// One block.
pub(super) struct Layer {
    number: u32,
    weights: LayerWeights,
    trained: Trained,
}

/// What of a block is trained, and how gradients get through its matrices.
enum Trained {
    /// All of it; the matrices transposed, by [`Projection`].
    Whole { places: Box<Places>, transposed: Box<[Matrix; 7]> },
    /// What an adapter adds. The matrices are held in one direction only, in the format of their file.
    Adapter(Box<TrainedAdapter>),
}

/// What the forward pass of one block leaves for the backward pass. Norms and the product of the feed-forward part are not kept: to compute
/// them again costs little, and they would be a quarter of the memory.
#[derive(Default)]
pub(super) struct Saved {
    /// Rows that came in.
    pub(super) x: Vec<f32>,
    activations: Activations,
    /// Maximum and sum of the softmax of every row and head.
    statistics: Vec<f32>,
}

/// Buffers of the backward pass.
#[derive(Default)]
pub(super) struct Work {
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    product: Vec<f32>,
    dattended: Vec<f32>,
    dqkv: Projected,
    adapter: AdapterWork,
}

/// What the rows of a microbatch are.
#[derive(Clone, Copy)]
pub(super) struct Microbatch<'a> {
    pub(super) shape: &'a CausalShape,
    /// One for each row.
    pub(super) positions: &'a [u32],
}

/// What goes backward through the blocks.
pub(super) struct Back<'a> {
    /// The gradient of the rows behind the block, which becomes that of the rows before it.
    pub(super) dx: &'a mut [f32],
    /// Gradients of the parameters, if they are wanted: the stage's vector from an index on.
    pub(super) gradient: Option<(&'a mut [f32], usize)>,
    pub(super) work: &'a mut Work,
}

/// Room for exactly `len` values; what is there may be anything.
pub(super) fn fit(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

impl Layer {
    /// A block of zeroes whose weights are all trained.
    pub(super) fn new(config: &ModelConfig, layout: &ParameterLayout, number: u32) -> Self {
        let place = |role: TensorRole| layout.range(&ParameterLayout::layer_name(config, number, role));
        let transposed = Projection::ALL.map(|which| {
            let (n, k) = config.matrix(which);
            Matrix::zeroed_f32(k, n)
        });
        let weights = LayerWeights::zeroed(config);
        let places = Places {
            vectors: weights.vectors().map(|(role, _)| (role, place(role))).collect(),
            matrices: Projection::ALL.map(|which| place(TensorRole::Matrix(which))),
        };
        Self {
            number,
            weights,
            trained: Trained::Whole { places: Box::new(places), transposed: Box::new(transposed) },
        }
    }

    /// A block whose weights stay as they are, with an adapter of zeroes that is trained.
    pub(super) fn over(
        weights: LayerWeights,
        config: &ModelConfig,
        shape: &AdapterShape,
        layout: &ParameterLayout,
        number: u32,
    ) -> Self {
        let adapter = TrainedAdapter::new(config, shape, layout, number);
        Self { number, weights, trained: Trained::Adapter(Box::new(adapter)) }
    }

    /// Packs the block's part of the stage's parameters.
    pub(super) fn set(&mut self, pool: &Pool, parameters: &[f32]) {
        let w = &mut self.weights;
        match &mut self.trained {
            Trained::Adapter(adapter) => adapter.set(pool, parameters),
            Trained::Whole { places, transposed } => {
                for (which, transposed) in Projection::ALL.into_iter().zip(&mut **transposed) {
                    let values = &parameters[places.matrices[which as usize].clone()];
                    w.matrix_mut(which).set(pool, values);
                    transposed.set_transposed(pool, values);
                }
                for (role, values) in w.vectors_mut() {
                    values.copy_from_slice(&parameters[places.vectors[&role].clone()]);
                }
            }
        }
    }

    /// What of the block is held.
    pub(super) fn held<'a>(&'a self, out: &mut Vec<HeldValues<'a>>) {
        let w = &self.weights;
        match &self.trained {
            Trained::Adapter(adapter) => {
                out.extend(Projection::ALL.map(|which| HeldValues::frozen(w.matrix(which).into())));
                out.extend(w.vectors().map(|(_, values)| HeldValues::frozen(Bits::Values(values))));
                adapter.held(out);
            }
            Trained::Whole { places, transposed } => {
                for (which, transposed) in Projection::ALL.into_iter().zip(&**transposed) {
                    let place = &places.matrices[which as usize];
                    out.push(HeldValues::of(place.clone(), w.matrix(which).into()));
                    out.push(HeldValues::of(place.clone(), transposed.into()));
                }
                for (role, values) in w.vectors() {
                    out.push(HeldValues::of(places.vectors[&role].clone(), Bits::Values(values)));
                }
            }
        }
    }

    /// The adapter, for all of `rows` rows.
    fn adapted(&self, rows: usize) -> Option<AdaptedRows<'_>> {
        match &self.trained {
            Trained::Whole { .. } => None,
            Trained::Adapter(adapter) => Some(AdaptedRows { rows: 0..rows, adapter: adapter.layer() }),
        }
    }

    /// The gradient of the inputs of a matrix, from that of its outputs; added to what is in `dx` when `add`.
    #[expect(
        clippy::too_many_arguments,
        reason = "the operands of a product, and buffers of an adapter beside it"
    )]
    fn through(
        &self,
        pool: &Pool,
        which: Projection,
        dy: &[f32],
        dx: &mut [f32],
        add: bool,
        work: &mut AdapterWork,
    ) {
        let w = self.weights.matrix(which);
        let m = dy.len() / w.n();
        match &self.trained {
            Trained::Whole { transposed, .. } => {
                let product = if add { linear_add } else { linear };
                product(pool, &transposed[which as usize], dy, m, dx);
            }
            Trained::Adapter(adapter) => {
                linear_transposed(pool, w, dy, m, dx, add);
                adapter.through(pool, which, dy, dx, work);
            }
        }
    }

    /// Gradients of what is trained of some matrices with the inputs `x`, whose outputs have the gradients `dys`.
    fn gradients<const N: usize>(
        &self,
        pool: &Pool,
        x: &[f32],
        (which, dys): ([Projection; N], [&[f32]; N]),
        gradient: &mut Option<(&mut [f32], usize)>,
        work: &mut AdapterWork,
    ) {
        let m = x.len() / self.weights.matrix(which[0]).k();
        match &self.trained {
            Trained::Whole { places, .. } => {
                let places = which.map(|which| &places.matrices[which as usize]);
                if let Some(mut dws) = slices(gradient, places) {
                    weight_gradient(pool, x, m, &dys, &mut dws.each_mut().map(|dw| &mut **dw), Begin::Here);
                }
            }
            Trained::Adapter(adapter) => {
                for (which, dy) in which.into_iter().zip(dys) {
                    adapter.gradient(pool, which, (x, dy, m), gradient, work);
                }
            }
        }
    }

    /// Is anything of these matrices trained?
    fn trains(&self, which: &[Projection]) -> bool {
        match &self.trained {
            Trained::Whole { .. } => true,
            Trained::Adapter(adapter) => which.iter().any(|which| adapter.layer().pair(*which).is_some()),
        }
    }

    /// Gradients of a norm or of biases, which only whole blocks train.
    fn own<'a, const N: usize>(
        &self,
        gradient: &'a mut Option<(&mut [f32], usize)>,
        roles: [TensorRole; N],
    ) -> Option<[&'a mut [f32]; N]> {
        match &self.trained {
            Trained::Whole { places, .. } => slices(gradient, roles.map(|role| &places.vectors[&role])),
            Trained::Adapter(_) => None,
        }
    }

    /// From `saved.x` to the rows behind the block, `out`.
    pub(super) fn forward(
        &self,
        pool: &Pool,
        parts: &mut Parts,
        Microbatch { shape, positions }: Microbatch<'_>,
        saved: &mut Saved,
        out: &mut Vec<f32>,
    ) -> Result<(), TrainingError> {
        let Saved { x, activations, statistics } = saved;
        let adapted = self.adapted(positions.len());
        let w = BlockWeights { layer: self.number, weights: &self.weights, adapted: adapted.as_slice() };
        activations.middle.get_or_insert_default();
        out.clear();
        out.extend_from_slice(x);
        fit(statistics, shape.statistics_len());
        let attend = |_: &Attention, Projected { q, k, v }: &Projected, out: &mut [f32]| {
            causal_attention(pool, shape, [q, k, v], out, statistics);
        };
        parts.forward(pool, w, out, positions, activations, attend).map_err(TrainingError::at(self.number))
    }

    /// Replaces what `back` has of gradients by those of this block. What was saved is used up.
    pub(super) fn backward(
        &self,
        pool: &Pool,
        parts: &Parts,
        batch: Microbatch<'_>,
        saved: &mut Saved,
        mut back: Back<'_>,
    ) -> Result<(), TrainingError> {
        self.feed_forward_backward(pool, &parts.config, saved, &mut back);
        self.attention_backward(pool, parts, batch, saved, &mut back);
        Flaw::find("the backward pass", back.dx, parts.config.hidden).map_err(TrainingError::at(self.number))
    }

    fn feed_forward_backward(&self, pool: &Pool, c: &ModelConfig, saved: &mut Saved, back: &mut Back<'_>) {
        use Projection::{Down, Gate, Up};
        let Back { dx, gradient, work } = back;
        let (w, m, eps) = (&self.weights, dx.len() / c.hidden, c.block(self.number).norm.eps);
        let Activations { middle, inner: Inner { gate, up }, .. } = &mut saved.activations;
        let middle = middle.as_deref().unwrap_or_default();
        let Work { normed, dnormed, product, adapter, .. } = &mut **work;
        fit(product, gate.len());
        self.through(pool, Down, dx, product, false, adapter);
        swiglu_backward(pool, gate, up, product);
        fit(dnormed, dx.len());
        self.through(pool, Gate, gate, dnormed, false, adapter);
        self.through(pool, Up, up, dnormed, true, adapter);
        if gradient.is_some() && self.trains(&[Down, Gate, Up]) {
            fit(normed, dx.len());
            rms_norm(pool, middle, w.vector(TensorRole::MlpNorm), eps, m, normed);
            self.gradients(pool, product, ([Down], [&**dx]), gradient, adapter);
            self.gradients(pool, normed, ([Gate, Up], [gate, up]), gradient, adapter);
        }
        let dw = self.own(gradient, [TensorRole::MlpNorm]).map(|[dw]| dw);
        rms_norm_backward(pool, middle, w.vector(TensorRole::MlpNorm), eps, dnormed, dx, dw);
    }

    fn attention_backward(
        &self,
        pool: &Pool,
        parts: &Parts,
        Microbatch { shape, positions }: Microbatch<'_>,
        saved: &Saved,
        back: &mut Back<'_>,
    ) {
        use Projection::{Key, Output, Query, Value};
        let Back { dx, gradient, work } = back;
        let (w, c, m) = (&self.weights, parts.config.block(self.number), positions.len());
        let (table, layout) = parts.table(self.number);
        let Saved { x, activations: Activations { projected, attended, .. }, statistics } = saved;
        let Projected { q, k, v } = projected;
        let Work { normed, dnormed, dattended, dqkv, adapter, .. } = &mut **work;
        let Projected { q: dq, k: dk, v: dv } = dqkv;
        fit(dattended, q.len());
        fit(dq, q.len());
        fit(dk, k.len());
        fit(dv, v.len());
        self.through(pool, Output, dx, dattended, false, adapter);
        let forward = CausalForward { q, k, v, out: attended, statistics };
        causal_attention_backward(pool, shape, &forward, dattended, [dq, dk, dv]);
        rope_rows(pool, table, layout, dq, positions, true);
        rope_rows(pool, table, layout, dk, positions, true);
        fit(dnormed, dx.len());
        self.through(pool, Query, dq, dnormed, false, adapter);
        self.through(pool, Key, dk, dnormed, true, adapter);
        self.through(pool, Value, dv, dnormed, true, adapter);
        if gradient.is_some() && self.trains(&[Output, Query, Key, Value]) {
            fit(normed, dx.len());
            rms_norm(pool, x, w.vector(TensorRole::AttentionNorm), c.norm.eps, m, normed);
            self.gradients(pool, attended, ([Output], [&**dx]), gradient, adapter);
            let qkv = ([Query, Key, Value], [dq.as_slice(), dk, dv]);
            self.gradients(pool, normed, qkv, gradient, adapter);
            if c.attention.bias {
                let bias = self.own(gradient, [Query, Key, Value].map(TensorRole::Bias));
                for (db, dy) in bias.into_iter().flatten().zip([dq, dk, dv]) {
                    bias_gradient(pool, dy, db);
                }
            }
        }
        let dw = self.own(gradient, [TensorRole::AttentionNorm]).map(|[dw]| dw);
        rms_norm_backward(pool, x, w.vector(TensorRole::AttentionNorm), c.norm.eps, dnormed, dx, dw);
    }
}
