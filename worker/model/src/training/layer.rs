//! One block in training, and the way back through it: all of it, with its weights twice, as they are and transposed; or an adapter beside
//! weights that stay as they are.

use std::ops::Range;

use dunlin_kernels::{
    Begin, CausalForward, CausalScratch, CausalShape, GradientScratch, Matrix, Pool, bias_gradient,
    causal_attention, causal_attention_backward, linear, linear_add, linear_transposed, rms_norm,
    rms_norm_backward, rope_rows, swiglu_backward, weight_gradient,
};

use super::adapter::{AdapterWork, TrainedAdapter};
use super::copies::{Bits, Held};
use super::error::TrainingError;
use super::layout::{ParameterLayout, slices};
use super::through::Through;
use crate::adapter::{AdaptedRows, AdapterShape, Projection};
use crate::block::{Flaw, Inner, Parts, Projected};
use crate::config::ModelConfig;
use crate::weights::LayerWeights;

/// Where the tensors of a block are in the stage's vector.
struct Places {
    attention_norm: Range<usize>,
    ffn_norm: Range<usize>,
    /// Of q, k and v.
    bias: [Range<usize>; 3],
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
    projected: Projected,
    attended: Vec<f32>,
    statistics: Vec<f32>,
    /// Rows between attention and feed-forward.
    middle: Vec<f32>,
    inner: Inner,
}

/// Buffers of the backward pass.
#[derive(Default)]
pub(super) struct Work {
    pub(super) through: Through,
    pub(super) gradient: GradientScratch,
    pub(super) causal: CausalScratch,
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    product: Vec<f32>,
    dattended: Vec<f32>,
    dqkv: Projected,
    adapter: AdapterWork,
}

