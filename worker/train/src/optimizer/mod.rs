//! Optimizers over a stage's flat parameters.
//!
//! * [`formula`] the updates, element by element
//! * [`checked`] vectors that know what was written to them
//!
//! Every operation is one that IEEE 754 defines to the last bit, elements do not depend on each other, and norms (LAMB) are sums over a
//! tensor in fixed chunks: the bits do not depend on the machine, on the number of threads, nor on where stages are cut.

mod checked;
mod formula;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dunlin_kernels::{Isa, Pool, bit_sum};
use thiserror::Error;

use crate::config::{OptimizerKind, OptimizerSpec};
use crate::parts::{Chunks, TensorRange, chunks, in_parts, split_mut};
use crate::squares::squares;
pub use checked::Checked;
use formula::{AdamStep, sgd};

/// Above this norm LAMB treats a tensor as if it had it.
const LAMB_NORM_MAX: f64 = 1e4;

/// What an optimizer remembers; f32 vectors of the layout of the parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    /// Updates so far.
    pub step: u64,
    /// AdamW, Lamb: mean of gradients, mean of squares. Sgd: momentum, if any.
    pub slots: Vec<Vec<f32>>,
}

/// Why an update cannot be made.
#[derive(Debug, Error)]
pub enum OptimizerError {
    /// The tensors are not parts of the vector, in order.
    #[error("tensor {0} of the optimizer overlaps the one before or ends beyond {1} parameters")]
    Layout(usize, usize),
    /// Vectors of different lengths.
    #[error("{what} has {found} values, the optimizer has {expected} parameters")]
    Length {
        /// The vector, in words.
        what: &'static str,
        /// The length that it has.
        found: usize,
        /// The length it should have.
        expected: usize,
    },
    /// A state of another kind of optimizer.
    #[error(
        "a state of {found} vectors is not one of {kind:?}, which has {expected}; was the checkpoint written with another optimizer?"
    )]
    Slots {
        /// The optimizer of this run.
        kind: OptimizerKind,
        /// Vectors there are.
        found: usize,
        /// Vectors there should be.
        expected: usize,
    },
    /// The update made a parameter that is not a number.
    #[error(
        "the update of step {0} made parameters that are not finite: use a lower learning rate, or an earlier checkpoint"
    )]
    NonFinite(u64),
    /// A value is not the one that was written.
    #[error("memory has changed: {what} at {from} to {to} is not what the last update wrote")]
    Changed {
        /// The vector, in words.
        what: &'static str,
        /// The chunk's first value.
        from: usize,
        /// Behind its last.
        to: usize,
    },
}

/// An optimizer with its state.
pub struct Optimizer {
    config: OptimizerSpec,
    tensors: Vec<TensorRange>,
    chunks: Arc<Chunks>,
    length: usize,
    /// Updates so far.
    step: u64,
    slots: Vec<Checked>,
}

/// A chunk of a tensor with what belongs to it.
struct Work<'a> {
    tensor: usize,
    parameters: &'a mut [f32],
    gradient: &'a [f32],
    slots: Vec<&'a mut [f32]>,
    /// Sums of bits that the parameters and the slots should have.
    sums: Vec<&'a mut u64>,
    /// Which of them had another.
    changed: Option<usize>,
    /// Sums of squares of parameters and of the update (Lamb).
    squares: [f64; 2],
}

impl Optimizer {
    /// Vectors of a state: 2, 1 or none.
    #[must_use]
    pub fn slots(config: &OptimizerSpec) -> usize {
        match config.kind {
            OptimizerKind::AdamW | OptimizerKind::Lamb => 2,
            OptimizerKind::Sgd => usize::from(config.momentum > 0.0),
        }
    }

    /// An optimizer of `length` parameters that has updated nothing yet. Parameters outside of `tensors` stay as they are.
    ///
    /// # Errors
    /// When `tensors` are not ordered, disjoint and inside of `length`.
    pub fn new(
        config: &OptimizerSpec,
        tensors: Vec<TensorRange>,
        length: usize,
    ) -> Result<Self, OptimizerError> {
        let slots = vec![vec![0.0; length]; Self::slots(config)];
        Self::with_state(config, tensors, length, OptimizerState { step: 0, slots })
    }

