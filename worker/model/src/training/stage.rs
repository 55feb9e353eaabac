//! The model of one stage: a span of blocks, perhaps with the embedding before and the head behind it.

use std::ops::Range;

use dunlin_kernels::gradient_sum::{accumulate, check};
use dunlin_kernels::{CausalShape, IGNORED, OutOfRange, Pool, embedding_gradient};

use super::TrainingError;
use super::head::{Goal, TrainedHead};
use super::layer::{Layer, Saved, Work};
use super::layout::{EMBEDDING, ParameterLayout};
use crate::block::{Flaw, Parts};
use crate::config::ModelConfig;

/// What goes into a stage: whole sequences, one after the other.
#[derive(Clone, Copy, Debug)]
pub enum StageInput<'a> {
    /// Tokens, for the first stage.
    Tokens(&'a [u32]),
    /// Rows of `hidden` values, for the others.
    Rows(&'a [f32]),
}

/// What comes back into a stage.
#[derive(Clone, Copy, Debug)]
pub enum Grad<'a> {
    /// Gradients of the rows behind the stage.
    Rows(&'a [f32]),
    /// For the last stage: the token that follows each row, or [`IGNORED`].
    Targets {
        /// One for each row.
        targets: &'a [u32],
        /// What the gradient of the summed loss is multiplied by: 1 over the tokens of the global batch.
        scale: f32,
    },
}

/// What [`StageModel::backward`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Backward {
    /// Gradients of the rows that came in; tokens have none.
    pub input_gradient: Option<Vec<f32>>,
    /// For the last stage: the sum of all losses in nats.
    pub loss: Option<f64>,
}

/// A stage that can be trained. It holds every matrix packed twice, for both directions; parameters, sums and optimizer state are the
/// caller's. Activations of a microbatch and its gradient (one f32 per parameter, less an embedding of its own) are buffers in here: the
/// gradient is added to the sums only when all of it is known to be sound.
pub struct StageModel {
    layout: ParameterLayout,
    sequence_length: usize,
    parts: Parts,
    /// Row-major, for the first stage.
    embedding: Option<Vec<f32>>,
    layers: Vec<Layer>,
    head: Option<TrainedHead>,
    saved: Vec<Saved>,
    out: Vec<f32>,
    dx: Vec<f32>,
    positions: Vec<u32>,
    work: Work,
    gradient: Vec<f32>,
    /// Tokens of a microbatch and the gradients of their embeddings.
    ids: Vec<u32>,
    id_rows: Vec<f32>,
}

impl StageModel {
    /// Blocks `layers` for sequences of `sequence_length` tokens; with the embedding when `first`, with the head when `last`. All parameters
    /// are 0 until they are set.
    ///
    /// # Errors
    /// When there are no such blocks, or the model was not made for sequences of this length.
    pub fn new(
        config: &ModelConfig,
        layers: Range<u32>,
        first: bool,
        last: bool,
        sequence_length: usize,
    ) -> Result<Self, TrainingError> {
        if layers.start > layers.end || layers.end > config.layers {
            return Err(TrainingError::Input(format!("blocks {layers:?} of a model of {}", config.layers)));
        }
        if sequence_length == 0 || sequence_length > config.context_length as usize {
            let longest = config.context_length;
            return Err(TrainingError::Input(format!(
                "sequences of {sequence_length} tokens for a model with a context of {longest}"
            )));
        }
        let layout = ParameterLayout::new(config, layers.clone(), first, last);
        Ok(Self {
            sequence_length,
            parts: Parts::new(config, sequence_length),
            embedding: first.then(|| vec![0.0; config.vocab * config.hidden]),
            layers: layers.map(|layer| Layer::new(config, &layout, layer)).collect(),
            head: last.then(|| TrainedHead::new(config, &layout)),
            saved: Vec::new(),
            out: Vec::new(),
            dx: Vec::new(),
            positions: Vec::new(),
            work: Work::default(),
            gradient: Vec::new(),
            ids: Vec::new(),
            id_rows: Vec::new(),
            layout,
        })
    }