/// Room for exactly `len` values; what is there may be anything.
pub(super) fn fit(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

impl Layer {
    /// A block of zeroes whose weights are all trained.
    pub(super) fn new(config: &ModelConfig, layout: &ParameterLayout, number: u32) -> Self {
        let place = |role: &str| layout.range(&ParameterLayout::layer_name(number, role));
        let transposed = Projection::ALL.map(|which| {
            let (n, k) = which.shape(config);
            Matrix::zeroed_f32(k, n)
        });
        let places = Places {
            attention_norm: place("input_layernorm.weight"),
            ffn_norm: place("post_attention_layernorm.weight"),
            bias: ["q", "k", "v"].map(|head| place(&format!("self_attn.{head}_proj.bias"))),
            matrices: Projection::ALL.map(|which| place(&format!("{}.weight", which.module()))),
        };
        Self {
            number,
            weights: LayerWeights::zeroed(config),
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
                w.attention_norm.copy_from_slice(&parameters[places.attention_norm.clone()]);
                w.ffn_norm.copy_from_slice(&parameters[places.ffn_norm.clone()]);
                for (bias, place) in w.bias.iter_mut().flatten().zip(&places.bias) {
                    bias.copy_from_slice(&parameters[place.clone()]);
                }
            }
        }
    }

    /// What of the block is held.
    pub(super) fn held<'a>(&'a self, out: &mut Vec<Held<'a>>) {
        let w = &self.weights;
        match &self.trained {
            Trained::Adapter(adapter) => {
                out.extend(Projection::ALL.map(|which| Held::frozen(w.matrix(which).into())));
                let vectors = [&w.attention_norm, &w.ffn_norm].into_iter().chain(w.bias.iter().flatten());
                out.extend(vectors.map(|values| Held::frozen(Bits::Values(values))));
                adapter.held(out);
            }
            Trained::Whole { places, transposed } => {
                for (which, transposed) in Projection::ALL.into_iter().zip(&**transposed) {
                    let place = &places.matrices[which as usize];
                    out.push(Held::of(place.clone(), w.matrix(which).into()));
                    out.push(Held::of(place.clone(), transposed.into()));
                }
                out.push(Held::of(places.attention_norm.clone(), Bits::Values(&w.attention_norm)));
                out.push(Held::of(places.ffn_norm.clone(), Bits::Values(&w.ffn_norm)));
                for (bias, place) in w.bias.iter().flatten().zip(&places.bias) {
                    out.push(Held::of(place.clone(), Bits::Values(bias)));
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

    /// The gradient of the inputs of a matrix, from that of its `m` rows of outputs; added to what is in `dx` when `add`.
    fn through(
        &self,
        pool: &Pool,
        which: Projection,
        dy: &[f32],
        m: usize,
        dx: &mut [f32],
        add: bool,
        work: &mut Through,
    ) {
        match &self.trained {
            Trained::Whole { transposed, .. } => {
                let product = if add { linear_add } else { linear };
                product(pool, &transposed[which as usize], dy, m, dx, &mut work.linear);
            }
            Trained::Adapter(adapter) => {
                let w = self.weights.matrix(which);
                linear_transposed(pool, w, dy, m, dx, add, &mut work.transposed);
                adapter.through(pool, which, dy, m, dx, work);
            }
        }
    }

    /// Gradients of what is trained of some matrices with the inputs `x`, whose outputs have the gradients `dys`.
    fn gradients<const N: usize>(
        &self,
        pool: &Pool,
        x: &[f32],
        m: usize,
        (which, dys): ([Projection; N], [&[f32]; N]),
        gradient: &mut Option<(&mut [f32], usize)>,
        (through, adapter_work, scratch): (&mut Through, &mut AdapterWork, &mut GradientScratch),
    ) {
        match &self.trained {
            Trained::Whole { places, .. } => {
                let places = which.map(|which| &places.matrices[which as usize]);
                if let Some(mut dws) = slices(gradient, places) {
                    weight_gradient(
                        pool,
                        x,
                        m,
                        &dys,
                        &mut dws.each_mut().map(|dw| &mut **dw),
                        Begin::Here,
                        scratch,
                    );
                }
            }
            Trained::Adapter(adapter) => {
                for (which, dy) in which.into_iter().zip(dys) {
                    adapter.gradient(pool, which, (x, dy, m), gradient, (through, adapter_work, scratch));
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

    /// Gradients of tensors that only whole blocks train.
    fn own<'a, const N: usize>(
        &self,
        gradient: &'a mut Option<(&mut [f32], usize)>,
        of: impl Fn(&Places) -> [&Range<usize>; N],
    ) -> Option<[&'a mut [f32]; N]> {
        match &self.trained {
            Trained::Whole { places, .. } => slices(gradient, of(places)),
            Trained::Adapter(_) => None,
        }
    }

    /// From `saved.x` to the rows behind the block, `out`.
    pub(super) fn forward(
        &self,
        pool: &Pool,
        parts: &mut Parts,
        shape: &CausalShape,
        positions: &[u32],
        saved: &mut Saved,
        out: &mut Vec<f32>,
        causal: &mut CausalScratch,
    ) -> Result<(), TrainingError> {
        let s = saved;
        let adapted = self.adapted(positions.len());
        let adapted = adapted.as_slice();
        parts
            .project(pool, &self.weights, adapted, &s.x, positions, &mut s.projected)
            .map_err(TrainingError::at(self.number))?;
        let Projected { q, k, v } = &s.projected;
        fit(&mut s.attended, q.len());
        fit(&mut s.statistics, shape.statistics_len());
        causal_attention(pool, shape, q, k, v, &mut s.attended, &mut s.statistics, causal);
        s.middle.clear();
        s.middle.extend_from_slice(&s.x);
        parts.attention_output(pool, &self.weights, adapted, &s.attended, &mut s.middle);
        out.clear();
        out.extend_from_slice(&s.middle);
        parts
            .feed_forward(pool, &self.weights, adapted, out, &mut s.inner)
            .map_err(TrainingError::at(self.number))
    }

    /// `dx`, the gradient of the rows behind the block, becomes that of the rows before it. Gradients of the parameters replace what is in
    /// `gradient`, the stage's vector from index `skip` on. What was saved is used up.
    pub(super) fn backward(
        &self,
        pool: &Pool,
        parts: &Parts,
        shape: &CausalShape,
        positions: &[u32],
        saved: &mut Saved,
        dx: &mut [f32],
        gradient: Option<(&mut [f32], usize)>,
        work: &mut Work,
    ) -> Result<(), TrainingError> {
        let mut gradient = gradient;
        self.feed_forward_backward(pool, &parts.config, saved, dx, &mut gradient, work);
        self.attention_backward(pool, parts, shape, positions, saved, dx, &mut gradient, work);
        Flaw::find("the backward pass", dx, parts.config.hidden).map_err(TrainingError::at(self.number))
    }

    fn feed_forward_backward(
        &self,
        pool: &Pool,
        c: &ModelConfig,
        saved: &mut Saved,
        dx: &mut [f32],
        gradient: &mut Option<(&mut [f32], usize)>,
        work: &mut Work,
    ) {
        use Projection::{Down, Gate, Up};
        let (w, m) = (&self.weights, dx.len() / c.hidden);
        let Saved { middle, inner: Inner { gate, up }, .. } = saved;
        let Work { normed, dnormed, product, through, adapter, gradient: scratch, .. } = work;
        fit(product, gate.len());
        self.through(pool, Down, dx, m, product, false, through);
        swiglu_backward(pool, gate, up, product);
        fit(dnormed, dx.len());
        self.through(pool, Gate, gate, m, dnormed, false, through);
        self.through(pool, Up, up, m, dnormed, true, through);
        if gradient.is_some() && self.trains(&[Down, Gate, Up]) {
            fit(normed, dx.len());
            rms_norm(pool, middle, &w.ffn_norm, c.rms_eps, m, normed);
            self.gradients(pool, product, m, ([Down], [dx]), gradient, (through, adapter, scratch));
            self.gradients(pool, normed, m, ([Gate, Up], [gate, up]), gradient, (through, adapter, scratch));
        }
        let dw = self.own(gradient, |places| [&places.ffn_norm]).map(|[dw]| dw);
        rms_norm_backward(pool, middle, &w.ffn_norm, c.rms_eps, dnormed, dx, dw);
    }

    fn attention_backward(
        &self,
        pool: &Pool,
        parts: &Parts,
        shape: &CausalShape,
        positions: &[u32],
        saved: &Saved,
        dx: &mut [f32],
        gradient: &mut Option<(&mut [f32], usize)>,
        work: &mut Work,
    ) {
        use Projection::{Key, Output, Query, Value};
        let (w, c, m) = (&self.weights, &parts.config, positions.len());
        let Saved { x, projected: Projected { q, k, v }, attended, statistics, .. } = saved;
        let Work { normed, dnormed, dattended, dqkv, through, adapter, gradient: scratch, .. } = work;
        let Projected { q: dq, k: dk, v: dv } = dqkv;
        fit(dattended, q.len());
        fit(dq, q.len());
        fit(dk, k.len());
        fit(dv, v.len());
        self.through(pool, Output, dx, m, dattended, false, through);
        let forward = CausalForward { q, k, v, out: attended, statistics };
        causal_attention_backward(pool, shape, &forward, dattended, dq, dk, dv, &mut work.causal);
        rope_rows(pool, &parts.rope, c.rope_layout, dq, positions, true);
        rope_rows(pool, &parts.rope, c.rope_layout, dk, positions, true);
        fit(dnormed, dx.len());
        self.through(pool, Query, dq, m, dnormed, false, through);
        self.through(pool, Key, dk, m, dnormed, true, through);
        self.through(pool, Value, dv, m, dnormed, true, through);
        if gradient.is_some() && self.trains(&[Output, Query, Key, Value]) {
            fit(normed, dx.len());
            rms_norm(pool, x, &w.attention_norm, c.rms_eps, m, normed);
            self.gradients(pool, attended, m, ([Output], [dx]), gradient, (through, adapter, scratch));
            let qkv = ([Query, Key, Value], [dq.as_slice(), dk, dv]);
            self.gradients(pool, normed, m, qkv, gradient, (through, adapter, scratch));
            let bias = self.own(gradient, |places| places.bias.each_ref()).filter(|_| w.bias.is_some());
            for (db, dy) in bias.into_iter().flatten().zip([dq, dk, dv]) {
                bias_gradient(pool, dy, db);
            }
        }
        let dw = self.own(gradient, |places| [&places.attention_norm]).map(|[dw]| dw);
        rms_norm_backward(pool, x, &w.attention_norm, c.rms_eps, dnormed, dx, dw);
    }
}
