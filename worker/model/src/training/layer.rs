//! One block in training: its weights twice, as they are and transposed, and the way back through it.

use std::ops::Range;

use dunlin_kernels::{
    Begin, CausalForward, CausalScratch, CausalShape, GradientScratch, Matrix, Pool, Scratch, bias_gradient,
    causal_attention, causal_attention_backward, linear, linear_add, rms_norm, rms_norm_backward, rope_rows,
    swiglu_backward, weight_gradient,
};

use super::TrainingError;
use super::layout::ParameterLayout;
use crate::block::{Flaw, Inner, Parts, Projected};
use crate::config::ModelConfig;
use crate::weights::LayerWeights;

/// Where the tensors of a block are in the stage's vector.
struct Places {
    attention_norm: Range<usize>,
    /// Of q, k and v.
    qkv: [Range<usize>; 3],
    bias: [Range<usize>; 3],
    o: Range<usize>,
    ffn_norm: Range<usize>,
    gate: Range<usize>,
    up: Range<usize>,
    down: Range<usize>,
}

/// One block.
pub(super) struct Layer {
    number: u32,
    places: Places,
    weights: LayerWeights,
    q_t: Matrix,
    k_t: Matrix,
    v_t: Matrix,
    o_t: Matrix,
    gate_t: Matrix,
    up_t: Matrix,
    down_t: Matrix,
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
    pub(super) linear: Scratch,
    pub(super) gradient: GradientScratch,
    pub(super) causal: CausalScratch,
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    product: Vec<f32>,
    dattended: Vec<f32>,
    dqkv: Projected,
}

