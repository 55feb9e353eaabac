//! Sums of gradients that do not depend on the order of additions: integers in fixed point.
//!
//! A gradient `x` counts `rint(x * 2^44)` in an i64. Integers add exactly and in any order, so a sum does not depend on which peer computed
//! which microbatch, nor on when it came. With gradients of at most `2^18 / terms` no sum of `terms` of them overflows.
//!
//! Sums are in memory for as long as a step takes. [`GradientSums`] keeps beside them, cell by cell, the total of what was added: when the sums of a cell do not add up to
//! it, memory has changed.

pub mod reference;

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use thiserror::Error;

use crate::isa::{Isa, vectorised};
use crate::pool::Pool;

/// 2^44.
const UNIT: f64 = (1u64 << 44) as f64;
/// No gradient may be larger: its sum would overflow.
pub const LIMIT_MAX: f32 = (1u32 << 18) as f32;
/// Values that are checked or added together.
const BLOCK: usize = 4096;

/// A gradient that cannot be summed.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("gradient {index} is {value}, not a number of at most {limit} in size")]
pub struct OutOfRange {
    /// The first such value's place.
    pub index: usize,
    /// That value: not finite, or larger than `limit` in size.
    pub value: f32,
    /// The largest size allowed.
    pub limit: f32,
}

/// Are all gradients finite and at most `limit` in size?
///
/// # Errors
/// The first that is not.
///
/// # Panics
/// When `limit` is not between 0 and [`LIMIT_MAX`].
pub fn check(pool: &Pool, gradient: &[f32], limit: f32) -> Result<(), OutOfRange> {
    assert!((0.0..=LIMIT_MAX).contains(&limit), "a limit of {limit}");
    let first = AtomicUsize::new(usize::MAX);
    pool.split(gradient.len().div_ceil(BLOCK), &|blocks| {
        for block in blocks {
            let values = &gradient[block * BLOCK..gradient.len().min((block + 1) * BLOCK)];
            if !within(pool.isa(), values, limit) {
                first.fetch_min(block, Ordering::Relaxed);
                return;
            }
        }
    });
    let first = first.into_inner();
    if first == usize::MAX {
        return Ok(());
    }
    let wrong = (first * BLOCK..gradient.len()).find(|i| gradient[*i].is_nan() || gradient[*i].abs() > limit);
    let index = wrong.unwrap_or(first * BLOCK);
    Err(OutOfRange { index, value: gradient[index], limit })
}

vectorised! {
    fn within(values: &[f32], limit: f32) -> bool {
        // No early exit, so it vectorises; a comparison with NaN is false.
        values.iter().fold(true, |all, v| all & (v.abs() <= limit))
    }
}

/// Sums whose total is kept together.
const CELL: usize = 1 << 15;

/// Sums of gradients, and the total of what was added to every [`CELL`] of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientSums {
    values: Vec<i64>,
    /// Wrapping: the totals of any values.
    totals: Vec<i64>,
}

/// What [`GradientSums::add`] adds to every cell.
#[derive(Default)]
struct Added(Vec<AtomicI64>);

/// Sums that are not what was added to them: memory has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("gradient sums {from} to {to} are not what was added to them: memory has changed")]
pub struct Changed {
    /// The first sum of the cell.
    pub from: usize,
    /// Behind its last.
    pub to: usize,
}

impl GradientSums {
    /// `len` sums of nothing.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { values: vec![0; len], totals: vec![0; len.div_ceil(CELL)] }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All of them, whether or not they are what was added.
    #[must_use]
    pub fn values(&self) -> &[i64] {
        &self.values
    }

    /// All of them, to be changed as memory changes: for tests of that.
    pub fn values_mut(&mut self) -> &mut [i64] {
        &mut self.values
    }

    /// Sums of nothing from now on.
    pub fn clear(&mut self) {
        self.values.fill(0);
        self.totals.fill(0);
    }

    /// Those of `range`, if all cells that it touches are what was added to them.
    ///
    /// # Errors
    /// The first cell that is not.
    ///
    /// # Panics
    /// When `range` ends behind the last sum.
    pub fn checked(&self, isa: Isa, range: Range<usize>) -> Result<&[i64], Changed> {
        for cell in range.start / CELL..range.end.div_ceil(CELL) {
            let (from, to) = (cell * CELL, self.values.len().min((cell + 1) * CELL));
            if total(isa, &self.values[from..to]) != self.totals[cell] {
                return Err(Changed { from, to });
            }
        }
        Ok(&self.values[range])
    }

