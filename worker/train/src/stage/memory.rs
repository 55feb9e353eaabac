//! Has memory changed? What a stage holds is what was written, or it says so before it does harm.
//!
//! | what | knows | is compared |
//! |---|---|---|
//! | parameters, the optimizer's vectors | the sum of bits of every chunk | by the update, as it reads them ([`Checked`]) |
//! | packed weights, which computations read | the parameters that they were packed from | before gradient sums are given away, before they are packed anew, when a computation fails, before an answer goes out behind that |
//! | weights below an adapter | the sum of their bits | at the same times |
//! | gradient sums | the total of what was added to every cell | as they are given away ([`GradientSums`]) |
//! | averages | the sum of their bits | by the update ([`Average`](crate::average::Average)) |

use dunlin_kernels::{GradientSums, Pool};
use dunlin_model::training::Bits;

use super::{Stage, StageError, Version};
use crate::optimizer::Checked;
use crate::parts::in_parts;

/// Values that are summed at a time.
const PART: usize = 1 << 16;

impl Stage {
    /// Compares what was computed with since the last time with the parameters that it was packed from. Of the parameters themselves the next update does.
    ///
    /// # Errors
    /// [`StageError::Memory`] when it differs.
    pub fn check(&mut self, pool: &Pool) -> Result<(), StageError> {
        if std::mem::take(&mut self.used) {
            self.check_held(pool)?;
        }
        Ok(())
    }

    fn check_held(&self, pool: &Pool) -> Result<(), StageError> {
        let parameters = match self.packed {
            None => return Ok(()),
            Some(Version::Now) => &self.parameters,
            Some(Version::Before) => self.before.as_ref().unwrap_or(&self.parameters),
        };
        let held = self.model.held();
        let bits: Vec<Bits<'_>> = held.iter().map(|held| held.bits).collect();
        let mut frozen = self.frozen.iter();
        for (held, sum) in held.iter().zip(sums(pool, &bits)) {
            let written = match &held.of {
                Some(place) => {
                    let tensors = self.layout().tensors();
                    parameters.of_tensor(tensors.partition_point(|t| t.range().end <= place.start))
                }
                None => frozen.next().copied().unwrap_or_default(),
            };
            if sum != written {
                let tensor = held.of.as_ref().and_then(|place| self.layout().tensor_of(place.start));
                let what =
                    tensor.map_or("a weight below the adapter".to_owned(), |t| format!("`{}`", t.name));
                return Err(StageError::Memory(format!("{what} is not what was packed for computing")));
            }
        }
        Ok(())
    }

    /// The sums of the bits of weights that stay as they are.
    pub(super) fn sum_frozen(&mut self, pool: &Pool) {
        let held = self.model.held();
        let bits: Vec<Bits<'_>> =
            held.iter().filter(|held| held.of.is_none()).map(|held| held.bits).collect();
        self.frozen = sums(pool, &bits);
    }

    /// What the state is, in 64 bits: parameters, and all that is kept beside them. Made of the sums that the last update wrote down, so it costs nothing; a bit that
    /// differs changes it, and that two states have the same by chance does not happen. It is no proof against somebody who wants it to happen: that is the
    /// [root](crate::root).
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let vectors = std::iter::once(&self.parameters).chain(self.optimizer.vectors()).chain(&self.before);
        let sums = vectors.flat_map(Checked::sums);
        sums.fold(self.step, |all, sum| mix(all ^ sum))
    }

    /// All gradient sums of a step, to be given away; none when it is over or not begun.
    ///
    /// # Errors
    /// [`StageError::Memory`] when they are not what was added, or what they were computed with is not what it was.
    pub fn sums(
        &mut self,
        pool: &Pool,
        step: u64,
    ) -> Result<Option<std::sync::Arc<GradientSums>>, StageError> {
        let ahead = step.checked_sub(self.step).and_then(|ahead| usize::try_from(ahead).ok());
        let Some(sums) = ahead.and_then(|ahead| self.sums.get(ahead)).map(std::sync::Arc::clone) else {
            return Ok(None);
        };
        self.check(pool)?;
        sums.checked(pool.isa(), 0..sums.len()).map_err(|changed| StageError::Memory(changed.to_string()))?;
        Ok(Some(sums))
    }
}

/// The sums of the bits of all of `held`, computed by all threads.
fn sums(pool: &Pool, held: &[Bits<'_>]) -> Vec<u64> {
    let isa = pool.isa();
    let parts = (0..)
        .zip(held)
        .flat_map(|(index, bits)| bits.parts(PART).into_iter().map(move |part| (index, part, 0)));
    let work: Vec<(usize, Bits<'_>, u64)> = parts.collect();
    let mut sums = vec![0u64; held.len()];
    for (index, _, sum) in in_parts(pool, work, |(_, part, sum)| *sum = part.sum(isa)) {
        sums[index] = sums[index].wrapping_add(sum);
    }
    sums
}

/// A number that depends on all bits of another (the finaliser of splitmix64).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