/// Room for exactly `len` values; what is there may be anything.
pub(super) fn fit(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

impl Layer {
    pub(super) fn new(config: &ModelConfig, layout: &ParameterLayout, number: u32) -> Self {
        let c = config;
        let place = |role: &str| layout.range(&ParameterLayout::layer_name(number, role));
        let three = |kind: &str| ["q", "k", "v"].map(|head| place(&format!("self_attn.{head}_proj.{kind}")));
        Self {
            number,
            places: Places {
                attention_norm: place("input_layernorm.weight"),
                qkv: three("weight"),
                bias: three("bias"),
                o: place("self_attn.o_proj.weight"),
                ffn_norm: place("post_attention_layernorm.weight"),
                gate: place("mlp.gate_proj.weight"),
                up: place("mlp.up_proj.weight"),
                down: place("mlp.down_proj.weight"),
            },
            weights: LayerWeights::zeroed(c),
            q_t: Matrix::zeroed_f32(c.hidden, c.q_width()),
            k_t: Matrix::zeroed_f32(c.hidden, c.kv_width()),
            v_t: Matrix::zeroed_f32(c.hidden, c.kv_width()),
            o_t: Matrix::zeroed_f32(c.q_width(), c.hidden),
            gate_t: Matrix::zeroed_f32(c.hidden, c.ffn),
            up_t: Matrix::zeroed_f32(c.hidden, c.ffn),
            down_t: Matrix::zeroed_f32(c.ffn, c.hidden),
        }
    }

    /// Packs the block's part of the stage's parameters.
    pub(super) fn set(&mut self, pool: &Pool, parameters: &[f32]) {
        let (w, at) = (&mut self.weights, &self.places);
        let [q, k, v] = &at.qkv;
        for (matrix, transposed, place) in [
            (&mut w.q, &mut self.q_t, q),
            (&mut w.k, &mut self.k_t, k),
            (&mut w.v, &mut self.v_t, v),
            (&mut w.o, &mut self.o_t, &at.o),
            (&mut w.gate, &mut self.gate_t, &at.gate),
            (&mut w.up, &mut self.up_t, &at.up),
            (&mut w.down, &mut self.down_t, &at.down),
        ] {
            matrix.set(pool, &parameters[place.clone()]);
            transposed.set_transposed(pool, &parameters[place.clone()]);
        }
        w.attention_norm.copy_from_slice(&parameters[at.attention_norm.clone()]);
        w.ffn_norm.copy_from_slice(&parameters[at.ffn_norm.clone()]);
        for (bias, place) in w.bias.iter_mut().flatten().zip(&at.bias) {
            bias.copy_from_slice(&parameters[place.clone()]);
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
        parts
            .project(pool, &self.weights, &s.x, positions, &mut s.projected)
            .map_err(TrainingError::at(self.number))?;
        let Projected { q, k, v } = &s.projected;
        fit(&mut s.attended, q.len());
        fit(&mut s.statistics, shape.statistics_len());
        causal_attention(pool, shape, q, k, v, &mut s.attended, &mut s.statistics, causal);
        s.middle.clear();
        s.middle.extend_from_slice(&s.x);
        parts.attention_output(pool, &self.weights, &s.attended, &mut s.middle);
        out.clear();
        out.extend_from_slice(&s.middle);
        parts.feed_forward(pool, &self.weights, out, &mut s.inner).map_err(TrainingError::at(self.number))
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
        let (w, m) = (&self.weights, dx.len() / c.hidden);
        let Saved { middle, inner: Inner { gate, up }, .. } = saved;
        let Work { normed, dnormed, product, linear: scratch, .. } = work;
        fit(product, gate.len());
        linear(pool, &self.down_t, dx, m, product, scratch);
        swiglu_backward(pool, gate, up, product);
        fit(dnormed, dx.len());
        linear(pool, &self.gate_t, gate, m, dnormed, scratch);
        linear_add(pool, &self.up_t, up, m, dnormed, scratch);
        if gradient.is_some() {
            fit(normed, dx.len());
            rms_norm(pool, middle, &w.ffn_norm, c.rms_eps, m, normed);
            let down = slices(gradient, [&self.places.down]);
            weights_gradient(pool, product, m, &[dx], down, &mut work.gradient);
            let both = slices(gradient, [&self.places.gate, &self.places.up]);
            weights_gradient(pool, normed, m, &[gate, up], both, &mut work.gradient);
        }
        let dw = slices(gradient, [&self.places.ffn_norm]).map(|[dw]| dw);
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
        let (w, c, m) = (&self.weights, &parts.config, positions.len());
        let Saved { x, projected: Projected { q, k, v }, attended, statistics, .. } = saved;
        let Work { normed, dnormed, dattended, dqkv, linear: scratch, .. } = work;
        let Projected { q: dq, k: dk, v: dv } = dqkv;
        fit(dattended, q.len());
        fit(dq, q.len());
        fit(dk, k.len());
        fit(dv, v.len());
        linear(pool, &self.o_t, dx, m, dattended, scratch);
        let forward = CausalForward { q, k, v, out: attended, statistics };
        causal_attention_backward(pool, shape, &forward, dattended, dq, dk, dv, &mut work.causal);
        rope_rows(pool, &parts.rope, c.rope_layout, dq, positions, true);
        rope_rows(pool, &parts.rope, c.rope_layout, dk, positions, true);
        fit(dnormed, dx.len());
        linear(pool, &self.q_t, dq, m, dnormed, scratch);
        linear_add(pool, &self.k_t, dk, m, dnormed, scratch);
        linear_add(pool, &self.v_t, dv, m, dnormed, scratch);
        if gradient.is_some() {
            fit(normed, dx.len());
            rms_norm(pool, x, &w.attention_norm, c.rms_eps, m, normed);
            let o = slices(gradient, [&self.places.o]);
            weights_gradient(pool, attended, m, &[dx], o, &mut work.gradient);
            let qkv = slices(gradient, self.places.qkv.each_ref());
            weights_gradient(pool, normed, m, &[dq, dk, dv], qkv, &mut work.gradient);
            if let (Some(_), Some(bias)) = (&w.bias, slices(gradient, self.places.bias.each_ref())) {
                bias.into_iter().zip([dq, dk, dv]).for_each(|(db, dy)| bias_gradient(pool, dy, db));
            }
        }
        let dw = slices(gradient, [&self.places.attention_norm]).map(|[dw]| dw);
        rms_norm_backward(pool, x, &w.attention_norm, c.rms_eps, dnormed, dx, dw);
    }
}

/// Some tensors of the gradient at once, when it is wanted.
fn slices<'a, const N: usize>(
    gradient: &'a mut Option<(&mut [f32], usize)>,
    places: [&Range<usize>; N],
) -> Option<[&'a mut [f32]; N]> {
    let (values, skip) = gradient.as_mut()?;
    let places = places.map(|place| place.start.saturating_sub(*skip)..place.end.saturating_sub(*skip));
    // Tensors of a layout do not overlap, so this is never `None` for tensors that the stage has.
    values.get_disjoint_mut(places).ok()
}

fn weights_gradient<const N: usize>(
    pool: &Pool,
    x: &[f32],
    m: usize,
    dys: &[&[f32]; N],
    dws: Option<[&mut [f32]; N]>,
    scratch: &mut GradientScratch,
) {
    if let Some(mut dws) = dws {
        weight_gradient(pool, x, m, dys, &mut dws, Begin::Here, scratch);
    }
}
