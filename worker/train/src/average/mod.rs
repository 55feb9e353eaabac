//! Averages of a shard among its members, by butterfly: which part is whose, what a member sends of its sums, what the owner of a part makes
//! of everybody's.
//!
//! With [`GradientWire::Exact`] members send integers, which add in any order. Else they send f32 in a [`Codec`], and the owner of a part adds
//! them in the order of the members. The owner encodes the result, and goes on with what everybody decodes, itself included: so all members
//! hold the same bits.
//!
//! *Error feedback* (Seide et al., "1-bit stochastic gradient descent", 2014). What an encoding loses, of what a member sends and of the
//! result at the owner of a part, is added to what that member contributes to the next step. Without it the errors of the steps add up; with
//! it the sum of all averages stays within one step's error of the sum of all gradients. [`Share::remaining`] computes it when the step
//! commits, so an average that is formed twice changes nothing.

use std::ops::Range;
use std::sync::Arc;

use dunlin_kernels::{GradientSums, Isa, Pool, bit_sum, gradient_sum};

use crate::codec::{Codec, CodecError};
use crate::config::GradientWire;
use crate::parts::in_parts;

/// Values that travel together; whole blocks of every codec.
pub const CHUNK: usize = 1 << 15;

/// The part that member `index` of `count` owns, of `len` values.
#[must_use]
pub fn part(len: usize, index: usize, count: usize) -> Range<usize> {
    len * index / count..len * (index + 1) / count
}

/// The chunks of a part, in order.
pub fn chunks(part: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = part.end;
    part.step_by(CHUNK).map(move |at| at..end.min(at + CHUNK))
}

/// Bytes of `values` values of gradient sums.
#[must_use]
pub fn sum_bytes(wire: GradientWire, values: usize) -> usize {
    Codec::of_gradients(wire).map_or(8 * values, |codec| codec.bytes(values))
}

/// How averages travel.
#[must_use]
pub fn result_codec(wire: GradientWire) -> Codec {
    Codec::of_gradients(wire).unwrap_or(Codec::F32)
}

/// Is what encodings lose kept? Of f32 it is not: that is the rounding of every result.
#[must_use]
pub fn has_feedback(wire: GradientWire) -> bool {
    matches!(wire, GradientWire::F16 | GradientWire::Q8)
}

/// An average, as the member of a group holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Average {
    /// All values of the shard.
    pub values: Vec<f32>,
    /// Which member this is.
    pub index: usize,
    /// Members.
    pub count: usize,
    /// What the encoding of its own part lost; nothing without feedback.
    pub lost: Vec<f32>,
    /// The sum of the bits of `values` when they were complete.
    pub bits: u64,
}

impl Average {
    /// The values are complete, and are what they should be until the update.
    pub fn seal(&mut self) {
        self.bits = bit_sum::of_values(Isa::best(), &self.values);
    }

    /// Are the values those that were sealed?
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.bits == bit_sum::of_values(Isa::best(), &self.values)
    }
}

/// Values, and where they are in the stage's vectors.
pub type Placed = Vec<(Range<usize>, Vec<f32>)>;

/// What a member contributes to the average of a shard, as of one moment.
#[derive(Clone, Debug)]
pub struct Share {
    wire: GradientWire,
    sums: Arc<GradientSums>,
    residual: Arc<Vec<f32>>,
    /// The shard's tensors in `sums` and `residual`.
    tensors: Vec<Range<usize>>,
    isa: Isa,
}

impl Share {
    /// Of the values at `tensors` in `sums`; `residual` is what was lost of the same values before, empty without feedback.
    pub(crate) fn new(
        wire: GradientWire,
        sums: Arc<GradientSums>,
        residual: Arc<Vec<f32>>,
        tensors: Vec<Range<usize>>,
    ) -> Self {
        Self { wire, sums, residual, tensors, isa: Isa::best() }
    }

