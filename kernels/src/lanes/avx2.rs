//! AVX2 with FMA and F16C: eight lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Lanes, SoftmaxLanes, WeightLanes};
use crate::math::{EXP_CONSTANTS, EXP_MIN, EXP_POLY};

/// The machine has AVX2, FMA and F16C, which is the proof for every `unsafe` below that reads no memory.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    type Floats = __m256;

    #[inline(always)]
    fn zero(self) -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn all(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: promised.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m256) {
        // SAFETY: promised.
        unsafe { _mm256_storeu_ps(to, x) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
}

impl WeightLanes for Avx2 {
    type Integers = __m256i;

    #[inline(always)]
    unsafe fn f16(self, from: *const u8) -> __m256 {
        // SAFETY: promised.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn bf16(self, from: *const u8) -> __m256 {
        // SAFETY: promised.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
        }
    }

    #[inline(always)]
    unsafe fn unsigned(self, from: *const u8) -> __m256i {
        // SAFETY: promised.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }

    #[inline(always)]
    unsafe fn signed(self, from: *const u8) -> __m256i {
        // SAFETY: promised.
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())) }
    }

    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> __m256i {
        // SAFETY: promised.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn four(self, from: *const i8) -> __m256i {
        // SAFETY: promised.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn all_integers(self, x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }

    #[inline(always)]
    fn add_integers(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_integers(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn to_floats(self, x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn fused_sub(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn low(self, bytes: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high(self, bytes: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn moved(self, bytes: __m256i, left: i32, mask: u8) -> __m256i {
        unsafe {
            let moved = if left < 0 {
                _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(-left))
            } else {
                _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(left))
            };
            _mm256_and_si256(moved, _mm256_set1_epi8(mask.cast_signed()))
        }
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }

    /// In 16 bits, from nothing.
    #[inline(always)]
    fn open(self, _: __m256i) -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn add_products(self, partial: __m256i, weights: __m256i, q: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(partial, _mm256_maddubs_epi16(weights, q)) }
    }

    #[inline(always)]
    fn add_partial(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(a, b) }
    }

    #[inline(always)]
    fn close(self, sum: __m256i, partial: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(partial, _mm256_set1_epi16(1))) }
    }

    #[inline(always)]
    fn open_signed(self, _: i32) -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn signed_weights(self, bytes: __m256i) -> __m256i {
        bytes
    }

    #[inline(always)]
    fn chosen_weights(self, values: &[i8; 16], bytes: __m256i) -> __m256i {
        // SAFETY: sixteen bytes are read from an array of as many.
        unsafe {
            let values = _mm_loadu_si128(values.as_ptr().cast());
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), bytes)
        }
    }

    /// The sign goes over to the activations. Two products fit 16 bits: at most 2 * 128 * 127 = 32512.
    #[inline(always)]
    fn add_signed(self, sum: __m256i, weights: __m256i, q: __m256i) -> __m256i {
        unsafe {
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(q, weights));
            self.close(sum, pairs)
        }
    }
}

impl SoftmaxLanes for Avx2 {
    #[inline(always)]
    fn exp(self, x: __m256) -> __m256 {
        let [log2_e, ln2_high, ln2_low, max] = EXP_CONSTANTS;
        unsafe {
            let not_small = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_MIN), _CMP_GE_OQ);
            let large = _mm256_cmp_ps(x, _mm256_set1_ps(max), _CMP_GT_OQ);
            let n = _mm256_round_ps(
                _mm256_mul_ps(x, _mm256_set1_ps(log2_e)),
                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC,
            );
            let r = _mm256_fmadd_ps(n, _mm256_set1_ps(ln2_high), x);
            let r = _mm256_fmadd_ps(n, _mm256_set1_ps(ln2_low), r);
            let mut p = _mm256_set1_ps(EXP_POLY[0]);
            for &c in &EXP_POLY[1..] {
                p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
            }
            let e = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0));
            let exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
            let scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(e), exponent));
            let e = _mm256_and_ps(scaled, not_small);
            _mm256_blendv_ps(e, _mm256_set1_ps(f32::INFINITY), large)
        }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn largest(self, x: __m256) -> f32 {
        unsafe {
            let m4 = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
            let m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
            _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)))
        }
    }

    #[inline(always)]
    fn sum(self, x: __m256) -> f32 {
        unsafe {
            let a = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
            let b = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)))
        }
    }

    #[inline(always)]
    fn seen(self, x: __m256, first: usize, seen: &Range<usize>) -> __m256 {
        unsafe {
            let lane =
                _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first as i32));
            let before_end = _mm256_cmpgt_epi32(_mm256_set1_epi32(seen.end as i32), lane);
            let from_start = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(seen.start as i32 - 1));
            let inside = _mm256_castsi256_ps(_mm256_and_si256(before_end, from_start));
            _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), x, inside)
        }
    }
}
