//! Helpers of softmax and sampling, and the vector form of exp.

pub mod reference;

use crate::isa::{Isa, vectorised};
use crate::math::exp_lane;

/// Are all values finite?
#[must_use]
pub fn all_finite(x: &[f32]) -> bool {
    // No early exit, so it vectorises.
    let mut bad = 0u32;
    for v in x {
        bad |= u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000);
    }
    bad == 0
}

/// The largest of `x`, whose values are finite; negative infinity when there are none.
#[must_use]
pub fn largest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for chunk in whole {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *v);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// `exp((logit - max) / temperature)` of each logit.
#[must_use]
pub fn weights(logits: &[f32], max: f32, temperature: f32) -> Vec<f32> {
    let mut out = vec![0.0; logits.len()];
    // The instruction set is this machine's.
    weights_into(Isa::best(), logits, max, temperature, &mut out);
    out
}

vectorised! {
    fn weights_into(logits: &[f32], max: f32, temperature: f32, out: &mut [f32]) {
        for (out, logit) in out.iter_mut().zip(logits) {
            *out = exp_lane((logit - max) / temperature);
        }
    }
}

/// [`crate::math::exp`] on 8 values, bit for bit.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn exp_avx2(x: std::arch::x86_64::__m256) -> std::arch::x86_64::__m256 {
    use std::arch::x86_64::*;

    use crate::math::{EXP_CONSTANTS, EXP_MIN, EXP_POLY};
    let [log2_e, ln2_high, ln2_low, max] = EXP_CONSTANTS;
    let not_small = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_MIN), _CMP_GE_OQ);
    let large = _mm256_cmp_ps(x, _mm256_set1_ps(max), _CMP_GT_OQ);
    let n = _mm256_round_ps(
        _mm256_mul_ps(x, _mm256_set1_ps(log2_e)),
        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC,
    );
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(ln2_low), _mm256_fmadd_ps(n, _mm256_set1_ps(ln2_high), x));
    let mut p = _mm256_set1_ps(EXP_POLY[0]);
    for &c in &EXP_POLY[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    let e = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0));
    let scaled = _mm256_add_epi32(_mm256_castps_si256(e), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23));
    let e = _mm256_and_ps(_mm256_castsi256_ps(scaled), not_small);
    _mm256_blendv_ps(e, _mm256_set1_ps(f32::INFINITY), large)
}

#[cfg(test)]
mod tests {
    use super::{all_finite, largest, weights, weights_into};
    use crate::isa::Isa;
    use crate::math::exp;

    fn logits(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + 13) % 1009) as f32 / 31.0 - 20.0).collect()
    }

    #[test]
    fn the_largest_is_found_wherever_it_is() {
        for count in [1, 15, 16, 17, 100] {
            for at in 0..count {
                let mut x = vec![-3.0; count];
                x[at] = -1.0;
                assert_eq!(largest(&x), -1.0);
            }
        }
        assert_eq!(largest(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn weights_have_the_bits_of_exp_on_every_instruction_set() {
        let logits = logits(1001);
        let max = largest(&logits);
        let want: Vec<f32> = logits.iter().map(|l| exp((l - max) / 0.7)).collect();
        assert_eq!(weights(&logits, max, 0.7), want);
        for isa in Isa::all() {
            let mut out = vec![0.0; logits.len()];
            weights_into(isa, &logits, max, 0.7, &mut out);
            assert_eq!(out, want, "{isa:?}");
        }
    }

    #[test]
    fn finds_what_is_not_finite() {
        let mut x = vec![1.0f32; 100];
        assert!(all_finite(&x));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[37] = bad;
            assert!(!all_finite(&x));
        }
    }
}
