//! The last norm, the output matrix and the loss.

use std::ops::Range;
use std::sync::Arc;

use dunlin_kernels::{
    Begin, Matrix, Pool, cross_entropy, linear, linear_transposed, rms_norm, rms_norm_backward,
    weight_gradient,
};

use super::copies::{Bits, HeldValues};
use super::error::TrainingError;
use super::layer::fit;
use super::layout::{NORM, ParameterLayout};
use crate::block::Flaw;
use crate::config::ModelConfig;
use crate::weights::Head;

/// Rows whose logits are held at once: a chunk of the sums over tokens, so that sums are the same as over all rows at once.
const ROWS: usize = 256;

/// The end of a model.
pub(super) struct TrainedHead {
    /// Its number in errors: that of a layer behind the last.
    number: u32,
    head: Head,
    /// None when the head stays as it is.
    trained: Option<Trained>,
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    logits: Vec<f32>,
    losses: Vec<f64>,
}

/// Where both tensors are in the stage's vector, and the output matrix transposed.
struct Trained {
    norm_at: Range<usize>,
    output_at: Range<usize>,
    output_t: Matrix,
}

/// Targets, and what the gradients are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Goal<'a> {
    pub(super) targets: &'a [u32],
    pub(super) scale: f32,
}

impl TrainedHead {
    /// All zero, to be trained.
    pub(super) fn new(config: &ModelConfig, layout: &ParameterLayout) -> Self {
        let trained = Trained {
            norm_at: layout.range(NORM),
            output_at: layout.range(ParameterLayout::head_name(config)),
            output_t: Matrix::zeroed_f32(config.hidden, config.vocab),
        };
        Self { trained: Some(trained), ..Self::over(config, Head::zeroed(config)) }
    }

    /// A head that stays as it is.
    pub(super) fn over(config: &ModelConfig, head: Head) -> Self {
        Self {
            number: config.layers,
            head,
            trained: None,
            normed: Vec::new(),
            dnormed: Vec::new(),
            logits: Vec::new(),
            losses: Vec::new(),
        }
    }

    /// What of it is held.
    pub(super) fn held<'a>(&'a self, out: &mut Vec<HeldValues<'a>>) {
        let (norm, output) = (Bits::Values(&self.head.norm), Bits::from(&*self.head.output));
        match &self.trained {
            None => out.extend([HeldValues::frozen(norm), HeldValues::frozen(output)]),
            Some(trained) => out.extend([
                HeldValues::of(trained.norm_at.clone(), norm),
                HeldValues::of(trained.output_at.clone(), output),
                HeldValues::of(trained.output_at.clone(), (&trained.output_t).into()),
            ]),
        }
    }

    /// Packs its part of the stage's parameters.
    pub(super) fn set(&mut self, pool: &Pool, parameters: &[f32]) {
        let Some(trained) = &mut self.trained else { return };
        self.head.norm.copy_from_slice(&parameters[trained.norm_at.clone()]);
        let values = &parameters[trained.output_at.clone()];
        let output =
            Arc::get_mut(&mut self.head.output).expect("an output matrix that is trained is nobody else's");
        output.set(pool, values);
        trained.output_t.set_transposed(pool, values);
    }

    /// The product of the gradients of some rows of logits with the output matrix.
    fn through(&mut self, pool: &Pool, rows: Range<usize>) {
        let hidden = self.head.norm.len();
        let m = rows.len();
        let dnormed = &mut self.dnormed[rows.start * hidden..rows.end * hidden];
        match &self.trained {
            Some(trained) => linear(pool, &trained.output_t, &self.logits, m, dnormed),
            None => {
                let output = &self.head.output;
                linear_transposed(pool, output, &self.logits, m, dnormed, false);
            }
        }
    }

    /// The sum of the losses of the rows `x` in nats.
    pub(super) fn loss(&mut self, pool: &Pool, x: &[f32], targets: &[u32]) -> Result<f64, TrainingError> {
        let mut sum = 0.0;
        for start in (0..targets.len()).step_by(ROWS) {
            let rows = start..targets.len().min(start + ROWS);
            sum += self.some_rows(pool, x, Goal { targets, scale: 0.0 }, rows)?;
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
    ) -> Result<f64, TrainingError> {
        let (hidden, vocab, m) = (self.head.norm.len(), self.head.output.n(), rows.len());
        fit(&mut self.normed, m * hidden);
        fit(&mut self.logits, m * vocab);
        self.losses.resize(m, 0.0);
        let x = &x[rows.start * hidden..rows.end * hidden];
        rms_norm(pool, x, &self.head.norm, self.head.eps, m, &mut self.normed);
        linear(pool, &self.head.output, &self.normed, m, &mut self.logits);
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
    ) -> Result<f64, TrainingError> {
        let (hidden, m) = (self.head.norm.len(), goal.targets.len());
        let mut gradient = gradient;
        let mut sum = 0.0;
        fit(&mut self.dnormed, m * hidden);
        for start in (0..m).step_by(ROWS) {
            let rows = start..m.min(start + ROWS);
            let count = rows.len();
            sum += self.some_rows(pool, x, goal, rows.clone())?;
            self.through(pool, rows);
            if let (Some((values, skip)), Some(trained)) = (&mut gradient, &self.trained) {
                let dw = &mut values[trained.output_at.start - *skip..trained.output_at.end - *skip];
                let begin = if start == 0 { Begin::Here } else { Begin::Before };
                weight_gradient(pool, &self.normed, count, &[&self.logits], &mut [dw], begin);
            }
        }
        let dw = gradient.zip(self.trained.as_ref()).map(|((values, skip), trained)| {
            &mut values[trained.norm_at.start - skip..trained.norm_at.end - skip]
        });
        rms_norm_backward(pool, x, &self.head.norm, self.head.eps, &self.dnormed, dx, dw);
        Flaw::find("the backward pass", dx, hidden).map_err(TrainingError::at(self.number))?;
        Ok(sum)
    }
}
