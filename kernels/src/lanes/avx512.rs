//! AVX-512 F, BW, VL and VNNI: sixteen lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Avx2, Lanes, SoftmaxLanes, WeightLanes};
use crate::math::{EXP_CONSTANTS, EXP_MIN, EXP_POLY};

/// The machine has AVX-512 F, BW, VL and VNNI, which is the proof for every `unsafe` below that reads no memory.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine has AVX-512 F, BW, VL and VNNI.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    type Floats = __m512;

    #[inline(always)]
    fn zero(self) -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn all(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: promised.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        // SAFETY: promised.
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
}

impl WeightLanes for Avx512 {
    type Integers = __m512i;

    #[inline(always)]
    unsafe fn f16(self, from: *const u8) -> __m512 {
        // SAFETY: promised.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn bf16(self, from: *const u8) -> __m512 {
        // SAFETY: promised.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))
        }
    }

    #[inline(always)]
    unsafe fn unsigned(self, from: *const u8) -> __m512i {
        // SAFETY: promised.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn signed(self, from: *const u8) -> __m512i {
        // SAFETY: promised.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> __m512i {
        // SAFETY: promised.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn four(self, from: *const i8) -> __m512i {
        // SAFETY: promised.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn all_integers(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    fn add_integers(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_integers(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn to_floats(self, x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn fused_sub(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn low(self, bytes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high(self, bytes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn moved(self, bytes: __m512i, left: i32, mask: u8) -> __m512i {
        unsafe {
            let moved = if left < 0 {
                _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(-left))
            } else {
                _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(left))
            };
            _mm512_and_si512(moved, _mm512_set1_epi8(mask.cast_signed()))
        }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn open(self, sum: __m512i) -> __m512i {
        sum
    }

    #[inline(always)]
    fn add_products(self, partial: __m512i, weights: __m512i, q: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(partial, weights, q) }
    }

    #[inline(always)]
    fn add_partial(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn close(self, _: __m512i, partial: __m512i) -> __m512i {
        partial
    }

    /// Weights plus 128 are unsigned; this is what that adds.
    #[inline(always)]
    fn open_signed(self, sum_of_q: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(-128 * sum_of_q) }
    }

    /// Plus 128.
    #[inline(always)]
    fn signed_weights(self, bytes: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)) }
    }

    #[inline(always)]
    fn chosen_weights(self, values: &[i8; 16], bytes: __m512i) -> __m512i {
        let values = values.map(|value| value ^ -128);
        // SAFETY: sixteen bytes are read from an array of as many.
        unsafe {
            let values = _mm_loadu_si128(values.as_ptr().cast());
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), bytes)
        }
    }

    #[inline(always)]
    fn add_signed(self, sum: __m512i, weights: __m512i, q: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, weights, q) }
    }
}

impl Avx512 {
    /// Eight lanes of the same machine.
    #[inline(always)]
    fn halves(self) -> Avx2 {
        // SAFETY: a machine with AVX-512 has AVX2, FMA and F16C.
        unsafe { Avx2::new() }
    }

    /// Lanes 0 to 7, and 8 to 15.
    #[inline(always)]
    fn split(self, x: __m512) -> [__m256; 2] {
        unsafe {
            [_mm512_castps512_ps256(x), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1))]
        }
    }
}

impl SoftmaxLanes for Avx512 {
    #[inline(always)]
    fn exp(self, x: __m512) -> __m512 {
        let [log2_e, ln2_high, ln2_low, max] = EXP_CONSTANTS;
        unsafe {
            let not_small = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_MIN), _CMP_GE_OQ);
            let large = _mm512_cmp_ps_mask(x, _mm512_set1_ps(max), _CMP_GT_OQ);
            let n = _mm512_roundscale_ps(
                _mm512_mul_ps(x, _mm512_set1_ps(log2_e)),
                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC,
            );
            let r = _mm512_fmadd_ps(n, _mm512_set1_ps(ln2_high), x);
            let r = _mm512_fmadd_ps(n, _mm512_set1_ps(ln2_low), r);
            let mut p = _mm512_set1_ps(EXP_POLY[0]);
            for &c in &EXP_POLY[1..] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
            }
            let e = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0));
            let exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
            let scaled = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(e), exponent));
            let e = _mm512_maskz_mov_ps(not_small, scaled);
            _mm512_mask_blend_ps(large, e, _mm512_set1_ps(f32::INFINITY))
        }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        let [low, high] = self.split(x);
        self.halves().largest(self.halves().max(low, high))
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        let [low, high] = self.split(x);
        self.halves().sum(self.halves().add(low, high))
    }

    #[inline(always)]
    fn seen(self, x: __m512, first: usize, seen: &Range<usize>) -> __m512 {
        let end = (1u32 << seen.end.saturating_sub(first).min(16)) - 1;
        let start = (1u32 << seen.start.saturating_sub(first).min(16)) - 1;
        let inside = end & !start;
        unsafe { _mm512_mask_blend_ps(inside as u16, _mm512_set1_ps(f32::NEG_INFINITY), x) }
    }
}