    /// The parameters of this stage.
    #[must_use]
    pub fn layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// Takes new parameters over: packs every matrix for both directions.
    ///
    /// # Errors
    /// When there are more or fewer than the layout has.
    pub fn set_parameters(&mut self, pool: &Pool, parameters: &[f32]) -> Result<(), TrainingError> {
        let (found, expected) = (parameters.len(), self.layout.len());
        if found != expected {
            return Err(TrainingError::Input(format!("{found} parameters for a stage of {expected}")));
        }
        if let Some(embedding) = &mut self.embedding {
            embedding.copy_from_slice(&parameters[self.layout.range(EMBEDDING)]);
        }
        self.layers.iter_mut().for_each(|layer| layer.set(pool, parameters));
        if let Some(head) = &mut self.head {
            head.set(pool, parameters);
        }
        Ok(())
    }

    /// The rows behind the blocks, `sequences * sequence_length * hidden`: what the next stage takes.
    ///
    /// # Errors
    /// When the input does not fit, or a value is not finite.
    pub fn forward(
        &mut self,
        pool: &Pool,
        input: StageInput<'_>,
        sequences: usize,
    ) -> Result<Vec<f32>, TrainingError> {
        let rows = self.rows(input)?;
        if rows != sequences * self.sequence_length {
            let length = self.sequence_length;
            return Err(TrainingError::Input(format!("{rows} rows for {sequences} sequences of {length}")));
        }
        self.forward_blocks(pool, input, rows, false)?;
        Ok(std::mem::take(&mut self.out))
    }

    /// For the last stage: the sum of the losses in nats, without gradients.
    ///
    /// # Errors
    /// As [`Self::forward`], and when this is not the last stage or the targets do not fit.
    pub fn loss(
        &mut self,
        pool: &Pool,
        input: StageInput<'_>,
        targets: &[u32],
    ) -> Result<f64, TrainingError> {
        let rows = self.rows(input)?;
        self.check_targets(targets, rows)?;
        self.forward_blocks(pool, input, rows, false)?;
        match &mut self.head {
            Some(head) => head.loss(pool, &self.out, targets, &mut self.work),
            None => Err(Self::no_head()),
        }
    }

    /// Forward again, and back. The gradient of every parameter is added to `sums`, of the layout's length; without `sums` it is not even
    /// computed.
    ///
    /// # Errors
    /// When the input does not fit, a value is not finite, or a parameter's gradient is above `limit` in size: nothing is added then.
    ///
    /// # Panics
    /// When `limit` is not between 0 and [`dunlin_kernels::gradient_sum::LIMIT_MAX`].
    pub fn backward(
        &mut self,
        pool: &Pool,
        input: StageInput<'_>,
        grad: Grad<'_>,
        sums: Option<&mut [i64]>,
        limit: f32,
    ) -> Result<Backward, TrainingError> {
        let rows = self.rows(input)?;
        self.check_grad(grad, rows)?;
        if let Some(sums) = sums.as_ref().filter(|sums| sums.len() != self.layout.len()) {
            let (found, expected) = (sums.len(), self.layout.len());
            return Err(TrainingError::Input(format!("{found} sums for a stage of {expected} parameters")));
        }
        self.forward_blocks(pool, input, rows, true)?;
        let (shape, skip) = (self.shape(rows), self.gradient_skip());
        if sums.is_some() {
            self.gradient.resize(self.layout.len() - skip, 0.0);
        }
        let mut gradient = sums.is_some().then_some((self.gradient.as_mut_slice(), skip));
        let loss = match (grad, &mut self.head) {
            (Grad::Rows(rows), _) => {
                self.dx.clear();
                self.dx.extend_from_slice(rows);
                None
            }
            (Grad::Targets { targets, scale }, Some(head)) => {
                self.dx.clear();
                self.dx.resize(self.out.len(), 0.0);
                let gradient = gradient.as_mut().map(|(values, skip)| (&mut **values, *skip));
                let goal = Goal { targets, scale };
                Some(head.backward(pool, &self.out, goal, &mut self.dx, gradient, &mut self.work)?)
            }
            (Grad::Targets { .. }, None) => return Err(Self::no_head()),
        };
        for (layer, saved) in self.layers.iter().zip(&mut self.saved).rev() {
            let gradient = gradient.as_mut().map(|(values, skip)| (&mut **values, *skip));
            let (parts, positions) = (&self.parts, &self.positions);
            layer.backward(pool, parts, &shape, positions, saved, &mut self.dx, gradient, &mut self.work)?;
        }
        if let Some(sums) = sums {
            self.add_to_sums(pool, input, sums, limit)?;
        }
        let input_gradient = matches!(input, StageInput::Rows(_)).then(|| std::mem::take(&mut self.dx));
        Ok(Backward { input_gradient, loss })
    }

