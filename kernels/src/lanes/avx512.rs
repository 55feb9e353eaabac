//! AVX-512 F, BW, VL and VNNI: sixteen lanes.

use std::arch::x86_64::*;

use super::{Lanes, WeightLanes};

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
    unsafe fn small(self, from: *const u8) -> __m512 {
        // SAFETY: promised.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
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
    fn above<const AT: usize>(self, bits: __m512i, low: __m512i) -> __m512i {
        unsafe {
            let moved = match AT {
                0 => _mm512_slli_epi16(bits, 4),
                2 => _mm512_slli_epi16(bits, 2),
                4 => bits,
                _ => _mm512_srli_epi16(bits, 2),
            };
            _mm512_or_si512(low, _mm512_and_si512(moved, _mm512_set1_epi8(0x30)))
        }
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

    #[inline(always)]
    fn add_signed(self, sum: __m512i, weights: __m512i, q: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, _mm512_xor_si512(weights, _mm512_set1_epi8(-128)), q) }
    }
}
