//! AVX-512 with VNNI: 16 columns to a register.

use std::arch::x86_64::*;

use super::tile::{CHUNK, CHUNK_BLOCKS, Tile};
use crate::matrix::{
    BLOCK, PANEL, Packing, Q4_BLOCK_BYTES, Q4K_BLOCK_BYTES, Q6K_BLOCK_BYTES, Q6K_PART_BYTES, Q8_BLOCK_BYTES,
};

/// # Safety
/// Needs AVX-512 F, BW, VL, VNNI, AVX2, FMA and F16C. The tile's `rows` rows (1 to 8) and `panels` panels (1, 2, 4 or 8; 1 when quantised)
/// exist, and quantised activations are filled where the packing needs them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tile(tile: &Tile<'_>, rows: usize, panels: usize) {
    macro_rules! by_rows {
        ($f:ident, $panels:literal; $($rows:literal),*) => {
            match rows { $($rows => $f::<$rows, $panels>(tile),)* _ => unreachable!("at most 8 rows in a tile") }
        };
        ($f:ident; $($rows:literal),*) => {
            match rows { $($rows => $f::<$rows>(tile),)* _ => unreachable!("at most 8 rows in a tile") }
        };
    }
    // SAFETY: the caller's promise is that of every kernel below.
    unsafe {
        match (tile.w.packing, panels) {
            (Packing::F32, 1) => by_rows!(dense_f32, 1; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::F32, 2) => by_rows!(dense_f32, 2; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::F32, 4) => by_rows!(dense_f32, 4; 1, 2, 3, 4),
            (Packing::F32, _) => by_rows!(dense_f32, 8; 1),
            (Packing::F16, 1) => by_rows!(dense_f16, 1; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::F16, 2) => by_rows!(dense_f16, 2; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::F16, 4) => by_rows!(dense_f16, 4; 1, 2, 3, 4),
            (Packing::F16, _) => by_rows!(dense_f16, 8; 1),
            (Packing::Bf16, 1) => by_rows!(dense_bf16, 1; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::Bf16, 2) => by_rows!(dense_bf16, 2; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::Bf16, 4) => by_rows!(dense_bf16, 4; 1, 2, 3, 4),
            (Packing::Bf16, _) => by_rows!(dense_bf16, 8; 1),
            (Packing::Q8, _) => by_rows!(q8; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::Q4, _) => by_rows!(q4; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::Q4K, _) => by_rows!(q4k; 1, 2, 3, 4, 5, 6, 7, 8),
            (Packing::Q6K, _) => by_rows!(q6k; 1, 2, 3, 4, 5, 6, 7, 8),
        }
    }
}

macro_rules! dense {
    ($name:ident, $bytes:literal, $load:expr) => {
        /// # Safety
        /// As [`tile`], with `R` rows and `P` panels.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        unsafe fn $name<const R: usize, const P: usize>(tile: &Tile<'_>) {
            let k = tile.w.k();
            let x = tile.x();
            let w: [*const u8; P] = std::array::from_fn(|p| tile.panel_data(p));
            let mut total = [[_mm512_setzero_ps(); P]; R];
            for start in (0..k).step_by(CHUNK) {
                let mut acc = [[_mm512_setzero_ps(); P]; R];
                for i in start..k.min(start + CHUNK) {
                    // SAFETY: i < k, so the loads lie inside of the panels and of the rows.
                    unsafe {
                        let load = $load;
                        let w: [__m512; P] = std::array::from_fn(|p| load(w[p].add(i * PANEL * $bytes)));
                        for r in 0..R {
                            let x = _mm512_set1_ps(*x.add(r * k + i));
                            for p in 0..P {
                                acc[r][p] = _mm512_fmadd_ps(x, w[p], acc[r][p]);
                            }
                        }
                    }
                }
                for r in 0..R {
                    for p in 0..P {
                        total[r][p] =
                            if start == 0 { acc[r][p] } else { _mm512_add_ps(total[r][p], acc[r][p]) };
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    store(tile, r, p, total[r][p]);
                }
            }
        }
    };
}