    /// Adds every gradient to the sum of its place from `at` on. Nothing is added when one is out of range.
    ///
    /// # Errors
    /// The first gradient that is not finite or larger than `limit`.
    ///
    /// # Panics
    /// When there are fewer sums behind `at`, or `limit` is not between 0 and [`LIMIT_MAX`].
    pub fn add(&mut self, pool: &Pool, at: usize, gradient: &[f32], limit: f32) -> Result<(), OutOfRange> {
        check(pool, gradient, limit)?;
        let sums = &mut self.values[at..at + gradient.len()];
        let first_cell = at / CELL;
        let mut totals = pool.lend::<Added>();
        totals.0.clear();
        if !gradient.is_empty() {
            totals.0.resize_with((at + gradient.len() - 1) / CELL - first_cell + 1, AtomicI64::default);
        }
        let totals = &*totals.0;
        let add_all = |from: usize, sums: &mut [i64], gradient: &[f32]| {
            let mut done = 0;
            while done < sums.len() {
                // A block that lies in one cell.
                let place = at + from + done;
                let end = sums.len().min(done + BLOCK.min(CELL - place % CELL));
                let (sums, gradient) = (&mut sums[done..end], &gradient[done..end]);
                let added = if within(pool.isa(), gradient, SMALL) {
                    add_small(pool.isa(), sums, gradient)
                } else {
                    add_large(sums, gradient)
                };
                totals[place / CELL - first_cell].fetch_add(added, Ordering::Relaxed);
                done = end;
            }
        };
        if sums.len() < BLOCK {
            add_all(0, sums, gradient);
        } else {
            pool.split_rows([(sums, 1)], &|range, [sums]| add_all(range.start, sums, &gradient[range]));
        }
        for (total, added) in self.totals[first_cell..].iter_mut().zip(totals) {
            *total = total.wrapping_add(added.load(Ordering::Relaxed));
        }
        Ok(())
    }

    /// Adds other sums of as many places.
    ///
    /// # Panics
    /// When there are more or fewer.
    pub fn add_sums(&mut self, others: &[i64]) {
        assert_eq!(self.values.len(), others.len(), "sums of other places");
        let cells = self.values.chunks_mut(CELL).zip(others.chunks(CELL));
        for ((sums, others), total) in cells.zip(&mut self.totals) {
            for (sum, more) in sums.iter_mut().zip(others) {
                *sum = sum.wrapping_add(*more);
                *total = total.wrapping_add(*more);
            }
        }
    }
}

fn add_large(sums: &mut [i64], gradient: &[f32]) -> i64 {
    let mut added = 0i64;
    for (sum, gradient) in sums.iter_mut().zip(gradient) {
        let fixed = to_fixed(*gradient);
        *sum = sum.wrapping_add(fixed);
        added = added.wrapping_add(fixed);
    }
    added
}

vectorised! {
    fn total(sums: &[i64]) -> i64 {
        sums.iter().fold(0i64, |all, sum| all.wrapping_add(*sum))
    }
}

/// Up to here a fixed-point value fits in 51 bits, and [`add_small`] is exact.
const SMALL: f32 = 64.0;

/// `rint(x * 2^44)` for `x` up to [`LIMIT_MAX`] in size: the product is exact in f64.
#[must_use]
pub fn to_fixed(x: f32) -> i64 {
    (f64::from(x) * UNIT).round_ties_even() as i64
}

vectorised! {
    /// Gradients below [`SMALL`]: the sum with 1.5 * 2^52 rounds to an integer, which its low bits are. The total of what was added.
    fn add_small(sum: &mut [i64], gradient: &[f32]) -> i64 {
        const MAGIC: f64 = 6_755_399_441_055_744.0;
        let mut added = 0i64;
        for (sum, gradient) in sum.iter_mut().zip(gradient) {
            let fixed = (f64::from(*gradient) * UNIT + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits());
            *sum = sum.wrapping_add(fixed.cast_signed());
            added = added.wrapping_add(fixed.cast_signed());
        }
        added
    }
}

/// The sum as f32, rounded once.
#[must_use]
pub fn to_f32(sum: i64) -> f32 {
    sum as f32 * (1.0 / (1u64 << 44) as f32)
}

#[cfg(test)]
mod tests {
    use super::{CELL, Changed, GradientSums, LIMIT_MAX, to_f32, to_fixed};
    use crate::isa::Isa;
    use crate::pool::Pool;