    /// As [`Optimizer::new`], going on from `state`.
    ///
    /// # Errors
    /// Also when the state is not of this optimizer or length.
    pub fn with_state(
        config: &OptimizerSpec,
        tensors: Vec<TensorRange>,
        length: usize,
        state: OptimizerState,
    ) -> Result<Self, OptimizerError> {
        let mut end = 0;
        for (index, TensorRange { range, .. }) in tensors.iter().enumerate() {
            if range.start < end || range.end < range.start || range.end > length {
                return Err(OptimizerError::Layout(index, length));
            }
            end = range.end;
        }
        let (found, expected) = (state.slots.len(), Self::slots(config));
        if found != expected {
            return Err(OptimizerError::Slots { kind: config.kind, found, expected });
        }
        if let Some(slot) = state.slots.iter().find(|slot| slot.len() != length) {
            return Err(OptimizerError::Length {
                what: "a vector of the state",
                found: slot.len(),
                expected: length,
            });
        }
        let chunks = Arc::new(chunks(&tensors));
        let slots = state.slots.into_iter().map(|slot| Checked::new(&chunks, slot)).collect();
        Ok(Self { config: config.clone(), tensors, chunks, length, step: state.step, slots })
    }

    /// Updates so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.step
    }

    /// The vectors it remembers.
    #[must_use]
    pub fn vectors(&self) -> &[Checked] {
        &self.slots
    }

    /// The same, to be changed as memory changes: for tests of that.
    pub fn vectors_mut(&mut self) -> &mut [Checked] {
        &mut self.slots
    }

    /// Takes the state out, to change tensors or stage.
    #[must_use]
    pub fn into_state(self) -> OptimizerState {
        OptimizerState { step: self.step, slots: self.slots.into_iter().map(Checked::into_values).collect() }
    }

    /// Parameters for this optimizer, right as they are now.
    ///
    /// # Errors
    /// When there are more or fewer than it has.
    pub fn checked(&self, parameters: Vec<f32>) -> Result<Checked, OptimizerError> {
        self.fits("the vector of parameters", parameters.len())?;
        Ok(Checked::new(&self.chunks, parameters))
    }

    fn fits(&self, what: &'static str, found: usize) -> Result<(), OptimizerError> {
        let expected = self.length;
        if found == expected { Ok(()) } else { Err(OptimizerError::Length { what, found, expected }) }
    }

    /// Updates `parameters` by `scale * gradient` (of clipping) at `learning_rate` (see [`crate::schedule`]).
    ///
    /// # Errors
    /// When a vector has another length (nothing is changed then), a parameter is no longer finite, or a value that the update reads is not what was written (the
    /// state is of no use then).
    #[expect(clippy::too_many_lines, reason = "an arm for each formula")]
    pub fn step(
        &mut self,
        pool: &Pool,
        learning_rate: f64,
        scale: f32,
        parameters: &mut Checked,
        gradient: &[f32],
    ) -> Result<(), OptimizerError> {
        self.fits("the vector of parameters", parameters.values().len())?;
        self.fits("the gradient", gradient.len())?;
        self.step += 1;
        let (step, isa) = (self.step, pool.isa());
        let work = works(&self.chunks, parameters, gradient, &mut self.slots);
        let sound = AtomicBool::new(true);
        let check = |values: &[f32]| {
            if !all_finite(values) {
                sound.store(false, Ordering::Relaxed);
            }
        };
        let (config, tensors) = (&self.config, &self.tensors);
        let decay = |tensor: usize| if tensors[tensor].decay { config.weight_decay } else { 0.0 };
        let work = match config.kind {
            OptimizerKind::AdamW => {
                let adam = AdamStep::new(config, step);
                in_parts(pool, work, |w| {
                    w.read(isa);
                    if let [mean, square] = w.slots.as_mut_slice() {
                        adam.adamw(
                            learning_rate,
                            decay(w.tensor),
                            scale,
                            w.parameters,
                            w.gradient,
                            mean,
                            square,
                        );
                    }
                    check(w.parameters);
                    w.written(isa);
                })
            }
            OptimizerKind::Lamb => {
                let adam = AdamStep::new(config, step);
                let work = in_parts(pool, work, |w| {
                    w.read(isa);
                    if let [mean, square] = w.slots.as_mut_slice() {
                        let decay = decay(w.tensor);
                        let update = adam.lamb_moments(decay, scale, w.parameters, w.gradient, mean, square);
                        w.squares = [squares(w.parameters), update];
                    }
                });
                let mut sums = vec![[0.0f64; 2]; tensors.len()];
                for w in &work {
                    sums[w.tensor][0] += w.squares[0];
                    sums[w.tensor][1] += w.squares[1];
                }
                in_parts(pool, work, |w| {
                    let [weight, update] = sums[w.tensor].map(f64::sqrt);
                    let trust =
                        if weight > 0.0 && update > 0.0 { weight.min(LAMB_NORM_MAX) / update } else { 1.0 };
                    if let [mean, square] = w.slots.as_slice() {
                        adam.lamb_apply(learning_rate * trust, decay(w.tensor), w.parameters, mean, square);
                    }
                    check(w.parameters);
                    w.written(isa);
                })
            }
            OptimizerKind::Sgd => in_parts(pool, work, |w| {
                w.read(isa);
                let momentum = w.slots.first_mut().map(|slot| (config.momentum as f32, &mut **slot));
                sgd(learning_rate, decay(w.tensor), scale, w.parameters, w.gradient, momentum);
                check(w.parameters);
                w.written(isa);
            }),
        };
        let changed =
            work.iter().zip(&*self.chunks).find_map(|(w, (_, range))| Some((w.changed?, range.clone())));
        if let Some((which, Range { start: from, end: to })) = changed {
            let what = if which == 0 { "a parameter" } else { "a vector of the optimizer" };
            return Err(OptimizerError::Changed { what, from, to });
        }
        if sound.into_inner() { Ok(()) } else { Err(OptimizerError::NonFinite(step)) }
    }
}