dense!(dense_f32, 4, |p: *const u8| _mm512_loadu_ps(p.cast()));
dense!(dense_f16, 2, |p: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())));
dense!(dense_bf16, 2, |p: *const u8| {
    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
    _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))
});

#[target_feature(enable = "avx512f")]
fn store(tile: &Tile<'_>, r: usize, p: usize, value: __m512) {
    let mut out = [0f32; PANEL];
    // SAFETY: 16 values.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), value) };
    tile.store(r, p, &out);
}

/// Four activations in every lane.
///
/// # Safety
/// Four bytes are readable at `q`.
#[inline(always)]
unsafe fn four(q: *const i8) -> __m512i {
    // SAFETY: promised; the caller has AVX-512.
    unsafe { _mm512_set1_epi32(q.cast::<i32>().read_unaligned()) }
}

/// Running sums of `R` rows: of the chunk, and of the chunks before.
#[derive(Clone, Copy)]
struct Sums<const R: usize> {
    acc: [__m512; R],
    total: [__m512; R],
}

impl<const R: usize> Sums<R> {
    #[inline(always)]
    fn new() -> Self {
        // SAFETY: the caller has AVX-512.
        let zero = unsafe { _mm512_setzero_ps() };
        Self { acc: [zero; R], total: [zero; R] }
    }

    /// Before block `b`: ends a chunk when one is full.
    #[inline(always)]
    fn before(&mut self, b: usize) {
        if b.is_multiple_of(CHUNK_BLOCKS) && b > 0 {
            self.close(b == CHUNK_BLOCKS);
        }
    }

    #[inline(always)]
    fn close(&mut self, first: bool) {
        for r in 0..R {
            // SAFETY: the caller has AVX-512.
            unsafe {
                self.total[r] = if first { self.acc[r] } else { _mm512_add_ps(self.total[r], self.acc[r]) };
                self.acc[r] = _mm512_setzero_ps();
            }
        }
    }
}

/// Pointers to the quantised activations of a tile's first row, and blocks in a row.
#[derive(Clone, Copy)]
struct Act {
    q: *const i8,
    d: *const f32,
    s: *const f32,
    sum: *const i32,
    half_sums: *const [i32; 2],
    blocks: usize,
}

impl Act {
    fn of(tile: &Tile<'_>) -> Self {
        let a = tile.rows.quantised;
        let first = tile.first_row * a.blocks;
        Self {
            q: a.q[first * BLOCK..].as_ptr(),
            d: a.d[first..].as_ptr(),
            s: a.s[first..].as_ptr(),
            sum: a.sum[first..].as_ptr(),
            half_sums: a.half_sums[first..].as_ptr(),
            blocks: a.blocks,
        }
    }
}

/// # Safety
/// As [`tile`], with `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q8<const R: usize>(tile: &Tile<'_>) {
    let a = Act::of(tile);
    let panel = tile.panel_data(0);
    let mut sums = Sums::<R>::new();
    let flip = _mm512_set1_epi8(-128);
    for b in 0..a.blocks {
        sums.before(b);
        // SAFETY: b < blocks, r < R: inside of panel and activations.
        unsafe {
            let w = panel.add(b * Q8_BLOCK_BYTES);
            // Weights + 128 are unsigned; what that adds, 128 * sum(q), is taken off at the start.
            let mut even: [__m512i; R] =
                std::array::from_fn(|r| _mm512_set1_epi32(-128 * *a.sum.add(r * a.blocks + b)));
            let mut odd = [_mm512_setzero_si512(); R];
            for g in (0..8).step_by(2) {
                let w0 = _mm512_xor_si512(_mm512_loadu_si512(w.add(32 + g * 64).cast()), flip);
                let w1 = _mm512_xor_si512(_mm512_loadu_si512(w.add(96 + g * 64).cast()), flip);
                for r in 0..R {
                    let q = a.q.add((r * a.blocks + b) * BLOCK + g * 4);
                    even[r] = _mm512_dpbusd_epi32(even[r], w0, four(q));
                    odd[r] = _mm512_dpbusd_epi32(odd[r], w1, four(q.add(4)));
                }
            }
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(w.cast()));
            for r in 0..R {
                let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(even[r], odd[r]));
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(*a.d.add(r * a.blocks + b)));
                sums.acc[r] = _mm512_fmadd_ps(sum, scale, sums.acc[r]);
            }
        }
    }
    sums.close(a.blocks <= CHUNK_BLOCKS);
    for r in 0..R {
        store(tile, r, 0, sums.total[r]);
    }
}