    /// Parameters at the start of the vector without a place in `self.gradient`: an embedding that is no output matrix, whose gradient is held
    /// as a few rows.
    fn gradient_skip(&self) -> usize {
        let tied_here = self.head.is_some() && self.parts.config.tied;
        self.embedding.as_ref().filter(|_| !tied_here).map_or(0, Vec::len)
    }

    /// Adds the gradient of the microbatch, once all of it is sound. A tied embedding in a stage that is first and last gets both parts one
    /// after the other, each rounded by itself, as it would from two stages.
    fn add_to_sums(
        &mut self,
        pool: &Pool,
        input: StageInput<'_>,
        sums: &mut [i64],
        limit: f32,
    ) -> Result<(), TrainingError> {
        let hidden = self.parts.config.hidden;
        let skip = self.gradient_skip();
        if let StageInput::Tokens(tokens) = input {
            embedding_gradient(pool, tokens, &self.dx, hidden, &mut self.ids, &mut self.id_rows);
            check(pool, &self.id_rows, limit).map_err(|wrong| {
                let token = self.ids[wrong.index / hidden] as usize;
                self.out_of_range(OutOfRange { index: token * hidden + wrong.index % hidden, ..wrong })
            })?;
        }
        accumulate(pool, &mut sums[skip..], &self.gradient, limit)
            .map_err(|wrong| self.out_of_range(OutOfRange { index: skip + wrong.index, ..wrong }))?;
        if let StageInput::Tokens(_) = input {
            for (id, row) in self.ids.iter().zip(self.id_rows.chunks_exact(hidden)) {
                let sums = &mut sums[*id as usize * hidden..][..hidden];
                accumulate(pool, sums, row, limit).map_err(|wrong| self.out_of_range(wrong))?;
            }
        }
        Ok(())
    }

    fn out_of_range(&self, wrong: OutOfRange) -> TrainingError {
        let OutOfRange { index, value, limit } = wrong;
        let (tensor, offset) =
            self.layout.tensor_of(index).map_or((String::new(), 0), |t| (t.name.clone(), t.offset));
        TrainingError::Gradient { tensor, index: index - offset, value, limit }
    }

    /// Runs all blocks; leaves the rows in `self.out`, and in `self.saved` what the way back needs, when it is to be kept.
    fn forward_blocks(
        &mut self,
        pool: &Pool,
        input: StageInput<'_>,
        rows: usize,
        keep: bool,
    ) -> Result<(), TrainingError> {
        let shape = self.shape(rows);
        self.positions.clear();
        self.positions.extend((0..rows).map(|row| (row % self.sequence_length) as u32));
        self.read_input(input);
        let kept = if keep { self.layers.len() } else { 1 };
        self.saved.resize_with(self.saved.len().max(kept), Saved::default);
        for (i, layer) in self.layers.iter().enumerate() {
            let saved = &mut self.saved[if keep { i } else { 0 }];
            std::mem::swap(&mut saved.x, &mut self.out);
            let (positions, causal) = (&self.positions, &mut self.work.causal);
            layer.forward(pool, &mut self.parts, &shape, positions, saved, &mut self.out, causal)?;
        }
        Ok(())
    }