impl Work<'_> {
    /// Compares all that the update is about to read with what was written.
    fn read(&mut self, isa: Isa) {
        let sums = self.sums_of_bits(isa);
        self.changed = sums.iter().zip(&self.sums).position(|(found, written)| *found != **written);
    }

    /// The chunk is as it will be until the next update.
    fn written(&mut self, isa: Isa) {
        let sums = self.sums_of_bits(isa);
        self.sums.iter_mut().zip(sums).for_each(|(written, sum)| **written = sum);
    }

    fn sums_of_bits(&self, isa: Isa) -> Vec<u64> {
        let vectors = std::iter::once(&*self.parameters).chain(self.slots.iter().map(|slot| &**slot));
        vectors.map(|values| bit_sum::of_values(isa, values)).collect()
    }
}

fn works<'a>(
    chunks: &[(usize, Range<usize>)],
    parameters: &'a mut Checked,
    gradient: &'a [f32],
    slots: &'a mut [Checked],
) -> Vec<Work<'a>> {
    let ranges: Vec<Range<usize>> = chunks.iter().map(|(_, range)| range.clone()).collect();
    let (parameters, sums) = parameters.writing();
    let (mut sums, mut vectors) = (vec![sums.iter_mut()], Vec::new());
    for (values, of_slot) in slots.iter_mut().map(Checked::writing) {
        sums.push(of_slot.iter_mut());
        vectors.push(split_mut(values, &ranges).into_iter());
    }
    split_mut(parameters, &ranges)
        .into_iter()
        .zip(chunks)
        .map(|(parameters, (tensor, range))| Work {
            tensor: *tensor,
            parameters,
            gradient: &gradient[range.clone()],
            slots: vectors.iter_mut().filter_map(Iterator::next).collect(),
            sums: sums.iter_mut().filter_map(Iterator::next).collect(),
            changed: None,
            squares: [0.0; 2],
        })
        .collect()
}

/// Without a branch per value, so that it is quick.
fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(0, |most, v| most.max(v.to_bits() & 0x7fff_ffff)) < 0x7f80_0000
}
