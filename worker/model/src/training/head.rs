//! The last norm, the output matrix and the loss.

use std::ops::Range;

use dunlin_kernels::{
    Begin, Matrix, Pool, cross_entropy, linear, rms_norm, rms_norm_backward, weight_gradient,
};

use super::TrainingError;
use super::layer::{Work, fit};
use super::layout::{NORM, ParameterLayout};
use crate::block::Flaw;
use crate::config::ModelConfig;

/// Rows whose logits are held at once: a chunk of the sums over tokens, so that sums are the same as over all rows at once.
const ROWS: usize = 256;

/// The end of a model.
pub(super) struct TrainedHead {
    /// Its number in errors: that of a layer behind the last.
    number: u32,
    eps: f32,
    norm_at: Range<usize>,
    output_at: Range<usize>,
    norm: Vec<f32>,
    output: Matrix,
    output_t: Matrix,
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    logits: Vec<f32>,
    losses: Vec<f64>,
}

/// Targets, and what the gradients are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Goal<'a> {
    pub(super) targets: &'a [u32],
    pub(super) scale: f32,
}

impl TrainedHead {
    pub(super) fn new(config: &ModelConfig, layout: &ParameterLayout) -> Self {
        let c = config;
        Self {
            number: c.layers,
            eps: c.rms_eps,
            norm_at: layout.range(NORM),
            output_at: layout.range(ParameterLayout::head_name(c)),
            norm: vec![0.0; c.hidden],
            output: Matrix::zeroed_f32(c.vocab, c.hidden),
            output_t: Matrix::zeroed_f32(c.hidden, c.vocab),
            normed: Vec::new(),
            dnormed: Vec::new(),
            logits: Vec::new(),
            losses: Vec::new(),
        }
    }

    pub(super) fn set(&mut self, pool: &Pool, parameters: &[f32]) {
        self.norm.copy_from_slice(&parameters[self.norm_at.clone()]);
        self.output.set(pool, &parameters[self.output_at.clone()]);
        self.output_t.set_transposed(pool, &parameters[self.output_at.clone()]);
    }

    /// The sum of the losses of the rows `x` in nats.
    pub(super) fn loss(
        &mut self,
        pool: &Pool,
        x: &[f32],
        targets: &[u32],
        work: &mut Work,
    ) -> Result<f64, TrainingError> {
        let mut sum = 0.0;
        for start in (0..targets.len()).step_by(ROWS) {
            let rows = start..targets.len().min(start + ROWS);
            sum += self.some_rows(pool, x, Goal { targets, scale: 0.0 }, rows, work)?;
        }
        Ok(sum)
    }

    /// Normed rows, logits and loss of `rows`; the logits become their gradients.
    fn some_rows(
        &mut self,
        pool: &Pool,
        x: &[f32],
        goal: Goal<'_>,
        rows: Range<usize>,
        work: &mut Work,
    ) -> Result<f64, TrainingError> {
        let (hidden, vocab, m) = (self.norm.len(), self.output.n(), rows.len());
        fit(&mut self.normed, m * hidden);
        fit(&mut self.logits, m * vocab);
        self.losses.resize(m, 0.0);
        let x = &x[rows.start * hidden..rows.end * hidden];
        rms_norm(pool, x, &self.norm, self.eps, m, &mut self.normed);
        linear(pool, &self.output, &self.normed, m, &mut self.logits, &mut work.linear);
        Flaw::find("logits", &self.logits, vocab).map_err(|flaw| {
            TrainingError::at(self.number)(Flaw { op: flaw.op, row: rows.start + flaw.row })
        })?;
        cross_entropy(pool, &mut self.logits, &goal.targets[rows], goal.scale, &mut self.losses);
        Ok(self.losses.iter().sum())
    }

    /// Loss and gradients in one pass: `dx`, all zero, becomes the gradient of the rows `x`. Gradients of the parameters replace what is in
    /// `gradient`, the stage's vector from index `skip` on.
    pub(super) fn backward(
        &mut self,
        pool: &Pool,
        x: &[f32],
        goal: Goal<'_>,
        dx: &mut [f32],
        gradient: Option<(&mut [f32], usize)>,
        work: &mut Work,
    ) -> Result<f64, TrainingError> {
        let (hidden, m) = (self.norm.len(), goal.targets.len());
        let mut gradient = gradient;
        let mut sum = 0.0;
        fit(&mut self.dnormed, m * hidden);
        for start in (0..m).step_by(ROWS) {
            let rows = start..m.min(start + ROWS);
            let count = rows.len();
            sum += self.some_rows(pool, x, goal, rows.clone(), work)?;
            let dnormed = &mut self.dnormed[rows.start * hidden..rows.end * hidden];
            linear(pool, &self.output_t, &self.logits, count, dnormed, &mut work.linear);
            if let Some((values, skip)) = &mut gradient {
                let dw = &mut values[self.output_at.start - *skip..self.output_at.end - *skip];
                let begin = if start == 0 { Begin::Here } else { Begin::Before };
                weight_gradient(
                    pool,
                    &self.normed,
                    count,
                    &[&self.logits],
                    &mut [dw],
                    begin,
                    &mut work.gradient,
                );
            }
        }
        let dw =
            gradient.map(|(values, skip)| &mut values[self.norm_at.start - skip..self.norm_at.end - skip]);
        rms_norm_backward(pool, x, &self.norm, self.eps, &self.dnormed, dx, dw);
        Flaw::find("the backward pass", dx, hidden).map_err(TrainingError::at(self.number))?;
        Ok(sum)
    }
}
