//! The model of one stage: a span of blocks, perhaps with the embedding before and the head behind it.

use std::ops::Range;

use dunlin_kernels::gradient_sum;
use dunlin_kernels::{
    CausalShape, GradientSums, IGNORED, OutOfRange, Pool, bias_gradient, embedding_gradient,
};

use super::base::Base;
use super::copies::{Bits, HeldValues};
use super::error::TrainingError;
use super::head::{Goal, TrainedHead};
use super::initialise::{initialise, initialise_adapter};
use super::layer::{Back, Layer, Microbatch, Saved, Work};
use super::layout::{EMBEDDING, ParameterLayout};
use super::untrained::untrained;
use crate::adapter::AdapterShape;
use crate::adapter::peft::PROMPT;
use crate::block::{Flaw, Parts};
use crate::config::ModelConfig;
use crate::spec::Attention;
use crate::weights::Embedding;

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

/// Where the first rows come from.
enum FirstRows {
    /// The embedding, row-major, which is trained.
    Embedding(Vec<f32>),
    /// An embedding that stays as it is, behind the rows of a prompt that is trained.
    Frozen { embedding: Embedding, prompt: Vec<f32> },
}

/// A stage that can be trained: all of it, every matrix packed twice, for both directions; or an adapter over a [`Base`]. Parameters, sums and
/// optimizer state are the caller's. Activations of a microbatch and its gradient (one f32 per parameter, less an embedding of its own) are buffers in here: the
/// gradient is added to the sums only when all of it is known to be sound.
///
/// A prompt stands before each sequence: its rows go through all stages with the others, and predict nothing.
pub struct StageModel {
    layout: ParameterLayout,
    /// Tokens of a sequence, and rows before them.
    sequence_length: usize,
    prompt_rows: usize,
    /// Only an adapter is trained.
    adapts: bool,
    parts: Parts,
    /// For the first stage.
    first: Option<FirstRows>,
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
    /// One for each row.
    targets: Vec<u32>,
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
        check(config, &layers, sequence_length, 0)?;
        let layout = ParameterLayout::new(config, layers.clone(), first, last);
        let own = layers.clone().map(|layer| Layer::new(config, &layout, layer)).collect();
        let embedding = first.then(|| FirstRows::Embedding(vec![0.0; config.vocab * config.hidden]));
        let head = last.then(|| TrainedHead::new(config, &layout));
        let ends = (embedding, head);
        Ok(Self::of_parts(config, layout, own, ends, (sequence_length, 0), false))
    }

    /// An adapter for blocks `layers` of a model that stays as it is, `base`, which has the embedding at the first stage and the head at the
    /// last. All parameters are 0 until they are set.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn over(
        config: &ModelConfig,
        base: Base,
        shape: &AdapterShape,
        layers: Range<u32>,
        sequence_length: usize,
    ) -> Result<Self, TrainingError> {
        check(config, &layers, sequence_length, shape.prompt_rows())?;
        let layout = ParameterLayout::of_adapter(config, shape, layers.clone(), base.embedding.is_some());
        let own = layers
            .clone()
            .zip(base.layers)
            .map(|(layer, weights)| Layer::over(weights, config, shape, &layout, layer))
            .collect();
        let prompt = vec![0.0; shape.prompt_rows() * config.hidden];
        let first = base.embedding.map(|embedding| FirstRows::Frozen { embedding, prompt });
        let head = base.head.map(|head| TrainedHead::over(config, head));
        let lengths = (sequence_length, shape.prompt_rows());
        Ok(Self::of_parts(config, layout, own, (first, head), lengths, true))
    }

    fn of_parts(
        config: &ModelConfig,
        layout: ParameterLayout,
        layers: Vec<Layer>,
        (first, head): (Option<FirstRows>, Option<TrainedHead>),
        (sequence_length, prompt_rows): (usize, usize),
        adapts: bool,
    ) -> Self {
        Self {
            sequence_length,
            prompt_rows,
            adapts,
            parts: Parts::new(config, prompt_rows + sequence_length),
            first,
            layers,
            head,
            saved: Vec::new(),
            out: Vec::new(),
            dx: Vec::new(),
            positions: Vec::new(),
            work: Work::default(),
            gradient: Vec::new(),
            ids: Vec::new(),
            id_rows: Vec::new(),
            targets: Vec::new(),
            layout,
        }
    }

    /// First values of the parameters: random ones that depend on `seed`, and for a prompt on the embedding.
    #[must_use]
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut out = vec![0.0; self.layout.len()];
        if self.adapts {
            let embedding = match &self.first {
                Some(FirstRows::Frozen { embedding, .. }) => Some(embedding),
                _ => None,
            };
            initialise_adapter(&self.layout, embedding, seed, &mut out);
        } else {
            initialise(&self.layout, &self.parts.config, seed, &mut out);
        }
        out
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
        match &mut self.first {
            Some(FirstRows::Embedding(values)) => {
                values.copy_from_slice(&parameters[self.layout.range(EMBEDDING)]);
            }
            Some(FirstRows::Frozen { prompt, .. }) => {
                prompt.copy_from_slice(&parameters[self.layout.range(PROMPT)]);
            }
            None => {}
        }
        self.layers.iter_mut().for_each(|layer| layer.set(pool, parameters));
        if let Some(head) = &mut self.head {
            head.set(pool, parameters);
        }
        Ok(())
    }

    /// Everything that is held of the parameters, and of weights that stay as they are: what computations read.
    #[must_use]
    pub fn held(&self) -> Vec<HeldValues<'_>> {
        let mut held = Vec::new();
        match &self.first {
            Some(FirstRows::Embedding(values)) => {
                held.push(HeldValues::of(self.layout.range(EMBEDDING), Bits::Values(values)));
            }
            Some(FirstRows::Frozen { embedding, prompt }) => {
                held.push(HeldValues::frozen(Bits::Bytes(embedding.as_bytes())));
                if self.prompt_rows > 0 {
                    held.push(HeldValues::of(self.layout.range(PROMPT), Bits::Values(prompt)));
                }
            }
            None => {}
        }
        self.layers.iter().for_each(|layer| layer.held(&mut held));
        if let Some(head) = &self.head {
            head.held(&mut held);
        }
        held
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
        if rows != sequences * self.row_length() {
            let length = self.row_length();
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
        self.spread(targets);
        match &mut self.head {
            Some(head) => head.loss(pool, &self.out, &self.targets),
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
        sums: Option<&mut GradientSums>,
        limit: f32,
    ) -> Result<Backward, TrainingError> {
        let rows = self.rows(input)?;
        self.check_grad(grad, rows)?;
        if let Some(sums) = sums.as_ref().filter(|sums| sums.len() != self.layout.len()) {
            let (found, expected) = (sums.len(), self.layout.len());
            return Err(TrainingError::Input(format!("{found} sums for a stage of {expected} parameters")));
        }
        self.forward_blocks(pool, input, rows, true)?;
        if let Grad::Targets { targets, .. } = grad {
            self.spread(targets);
        }
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
            (Grad::Targets { scale, .. }, Some(head)) => {
                self.dx.clear();
                self.dx.resize(self.out.len(), 0.0);
                let gradient = gradient.as_mut().map(|(values, skip)| (&mut **values, *skip));
                let goal = Goal { targets: &self.targets, scale };
                Some(head.backward(pool, &self.out, goal, &mut self.dx, gradient)?)
            }
            (Grad::Targets { .. }, None) => return Err(Self::no_head()),
        };
        for (layer, saved) in self.layers.iter().zip(&mut self.saved).rev() {
            let gradient = gradient.as_mut().map(|(values, skip)| (&mut **values, *skip));
            let batch = Microbatch { shape: &shape, positions: &self.positions };
            let back = Back { dx: &mut self.dx, gradient, work: &mut self.work };
            layer.backward(pool, &self.parts, batch, saved, back)?;
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
        match &self.first {
            Some(FirstRows::Embedding(values)) if self.head.is_none() || !self.parts.config.tied => {
                values.len()
            }
            _ => 0,
        }
    }

    /// Rows of a sequence.
    fn row_length(&self) -> usize {
        self.prompt_rows + self.sequence_length
    }

    /// One target for each row: those of a prompt predict nothing.
    fn spread(&mut self, targets: &[u32]) {
        self.targets.clear();
        for sequence in targets.chunks_exact(self.sequence_length) {
            self.targets.extend(std::iter::repeat_n(IGNORED, self.prompt_rows));
            self.targets.extend_from_slice(sequence);
        }
    }

    /// Adds the gradient of the microbatch, once all of it is sound. A tied embedding in a stage that is first and last gets both parts one
    /// after the other, each rounded by itself, as it would from two stages.
    fn add_to_sums(
        &mut self,
        pool: &Pool,
        input: StageInput<'_>,
        sums: &mut GradientSums,
        limit: f32,
    ) -> Result<(), TrainingError> {
        let hidden = self.parts.config.hidden;
        let skip = self.gradient_skip();
        let tokens = match (input, &self.first) {
            (StageInput::Tokens(tokens), Some(FirstRows::Embedding(_))) => Some(tokens),
            _ => None,
        };
        if let Some(tokens) = tokens {
            embedding_gradient(pool, tokens, &self.dx, hidden, &mut self.ids, &mut self.id_rows);
            gradient_sum::check(pool, &self.id_rows, limit).map_err(|wrong| {
                let token = self.ids[wrong.index / hidden] as usize;
                self.out_of_range(OutOfRange { index: token * hidden + wrong.index % hidden, ..wrong })
            })?;
        } else if self.first.is_some() && self.prompt_rows > 0 {
            // The same rows stand before every sequence.
            let (prompt, sequence) = (self.prompt_rows * hidden, self.row_length() * hidden);
            self.id_rows.clear();
            self.dx.chunks_exact(sequence).for_each(|rows| self.id_rows.extend_from_slice(&rows[..prompt]));
            bias_gradient(pool, &self.id_rows, &mut self.gradient[self.layout.range(PROMPT)]);
        }
        sums.add(pool, skip, &self.gradient, limit)
            .map_err(|wrong| self.out_of_range(OutOfRange { index: skip + wrong.index, ..wrong }))?;
        if tokens.is_some() {
            for (id, row) in self.ids.iter().zip(self.id_rows.chunks_exact(hidden)) {
                sums.add(pool, *id as usize * hidden, row, limit)
                    .map_err(|wrong| self.out_of_range(wrong))?;
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
        let length = self.row_length();
        self.positions.extend((0..rows).map(|row| (row % length) as u32));
        self.read_input(input);
        let kept = if keep { self.layers.len() } else { 1 };
        self.saved.resize_with(self.saved.len().max(kept), Saved::default);
        for (i, layer) in self.layers.iter().enumerate() {
            let saved = &mut self.saved[if keep { i } else { 0 }];
            std::mem::swap(&mut saved.x, &mut self.out);
            let batch = Microbatch { shape: &shape, positions: &self.positions };
            layer.forward(pool, &mut self.parts, batch, saved, &mut self.out)?;
        }
        Ok(())
    }

    /// The rows that go into the first block, into `self.out`.
    fn read_input(&mut self, input: StageInput<'_>) {
        self.out.clear();
        let hidden = self.parts.config.hidden;
        match (input, &self.first) {
            (StageInput::Tokens(tokens), Some(FirstRows::Embedding(values))) => {
                for token in tokens {
                    self.out.extend_from_slice(&values[*token as usize * hidden..][..hidden]);
                }
            }
            (StageInput::Tokens(tokens), Some(FirstRows::Frozen { embedding, prompt })) => {
                for sequence in tokens.chunks_exact(self.sequence_length) {
                    self.out.extend_from_slice(prompt);
                    self.out.extend(
                        embedding.rows(sequence, None).expect("`rows` saw every token in the vocabulary"),
                    );
                }
            }
            (StageInput::Rows(rows), _) => self.out.extend_from_slice(rows),
            (StageInput::Tokens(_), None) => {}
        }
    }

    fn shape(&self, rows: usize) -> CausalShape {
        let c = &self.parts.config;
        let (sequences, length) = (rows / self.row_length(), self.row_length());
        let Attention { heads, kv_heads, head_dim, .. } = c.block.attention;
        CausalShape { sequences, length, heads, kv_heads, head_dim }
    }

    /// Rows of an input that fits this stage.
    fn rows(&self, input: StageInput<'_>) -> Result<usize, TrainingError> {
        let c = &self.parts.config;
        let wrong = |what: String| Err(TrainingError::Input(what));
        let (rows, length) = match (input, &self.first) {
            (StageInput::Tokens(tokens), Some(_)) => {
                if let Some(token) = tokens.iter().find(|token| **token as usize >= c.vocab) {
                    return wrong(format!("token {token} of a vocabulary of {}", c.vocab));
                }
                (tokens.len(), self.sequence_length)
            }
            (StageInput::Rows(rows), None) if rows.len().is_multiple_of(c.hidden) => {
                // Checked here, since a sender's fault must not look like one of a layer.
                if let Err(flaw) = Flaw::find("input", rows, c.hidden) {
                    return wrong(format!("a value of input row {} is not finite", flaw.row));
                }
                (rows.len() / c.hidden, self.row_length())
            }
            (StageInput::Rows(rows), None) => {
                return wrong(format!("{} values are no rows of {}", rows.len(), c.hidden));
            }
            (StageInput::Tokens(_), None) => {
                return wrong("tokens for a stage that is not the first".to_owned());
            }
            (StageInput::Rows(_), Some(_)) => return wrong("rows for the first stage".to_owned()),
        };
        if rows == 0 || !rows.is_multiple_of(length) {
            return wrong(format!("{rows} rows are no sequences of {length}"));
        }
        Ok(rows / length * self.row_length())
    }

    fn check_targets(&self, targets: &[u32], rows: usize) -> Result<(), TrainingError> {
        let vocab = self.parts.config.vocab;
        let wanted = rows / self.row_length() * self.sequence_length;
        if targets.len() != wanted {
            return Err(TrainingError::Input(format!("{} targets for {wanted} tokens", targets.len())));
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

/// Are there such blocks, which are trained here, and was the model made for sequences of this length?
fn check(
    config: &ModelConfig,
    span: &Range<u32>,
    sequence_length: usize,
    prompt_rows: usize,
) -> Result<(), TrainingError> {
    if let Some(why) = untrained(config) {
        let architecture = &config.architecture;
        return Err(TrainingError::Input(format!("a {architecture}, which {why}, is not trained here")));
    }
    if span.start > span.end || span.end > config.layers {
        return Err(TrainingError::Input(format!("blocks {span:?} of a model of {}", config.layers)));
    }
    let (rows, longest) = (prompt_rows + sequence_length, config.trained_length_max());
    if sequence_length == 0 || rows > longest as usize {
        return Err(TrainingError::Input(format!(
            "sequences of {rows} tokens for a model with a context of {longest}"
        )));
    }
    Ok(())
}
