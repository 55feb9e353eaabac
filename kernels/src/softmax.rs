//! Helpers of softmax and sampling, and the vector form of exp.

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
    use super::all_finite;

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