    /// Values of the shard.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.iter().map(Range::len).sum()
    }

    /// Has the shard no values?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The parts of `range`, counted through all tensors, as they lie in the stage's vectors.
    fn pieces(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        let mut at = 0;
        for tensor in &self.tensors {
            let (from, to) = (range.start.max(at), range.end.min(at + tensor.len()));
            if from < to {
                out.push(tensor.start + from - at..tensor.start + to - at);
            }
            at += tensor.len();
        }
        out
    }

    /// Appends the rounded sums of `range`, with what was lost before, to `out`.
    fn values(&self, range: &Range<usize>, out: &mut Vec<f32>) -> Result<(), CodecError> {
        out.reserve(range.len());
        for piece in self.pieces(range) {
            let sums = self.sums.checked(self.isa, piece.clone())?;
            let sums = sums.iter().map(|sum| gradient_sum::to_f32(*sum));
            match self.residual.get(piece) {
                Some(residual) => out.extend(sums.zip(residual).map(|(sum, lost)| sum + lost)),
                None => out.extend(sums),
            }
        }
        Ok(())
    }

    /// `range` (of the shard's values) as it travels: [`sum_bytes`] bytes. `scratch` saves memory from being taken again.
    ///
    /// # Errors
    /// When a value cannot be encoded, or sums are not what was added to them.
    pub fn encode(&self, range: Range<usize>, scratch: &mut Vec<f32>) -> Result<Vec<u8>, CodecError> {
        // What has no feedback has no residual, and sums are finite.
        match self.wire {
            GradientWire::Exact => return self.words(&range, i64::to_le_bytes),
            GradientWire::F32 => {
                return self.words(&range, |sum| gradient_sum::to_f32(sum).to_le_bytes());
            }
            GradientWire::F16 | GradientWire::Q8 => {}
        }
        let mut out = Vec::new();
        scratch.clear();
        self.values(&range, scratch)?;
        result_codec(self.wire).encode(scratch, &mut out)?;
        Ok(out)
    }

    fn words<const N: usize>(
        &self,
        range: &Range<usize>,
        word: impl Fn(i64) -> [u8; N],
    ) -> Result<Vec<u8>, CodecError> {
        let mut words = Vec::with_capacity(range.len());
        for piece in self.pieces(range) {
            words.extend(self.sums.checked(self.isa, piece)?.iter().map(|sum| word(*sum)));
        }
        Ok(words.into_flattened())
    }

    /// What is to be sent in the next step, after `average` was formed of this share: in the part of everybody else what was lost on the way
    /// to them, in this member's own part what its result has lost.
    ///
    /// # Errors
    /// When a value cannot be encoded, which then could not be sent either.
    pub fn remaining(&self, pool: &Pool, average: &Average) -> Result<Placed, CodecError> {
        let codec = result_codec(self.wire);
        let len = self.len();
        let work: Vec<_> = (0..average.count)
            .flat_map(|owner| chunks(part(len, owner, average.count)).map(move |chunk| (owner, chunk)))
            .map(|(owner, chunk)| (owner, chunk, Ok(Vec::new())))
            .collect();
        let own = part(len, average.index, average.count).start;
        let work = in_parts(pool, work, |(owner, chunk, lost)| {
            *lost = if *owner == average.index {
                Ok(average.lost[chunk.start - own..chunk.end - own].to_vec())
            } else {
                self.lost(codec, chunk)
            };
        });
        let mut out = Vec::new();
        for (_, chunk, lost) in work {
            let mut lost = lost?;
            for piece in self.pieces(&chunk) {
                let rest = lost.split_off(piece.len());
                out.push((piece, std::mem::replace(&mut lost, rest)));
            }
        }
        Ok(out)
    }

    fn lost(&self, codec: Codec, chunk: &Range<usize>) -> Result<Vec<f32>, CodecError> {
        let (mut values, mut sent) = (Vec::new(), Vec::new());
        let bytes = self.encode(chunk.clone(), &mut values)?;
        codec.decode(&bytes, values.len(), &mut sent)?;
        values.iter_mut().zip(&sent).for_each(|(value, sent)| *value -= sent);
        Ok(values)
    }
}