/// Integer sums of one block of 4-bit weights with `R` rows of activations `stride` bytes apart.
///
/// # Safety
/// 256 bytes at `w`, 32 at every row's `q`; AVX-512 with VNNI.
#[inline(always)]
unsafe fn nibble_sums<const R: usize>(w: *const u8, q: *const i8, stride: usize) -> [__m512; R] {
    // SAFETY: promised.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        let mut low = [_mm512_setzero_si512(); R];
        let mut high = [_mm512_setzero_si512(); R];
        for g in 0..4 {
            let both = _mm512_loadu_si512(w.add(g * 64).cast());
            let w_low = _mm512_and_si512(both, mask);
            let w_high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
            for r in 0..R {
                let q = q.add(r * stride + g * 4);
                low[r] = _mm512_dpbusd_epi32(low[r], w_low, four(q));
                high[r] = _mm512_dpbusd_epi32(high[r], w_high, four(q.add(16)));
            }
        }
        std::array::from_fn(|r| _mm512_cvtepi32_ps(_mm512_add_epi32(low[r], high[r])))
    }
}

/// # Safety
/// As [`tile`], with `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q4<const R: usize>(tile: &Tile<'_>) {
    let a = Act::of(tile);
    let panel = tile.panel_data(0);
    let mut sums = Sums::<R>::new();
    for b in 0..a.blocks {
        sums.before(b);
        // SAFETY: b < blocks, r < R: inside of panel and activations.
        unsafe {
            let w = panel.add(b * Q4_BLOCK_BYTES);
            let sum = nibble_sums::<R>(w.add(64), a.q.add(b * BLOCK), a.blocks * BLOCK);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(w.cast()));
            let m = _mm512_cvtph_ps(_mm256_loadu_si256(w.add(32).cast()));
            for r in 0..R {
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(*a.d.add(r * a.blocks + b)));
                let acc = _mm512_fmadd_ps(sum[r], scale, sums.acc[r]);
                sums.acc[r] = _mm512_fmadd_ps(m, _mm512_set1_ps(*a.s.add(r * a.blocks + b)), acc);
            }
        }
    }
    sums.close(a.blocks <= CHUNK_BLOCKS);
    for r in 0..R {
        store(tile, r, 0, sums.total[r]);
    }
}

/// # Safety
/// As [`tile`], with `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q4k<const R: usize>(tile: &Tile<'_>) {
    let a = Act::of(tile);
    let panel = tile.panel_data(0);
    let mut sums = Sums::<R>::new();
    for b in 0..a.blocks {
        sums.before(b);
        // SAFETY: b < blocks, r < R: inside of panel and activations; 8 blocks make a super-block.
        unsafe {
            let (w, u) = (panel.add(b / 8 * Q4K_BLOCK_BYTES), b % 8);
            let sum = nibble_sums::<R>(w.add(320 + u * 256), a.q.add(b * BLOCK), a.blocks * BLOCK);
            let wide =
                |at: usize| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(w.add(at).cast())));
            let d = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(w.cast())), wide(64 + u * PANEL));
            let m =
                _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(w.add(32).cast())), wide(192 + u * PANEL));
            for r in 0..R {
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(*a.d.add(r * a.blocks + b)));
                let acc = _mm512_fmadd_ps(sum[r], scale, sums.acc[r]);
                sums.acc[r] = _mm512_fnmadd_ps(m, _mm512_set1_ps(*a.s.add(r * a.blocks + b)), acc);
            }
        }
    }
    sums.close(a.blocks <= CHUNK_BLOCKS);
    for r in 0..R {
        store(tile, r, 0, sums.total[r]);
    }
}