    /// The rows that go into the first block, into `self.out`.
    fn read_input(&mut self, input: StageInput<'_>) {
        self.out.clear();
        match (input, &self.embedding) {
            (StageInput::Tokens(tokens), Some(embedding)) => {
                let hidden = self.parts.config.hidden;
                for token in tokens {
                    self.out.extend_from_slice(&embedding[*token as usize * hidden..][..hidden]);
                }
            }
            (StageInput::Rows(rows), _) => self.out.extend_from_slice(rows),
            (StageInput::Tokens(_), None) => {}
        }
    }

    fn shape(&self, rows: usize) -> CausalShape {
        let c = &self.parts.config;
        let (sequences, length) = (rows / self.sequence_length, self.sequence_length);
        CausalShape { sequences, length, heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim }
    }

    /// Rows of an input that fits this stage.
    fn rows(&self, input: StageInput<'_>) -> Result<usize, TrainingError> {
        let c = &self.parts.config;
        let wrong = |what: String| Err(TrainingError::Input(what));
        let rows = match (input, &self.embedding) {
            (StageInput::Tokens(tokens), Some(_)) => {
                if let Some(token) = tokens.iter().find(|token| **token as usize >= c.vocab) {
                    return wrong(format!("token {token} of a vocabulary of {}", c.vocab));
                }
                tokens.len()
            }
            (StageInput::Rows(rows), None) if rows.len().is_multiple_of(c.hidden) => {
                // Checked here, since a sender's fault must not look like one of a layer.
                if let Err(flaw) = Flaw::find("input", rows, c.hidden) {
                    return wrong(format!("a value of input row {} is not finite", flaw.row));
                }
                rows.len() / c.hidden
            }
            (StageInput::Rows(rows), None) => {
                return wrong(format!("{} values are no rows of {}", rows.len(), c.hidden));
            }
            (StageInput::Tokens(_), None) => {
                return wrong("tokens for a stage that is not the first".to_owned());
            }
            (StageInput::Rows(_), Some(_)) => return wrong("rows for the first stage".to_owned()),
        };
        if rows == 0 || !rows.is_multiple_of(self.sequence_length) {
            return wrong(format!("{rows} rows are no sequences of {}", self.sequence_length));
        }
        Ok(rows)
    }

    fn check_targets(&self, targets: &[u32], rows: usize) -> Result<(), TrainingError> {
        let vocab = self.parts.config.vocab;
        if targets.len() != rows {
            return Err(TrainingError::Input(format!("{} targets for {rows} rows", targets.len())));
        }
        match targets.iter().find(|target| **target as usize >= vocab && **target != IGNORED) {
            Some(target) => Err(TrainingError::Input(format!("target {target} of a vocabulary of {vocab}"))),
            None => Ok(()),
        }
    }

    fn check_grad(&self, grad: Grad<'_>, rows: usize) -> Result<(), TrainingError> {
        let hidden = self.parts.config.hidden;
        match grad {
            Grad::Targets { .. } if self.head.is_none() => Err(Self::no_head()),
            Grad::Targets { targets, .. } => self.check_targets(targets, rows),
            Grad::Rows(_) if self.head.is_some() => Err(TrainingError::Input(
                "gradients of rows for the last stage, which needs targets".to_owned(),
            )),
            Grad::Rows(values) if values.len() != rows * hidden => {
                Err(TrainingError::Input(format!("{} gradients for {rows} rows of {hidden}", values.len())))
            }
            Grad::Rows(values) => Flaw::find("gradient", values, hidden).map_err(|flaw| {
                TrainingError::Input(format!("a value of gradient row {} is not finite", flaw.row))
            }),
        }
    }

    fn no_head() -> TrainingError {
        TrainingError::Input("targets for a stage that is not the last".to_owned())
    }
}