/// What the owner of a part adds, chunk by chunk.
#[derive(Debug)]
pub struct Total {
    wire: GradientWire,
    /// A chunk's sums; [`GradientWire::Exact`] only.
    sums: Vec<i64>,
    /// A chunk's values; the others.
    values: Vec<f32>,
    decoded: Vec<f32>,
    /// Does the result travel?
    alone: bool,
}

impl Total {
    /// For a group of `count` members.
    #[must_use]
    pub fn new(wire: GradientWire, count: usize) -> Self {
        Self { wire, sums: Vec::new(), values: Vec::new(), decoded: Vec::new(), alone: count == 1 }
    }

    /// Begins a chunk of `len` values.
    pub fn begin(&mut self, len: usize) {
        self.sums.clear();
        self.values.clear();
        match self.wire {
            GradientWire::Exact => self.sums.resize(len, 0),
            _ => self.values.resize(len, 0.0),
        }
    }

    /// Adds the owner's own share, of which nothing is lost.
    ///
    /// # Errors
    /// When sums are not what was added to them.
    ///
    /// # Panics
    /// When `chunk` has another length than the chunk that was begun.
    pub fn add_own(&mut self, share: &Share, chunk: &Range<usize>) -> Result<(), CodecError> {
        if self.wire == GradientWire::Exact {
            let mut at = 0;
            for piece in share.pieces(chunk) {
                let more = share.sums.checked(share.isa, piece)?;
                let sums = &mut self.sums[at..at + more.len()];
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.wrapping_add(*more));
                at += more.len();
            }
            return Ok(());
        }
        self.decoded.clear();
        share.values(chunk, &mut self.decoded)?;
        self.add_decoded();
        Ok(())
    }

    /// Adds what another member sent.
    ///
    /// # Errors
    /// When it is not the encoding of this chunk.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        if let Some(codec) = Codec::of_gradients(self.wire) {
            self.decoded.resize(self.values.len(), 0.0);
            codec.decode_to(bytes, &mut self.decoded)?;
            self.add_decoded();
            return Ok(());
        }
        let (words, rest) = bytes.as_chunks::<8>();
        if words.len() != self.sums.len() || !rest.is_empty() {
            let (found, values) = (bytes.len(), self.sums.len());
            return Err(CodecError::Sums { found, expected: 8 * values, values });
        }
        // Members that are sound never overflow: see `Run::gradient_limit`.
        self.sums
            .iter_mut()
            .zip(words)
            .for_each(|(sum, word)| *sum = sum.wrapping_add(i64::from_le_bytes(*word)));
        Ok(())
    }

    fn add_decoded(&mut self) {
        assert_eq!(self.decoded.len(), self.values.len(), "a chunk has one length");
        self.values.iter_mut().zip(&self.decoded).for_each(|(sum, more)| *sum += more);
    }

    /// Ends a chunk: its result goes to `average`, what its encoding lost to the end of `lost` (with feedback). What the others get.
    ///
    /// # Errors
    /// When the result cannot be encoded.
    ///
    /// # Panics
    /// When `average` has another length than the chunk.
    pub fn end(&mut self, average: &mut [f32], lost: &mut Vec<f32>) -> Result<Vec<u8>, CodecError> {
        if self.wire == GradientWire::Exact {
            self.values.extend(self.sums.iter().map(|sum| gradient_sum::to_f32(*sum)));
        }
        let (codec, mut bytes) = (result_codec(self.wire), Vec::new());
        let feedback = has_feedback(self.wire);
        if self.alone || !feedback {
            average.copy_from_slice(&self.values);
            if feedback {
                lost.resize(lost.len() + self.values.len(), 0.0);
            }
            if !self.alone {
                codec.encode(&self.values, &mut bytes)?;
            }
            return Ok(bytes);
        }
        codec.encode(&self.values, &mut bytes)?;
        codec.decode_to(&bytes, average)?;
        lost.extend(self.values.iter().zip(average.iter()).map(|(value, sent)| value - sent));
        Ok(bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests;