/// Integer sums, scales included, of 32 inputs of Q6_K with `R` rows of activations.
///
/// # Safety
/// 384 bytes at `w`, 32 scales at `scales`, 32 bytes at every row's `q`, a sum of every row at `half_sums`, `blocks` apart; AVX-512 with VNNI.
#[inline(always)]
unsafe fn six_bit_sums<const R: usize>(
    w: *const u8,
    scales: *const u8,
    (q, half_sums, blocks): (*const i8, *const [i32; 2], usize),
) -> [__m512; R] {
    // SAFETY: promised.
    unsafe {
        let (nibble, upper) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        // What values around 32 take off.
        let mut sum: [[__m512i; 2]; R] =
            std::array::from_fn(|r| (*half_sums.add(r * blocks)).map(|sum| _mm512_set1_epi32(-32 * sum)));
        for g in 0..4 {
            let both = _mm512_loadu_si512(w.add(g * 64).cast());
            let bits = _mm512_loadu_si512(w.add(256 + g / 2 * 64).cast());
            let (up, down) = if g % 2 == 0 {
                (_mm512_slli_epi16(bits, 4), _mm512_slli_epi16(bits, 2))
            } else {
                (bits, _mm512_srli_epi16(bits, 2))
            };
            let low = _mm512_or_si512(_mm512_and_si512(both, nibble), _mm512_and_si512(up, upper));
            let high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            let high = _mm512_or_si512(high, _mm512_and_si512(down, upper));
            for r in 0..R {
                let q = q.add(r * blocks * BLOCK + g * 4);
                sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], low, four(q));
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], high, four(q.add(16)));
            }
        }
        let scale = |half: usize| _mm512_cvtepi8_epi32(_mm_loadu_si128(scales.add(half * PANEL).cast()));
        let scales = [scale(0), scale(1)];
        sum.map(|[first, second]| {
            let (first, second) =
                (_mm512_mullo_epi32(first, scales[0]), _mm512_mullo_epi32(second, scales[1]));
            _mm512_cvtepi32_ps(_mm512_add_epi32(first, second))
        })
    }
}

/// # Safety
/// As [`tile`], with `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q6k<const R: usize>(tile: &Tile<'_>) {
    let a = Act::of(tile);
    let panel = tile.panel_data(0);
    let mut sums = Sums::<R>::new();
    for b in 0..a.blocks {
        sums.before(b);
        // SAFETY: b < blocks, r < R: inside of panel and activations; 8 blocks make a super-block.
        unsafe {
            let (w, u) = (panel.add(b / 8 * Q6K_BLOCK_BYTES), b % 8);
            let (part, scales) = (w.add(288 + u * Q6K_PART_BYTES), w.add(32 + u * 2 * PANEL));
            let rows = (a.q.add(b * BLOCK), a.half_sums.add(b), a.blocks);
            let sum = six_bit_sums::<R>(part, scales, rows);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(w.cast()));
            for r in 0..R {
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(*a.d.add(r * a.blocks + b)));
                sums.acc[r] = _mm512_fmadd_ps(sum[r], scale, sums.acc[r]);
            }
        }
    }
    sums.close(a.blocks <= CHUNK_BLOCKS);
    for r in 0..R {
        store(tile, r, 0, sums.total[r]);
    }
}
