//! Vectors that know what was written to them.
//!
//! Memory changes, seldom, without an error: a bit flips, a row of a module fails. Parameters and the optimizer's vectors are in memory for as long as a run takes, and
//! what an update makes of a changed value is wrong for good. So every chunk has the sum of its bits, made when it was written; the next update compares before it
//! uses the chunk.

use std::ops::Range;
use std::sync::Arc;

use dunlin_kernels::{Isa, bit_sum};

use crate::parts::Chunks;

/// A vector of f32 in chunks, each with the sum of its bits.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Shared with whoever reads them as they are now.
    values: Arc<Vec<f32>>,
    sums: Vec<u64>,
    chunks: Arc<Chunks>,
}

impl Checked {
    /// Values that are right as they are now.
    pub(crate) fn new(chunks: &Arc<Chunks>, values: Vec<f32>) -> Self {
        let sum =
            |(_, range): &(usize, Range<usize>)| bit_sum::of_values(Isa::best(), &values[range.clone()]);
        let sums = chunks.iter().map(sum).collect();
        Self { values: Arc::new(values), sums, chunks: Arc::clone(chunks) }
    }

    /// All values, whether or not they are what was written.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to be changed as memory changes: for tests of that.
    pub fn values_mut(&mut self) -> &mut [f32] {
        Arc::make_mut(&mut self.values).as_mut_slice()
    }

    /// The values, taken out.
    #[must_use]
    pub fn into_values(self) -> Vec<f32> {
        Arc::unwrap_or_clone(self.values)
    }

    /// What was written to every chunk: sums of bits, in order.
    #[must_use]
    pub fn sums(&self) -> &[u64] {
        &self.sums
    }

    /// The values of all chunks, to be written, with the sums of what is there and will be.
    pub(crate) fn writing(&mut self) -> (&mut [f32], &mut [u64]) {
        (Arc::make_mut(&mut self.values).as_mut_slice(), &mut self.sums)
    }

    /// Becomes a copy of another vector of the same chunks: of what is there, and of what should be.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.sums.clone_from(&other.sums);
        match Arc::get_mut(&mut self.values) {
            Some(values) => values.copy_from_slice(&other.values),
            None => self.values = Arc::new(other.values.to_vec()),
        }
    }

    /// The sum of the bits that were written to a tensor.
    pub(crate) fn of_tensor(&self, tensor: usize) -> u64 {
        let first = self.chunks.partition_point(|(of, _)| *of < tensor);
        let chunks = self.chunks[first..].iter().zip(&self.sums[first..]);
        chunks.take_while(|((of, _), _)| *of == tensor).fold(0, |all, (_, sum)| all.wrapping_add(*sum))
    }

    /// The first place that is in a chunk which is not what was written.
    #[must_use]
    pub fn changed(&self, isa: Isa) -> Option<Range<usize>> {
        let mut chunks = self.chunks.iter().zip(&self.sums);
        let wrong =
            chunks.find(|((_, range), sum)| bit_sum::of_values(isa, &self.values[range.clone()]) != **sum);
        wrong.map(|((_, range), _)| range.clone())
    }
}
