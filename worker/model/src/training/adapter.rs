//! What an adapter adds in one block, in training.

use std::ops::Range;

use dunlin_kernels::{Begin, Matrix, Pool, linear, linear_add, weight_gradient};

use super::copies::HeldValues;
use super::layout::{ParameterLayout, slices};
use crate::adapter::low_rank::{LowRank, file_row, in_file_order};
use crate::adapter::peft::lora_name;
use crate::adapter::{AdapterShape, LayerAdapter, Projection};
use crate::config::ModelConfig;

/// Both thin matrices beside those of one block, each in both directions. The stage's vector has their rows in Hugging Face's order, whatever
/// that of the model's file is.
pub(super) struct TrainedAdapter {
    config: ModelConfig,
    layer: LayerAdapter,
    /// By [`Projection`]; there where the layer has a pair.
    pairs: [Option<TrainedPair>; 7],
    ordered: Vec<f32>,
}

struct TrainedPair {
    a_at: Range<usize>,
    b_at: Range<usize>,
    a_t: Matrix,
    b_t: Matrix,
}

/// Buffers for gradients of adapters.
#[derive(Default)]
pub(super) struct AdapterWork {
    inner: Vec<f32>,
    /// The gradient of `B` in the order of the model's file.
    db: Vec<f32>,
    /// Gradients between both matrices, by [`Projection`].
    dinner: [Vec<f32>; 7],
}

impl TrainedAdapter {
    /// All zero.
    pub(super) fn new(
        config: &ModelConfig,
        shape: &AdapterShape,
        layout: &ParameterLayout,
        number: u32,
    ) -> Self {
        let mut own = Self {
            config: config.clone(),
            layer: LayerAdapter::default(),
            pairs: Default::default(),
            ordered: Vec::new(),
        };
        let AdapterShape::Lora(lora) = shape else { return own };
        for &which in &lora.targets {
            let ((n, k), rank) = (config.matrix(which), lora.rank);
            own.layer.pairs[which as usize] = Some(LowRank::zeroed(n, k, rank, lora.alpha / rank as f32));
            own.pairs[which as usize] = Some(TrainedPair {
                a_at: layout.range(&lora_name(number, which, "lora_A")),
                b_at: layout.range(&lora_name(number, which, "lora_B")),
                a_t: Matrix::zeroed_f32(k, rank),
                b_t: Matrix::zeroed_f32(rank, n),
            });
        }
        own
    }

    /// What it adds.
    pub(super) fn layer(&self) -> &LayerAdapter {
        &self.layer
    }

    /// What of it is held.
    pub(super) fn held<'a>(&'a self, out: &mut Vec<HeldValues<'a>>) {
        for (pair, trained) in self.layer.pairs.iter().zip(&self.pairs) {
            let (Some(pair), Some(trained)) = (pair, trained) else { continue };
            for (place, copies) in
                [(&trained.a_at, [&pair.a, &trained.a_t]), (&trained.b_at, [&pair.b, &trained.b_t])]
            {
                out.extend(copies.map(|matrix| HeldValues::of(place.clone(), matrix.into())));
            }
        }
    }

    /// Packs its part of the stage's parameters.
    pub(super) fn set(&mut self, pool: &Pool, parameters: &[f32]) {
        for which in Projection::ALL {
            let at = which as usize;
            let (Some(pair), Some(trained)) = (&mut self.layer.pairs[at], &mut self.pairs[at]) else {
                continue;
            };
            let (a, b) = (&parameters[trained.a_at.clone()], &parameters[trained.b_at.clone()]);
            in_file_order(&self.config, which, b, pair.a.n(), &mut self.ordered);
            pair.a.set(pool, a);
            pair.b.set(pool, &self.ordered);
            trained.a_t.set_transposed(pool, a);
            trained.b_t.set_transposed(pool, &self.ordered);
        }
    }

    /// Adds its part to the gradient of the inputs of a matrix. The gradient between both of its own stays in `work`.
    pub(super) fn through(
        &self,
        pool: &Pool,
        which: Projection,
        dy: &[f32],
        dx: &mut [f32],
        work: &mut AdapterWork,
    ) {
        let (Some(pair), Some(trained)) = (self.layer.pair(which), &self.pairs[which as usize]) else {
            return;
        };
        let (m, dinner) = (dy.len() / pair.b.n(), &mut work.dinner[which as usize]);
        dinner.resize(m * pair.a.n(), 0.0);
        linear(pool, &trained.b_t, dy, m, dinner);
        dinner.iter_mut().for_each(|v| *v *= pair.scale);
        linear_add(pool, &trained.a_t, dinner, m, dx);
    }

    /// Gradients of both matrices beside one with `m` rows of inputs `x` and the gradients `dy` of its outputs, after [`Self::through`].
    pub(super) fn gradient(
        &self,
        pool: &Pool,
        which: Projection,
        (x, dy, m): (&[f32], &[f32], usize),
        gradient: &mut Option<(&mut [f32], usize)>,
        work: &mut AdapterWork,
    ) {
        let (Some(pair), Some(trained)) = (self.layer.pair(which), &self.pairs[which as usize]) else {
            return;
        };
        let Some([da, db]) = slices(gradient, [&trained.a_at, &trained.b_at]) else { return };
        let dinner = &work.dinner[which as usize];
        weight_gradient(pool, x, m, &[dinner], &mut [da], Begin::Here);
        pair.inner(pool, x, m, &mut work.inner);
        work.db.resize(db.len(), 0.0);
        weight_gradient(pool, &work.inner, m, &[dy], &mut [&mut work.db], Begin::Here);
        let rank = pair.a.n();
        for (i, row) in db.chunks_exact_mut(rank).enumerate() {
            row.copy_from_slice(&work.db[file_row(&self.config, which, i) * rank..][..rank]);
        }
    }
}
