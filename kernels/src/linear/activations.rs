//! Activations as int8 blocks of 32 for quantised weights (ARITHMETIC.md, 2).

use crate::buffer::Buffer;
use crate::matrix::BLOCK;
use crate::softmax::all_finite;

/// Blocks whose largest value is below this are all zero: its inverse would overflow.
const TINY: f32 = 1e-30;

/// `m` rows of `k / 32` blocks.
#[derive(Default)]
pub(super) struct Quantised {
    /// `[m][k]`.
    pub(super) q: Buffer<i8>,
    /// Scale of each block.
    pub(super) d: Buffer<f32>,
    /// `d * sum(q)` of each block.
    pub(super) s: Buffer<f32>,
    /// `sum(q)` of each block.
    pub(super) sum: Buffer<i32>,
    /// That of its first and its second half.
    pub(super) half_sums: Buffer<[i32; 2]>,
    /// Blocks of a row.
    pub(super) blocks: usize,
}

impl Quantised {
    pub(super) fn fill(&mut self, x: &[f32], m: usize, k: usize) {
        self.blocks = k / BLOCK;
        let blocks = m * self.blocks;
        self.q.ensure(blocks * BLOCK);
        self.d.ensure(blocks);
        self.s.ensure(blocks);
        self.sum.ensure(blocks);
        self.half_sums.ensure(blocks);
        for (i, x) in x.as_chunks::<BLOCK>().0.iter().enumerate().take(blocks) {
            let q: &mut [i8; BLOCK] = (&mut self.q[i * BLOCK..][..BLOCK]).try_into().expect("32 values");
            let (d, halves) = block(x, q);
            let sum = halves[0] + halves[1];
            self.d[i] = d;
            self.sum[i] = sum;
            self.half_sums[i] = halves;
            self.s[i] = d * sum as f32;
        }
    }
}

/// Quantises 32 values; returns the scale and the sums of both halves, or NaN and 0 when one is not finite, so that all outputs are NaN. Portable code that the compiler vectorises: no step depends on the width.
fn block(x: &[f32; BLOCK], q: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    // The maximum would overlook NaN.
    if !all_finite(x) {
        q.fill(0);
        return (f32::NAN, [0; 2]);
    }
    let mut max = [0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for (max, x) in max.iter_mut().zip(x) {
            let a = x.abs();
            *max = if a > *max { a } else { *max };
        }
    }
    let max = max.iter().fold(0f32, |a, &b| if b > a { b } else { a });
    if max < TINY {
        q.fill(0);
        return (0.0, [0; 2]);
    }
    let inverse = 127.0 / max;
    let mut sums = [0; 2];
    for (sum, (q, x)) in sums.iter_mut().zip(q.chunks_exact_mut(BLOCK / 2).zip(x.chunks_exact(BLOCK / 2))) {
        for (q, x) in q.iter_mut().zip(x) {
            let v = round(x * inverse);
            *q = v as i8;
            *sum += v;
        }
    }
    (max / 127.0, sums)
}

/// Round to nearest, ties to even, for |x| < 2^22: the sum with 1.5 * 2^23 has no bits left for a fraction.
#[inline(always)]
fn round(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits().cast_signed() - MAGIC.to_bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, block, round};

    #[test]
    fn rounds_half_to_even() {
        for i in -5080..5080 {
            let x = i as f32 / 40.0;
            assert_eq!(round(x), x.round_ties_even() as i32, "{x}");
        }
    }

    #[test]
    fn odd_blocks_are_quantised_soundly() {
        let mut q = [1i8; BLOCK];
        assert_eq!(block(&[0.0; BLOCK], &mut q), (0.0, [0; 2]));
        assert_eq!(q, [0; BLOCK]);
        assert_eq!(block(&[1e-42; BLOCK], &mut q), (0.0, [0; 2]));
        let mut x = [3e38f32; BLOCK];
        x[3] = -3e38;
        let (d, sums) = block(&x, &mut q);
        assert!(d.is_finite() && sums == [127 * 14, 127 * 16] && q[3] == -127);
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..BLOCK {
                let mut x = [1.0; BLOCK];
                x[at] = odd;
                let (d, sums) = block(&x, &mut q);
                assert!(d.is_nan() && sums == [0; 2] && q == [0; BLOCK], "{odd} at {at}");
            }
        }
    }
}