    fn gradients() -> Vec<f32> {
        let mut out: Vec<f32> = (0..20_000u32)
            .map(|i| {
                let noise = i.wrapping_mul(2_654_435_761) >> 8;
                (noise as f32 / (1 << 23) as f32 - 1.0) * 2f32.powi((i % 61) as i32 - 52)
            })
            .collect();
        out[9000..9010]
            .copy_from_slice(&[63.9, 64.0, 64.1, -64.1, 1000.0, LIMIT_MAX, -LIMIT_MAX, -0.0, 1e-40, 0.0]);
        out
    }

    #[test]
    fn every_path_rounds_to_the_nearest_integer() {
        let gradient = gradients();
        for isa in Isa::all() {
            for threads in [1, 2, 3] {
                let mut sums = GradientSums::new(gradient.len());
                let before: Vec<i64> = (0..gradient.len() as i64).collect();
                sums.add_sums(&before);
                sums.add(&Pool::with_isa(threads, isa), 0, &gradient, LIMIT_MAX).unwrap();
                for (i, (sum, x)) in
                    sums.checked(isa, 0..gradient.len()).unwrap().iter().zip(&gradient).enumerate()
                {
                    assert_eq!(*sum, i as i64 + to_fixed(*x), "{x}");
                }
            }
        }
        assert_eq!((to_fixed(2f32.powi(-45)), to_fixed(3.0 * 2f32.powi(-45))), (0, 2), "ties go to even");
        assert_eq!(to_fixed(-LIMIT_MAX), -(1 << 62));
    }

    #[test]
    fn a_sum_becomes_the_nearest_float() {
        for x in gradients() {
            if x.abs() >= 2f32.powi(-20) || x == 0.0 {
                assert_eq!(to_f32(to_fixed(x)), x, "all bits of {x} are kept");
            }
        }
        // 2^24 + 1 lies between two floats, and 1 decides.
        assert_eq!(to_f32((1 << 38) * ((1 << 24) + 1)), ((1 << 24) as f32) / 64.0);
        assert_eq!(to_f32((1 << 38) * ((1 << 24) + 1) + 1), ((1 << 24) + 2) as f32 / 64.0);
    }

    #[test]
    fn nothing_is_added_when_one_is_out_of_range() {
        let pool = Pool::new(2);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.000_001, -1.000_001] {
            for at in [0, 4095, 4096, 9999] {
                let mut gradient = vec![1f32; 10_000];
                gradient[at] = wrong;
                gradient[9999] = if at == 9999 { wrong } else { f32::NAN };
                let mut sums = GradientSums::new(gradient.len());
                let error = sums.add(&pool, 0, &gradient, 1.0).unwrap_err();
                assert_eq!((error.index, error.value.to_bits()), (at, wrong.to_bits()));
                assert_eq!(sums, GradientSums::new(gradient.len()));
            }
        }
    }

    #[test]
    fn a_sum_that_changes_by_itself_is_noticed_in_its_cell_alone() {
        let len = 2 * CELL + 9000;
        let gradient: Vec<f32> = (0..len).map(|i| (i % 977) as f32 * 0.01 - 4.0).collect();
        for (isa, threads) in Isa::all().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let pool = Pool::with_isa(threads, isa);
            let mut sums = GradientSums::new(len);
            // All at once, in pieces across cells, some of them large, and those of somebody else.
            sums.add(&pool, 0, &gradient, LIMIT_MAX).unwrap();
            sums.add(&pool, CELL - 100, &gradient[..300], LIMIT_MAX).unwrap();
            sums.add(&pool, CELL - 5, &[LIMIT_MAX, -70.0, 1.0, 2.0, 3.0, 4.0, -LIMIT_MAX], LIMIT_MAX)
                .unwrap();
            sums.add(&pool, len, &[], LIMIT_MAX).unwrap();
            let others: Vec<i64> = (0..len as i64).map(|i| i64::MAX - 3 * i).collect();
            sums.add_sums(&others);
            assert_eq!(sums.checked(isa, 0..len).unwrap(), sums.values());
            let cells = [0..CELL, CELL..2 * CELL, 2 * CELL..len];
            for place in [0, CELL - 1, CELL, len - 1] {
                let mut changed = sums.clone();
                changed.values_mut()[place] ^= 1 << (place % 64);
                for cell in &cells {
                    let found = changed.checked(isa, cell.start + 5..cell.end);
                    let expected = Changed { from: cell.start, to: cell.end };
                    assert_eq!(found.err(), cell.contains(&place).then_some(expected), "{place}");
                }
                assert!(changed.checked(isa, 0..len).is_err());
            }
            sums.clear();
            assert_eq!(sums, GradientSums::new(len));
        }
    }
}
