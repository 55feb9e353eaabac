//! Sums of gradients that do not depend on the order of additions: integers in fixed point.
//!
//! A gradient `x` counts `rint(x * 2^44)` in an i64. Integers add exactly and in any order, so a sum does not depend on which peer computed
//! which microbatch, nor on when it came. With gradients of at most `2^18 / terms` no sum of `terms` of them overflows.

use std::sync::atomic::{AtomicUsize, Ordering};

use thiserror::Error;

use crate::isa::vectorised;
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
    /// The value.
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

/// Adds every gradient to its sum. Nothing is added when one is out of range.
///
/// # Errors
/// The first gradient that is not finite or larger than `limit`.
///
/// # Panics
/// When the lengths differ or `limit` is not between 0 and [`LIMIT_MAX`].
pub fn accumulate(pool: &Pool, sum: &mut [i64], gradient: &[f32], limit: f32) -> Result<(), OutOfRange> {
    assert_eq!(sum.len(), gradient.len(), "accumulate: lengths differ");
    check(pool, gradient, limit)?;
    let add_all = |sum: &mut [i64], gradient: &[f32]| {
        for (sum, gradient) in sum.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK)) {
            if within(pool.isa(), gradient, SMALL) {
                add_small(pool.isa(), sum, gradient);
            } else {
                for (sum, gradient) in sum.iter_mut().zip(gradient) {
                    *sum = sum.wrapping_add(to_fixed(*gradient));
                }
            }
        }
    };
    if sum.len() < BLOCK {
        add_all(sum, gradient);
    } else {
        pool.split_rows([(sum, 1)], &|range, [sum]| add_all(sum, &gradient[range]));
    }
    Ok(())
}

/// Up to here a fixed-point value fits in 51 bits, and [`add_small`] is exact.
const SMALL: f32 = 64.0;

/// `rint(x * 2^44)` for `x` up to [`LIMIT_MAX`] in size: the product is exact in f64.
#[must_use]
pub fn to_fixed(x: f32) -> i64 {
    (f64::from(x) * UNIT).round_ties_even() as i64
}

vectorised! {
    /// Gradients below [`SMALL`]: the sum with 1.5 * 2^52 rounds to an integer, which its low bits are.
    fn add_small(sum: &mut [i64], gradient: &[f32]) {
        const MAGIC: f64 = 6_755_399_441_055_744.0;
        for (sum, gradient) in sum.iter_mut().zip(gradient) {
            let fixed = (f64::from(*gradient) * UNIT + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits());
            *sum = sum.wrapping_add(fixed.cast_signed());
        }
    }
}

/// The sum as f32, rounded once.
#[must_use]
pub fn to_f32(sum: i64) -> f32 {
    sum as f32 * (1.0 / (1u64 << 44) as f32)
}

#[cfg(test)]
mod tests {
    use super::{LIMIT_MAX, accumulate, to_f32, to_fixed};
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
                let mut sum: Vec<i64> = (0..gradient.len() as i64).collect();
                accumulate(&Pool::with_isa(threads, isa), &mut sum, &gradient, LIMIT_MAX).unwrap();
                for (i, (sum, x)) in sum.iter().zip(&gradient).enumerate() {
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
                let mut sum = vec![7i64; gradient.len()];
                let error = accumulate(&pool, &mut sum, &gradient, 1.0).unwrap_err();
                assert_eq!((error.index, error.value.to_bits()), (at, wrong.to_bits()));
                assert!(sum.iter().all(|s| *s == 7));
            }
        }
    }
}
