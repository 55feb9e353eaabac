//! AVX2 with FMA and F16C: 8 columns to a register, two registers to a panel.

use std::arch::x86_64::*;

use super::tile::{CHUNK, CHUNK_BLOCKS, Tile};
use crate::matrix::{
    BLOCK, PANEL, Packing, Q4_BLOCK_BYTES, Q4K_BLOCK_BYTES, Q6K_BLOCK_BYTES, Q6K_PART_BYTES, Q8_BLOCK_BYTES,
};

/// Columns of a register.
const LANES: usize = 8;

/// # Safety
/// Needs AVX2, FMA and F16C. The tile's `rows` rows (1 to 6 dense, 1 to 4 quantised) and `panels` panels (4, 2 or 1; 1 when quantised) exist, and
/// quantised activations are filled where the packing needs them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile(tile: &Tile<'_>, rows: usize, panels: usize) {
    macro_rules! by_rows {
        ($f:ident, $panels:literal; $($rows:literal),*) => {
            match rows { $($rows => $f::<$rows, $panels>(tile),)* _ => unreachable!("more rows than a tile takes") }
        };
        ($f:ident; $($rows:literal),*) => {
            match rows { $($rows => $f::<$rows>(tile),)* _ => unreachable!("more rows than a tile takes") }
        };
    }
    // SAFETY: the caller's promise is that of every kernel below.
    unsafe {
        match (tile.w.packing, panels) {
            (Packing::F32, 1) => by_rows!(dense_f32, 1; 1, 2, 3, 4, 5, 6),
            (Packing::F32, 2) => by_rows!(dense_f32, 2; 1, 2),
            (Packing::F32, _) => by_rows!(dense_f32, 4; 1),
            (Packing::F16, 1) => by_rows!(dense_f16, 1; 1, 2, 3, 4, 5, 6),
            (Packing::F16, 2) => by_rows!(dense_f16, 2; 1, 2),
            (Packing::F16, _) => by_rows!(dense_f16, 4; 1),
            (Packing::Bf16, 1) => by_rows!(dense_bf16, 1; 1, 2, 3, 4, 5, 6),
            (Packing::Bf16, 2) => by_rows!(dense_bf16, 2; 1, 2),
            (Packing::Bf16, _) => by_rows!(dense_bf16, 4; 1),
            (Packing::Q8, _) => by_rows!(q8; 1, 2, 3, 4),
            (Packing::Q4, _) => by_rows!(q4; 1, 2, 3, 4),
            (Packing::Q4K, _) => by_rows!(q4k; 1, 2, 3, 4),
            (Packing::Q6K, _) => by_rows!(q6k; 1, 2, 3, 4),
        }
    }
}

macro_rules! dense {
    ($name:ident, $bytes:literal, $load:expr) => {
        /// # Safety
        /// As [`tile`], with `R` rows and `P` panels.
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $name<const R: usize, const P: usize>(tile: &Tile<'_>) {
            let k = tile.w.k();
            let x = tile.x();
            let w: [*const u8; P] = std::array::from_fn(|p| tile.panel_data(p));
            let mut total = [[[_mm256_setzero_ps(); 2]; P]; R];
            for start in (0..k).step_by(CHUNK) {
                let mut acc = [[[_mm256_setzero_ps(); 2]; P]; R];
                for i in start..k.min(start + CHUNK) {
                    for p in 0..P {
                        // SAFETY: i < k, so the loads lie inside of the panel and of the rows.
                        unsafe {
                            let load = $load;
                            let at = w[p].add(i * PANEL * $bytes);
                            let w: [__m256; 2] = [load(at), load(at.add(LANES * $bytes))];
                            for r in 0..R {
                                let x = _mm256_set1_ps(*x.add(r * k + i));
                                for h in 0..2 {
                                    acc[r][p][h] = _mm256_fmadd_ps(x, w[h], acc[r][p][h]);
                                }
                            }
                        }
                    }
                }
                for r in 0..R {
                    for p in 0..P {
                        for h in 0..2 {
                            let sum = acc[r][p][h];
                            total[r][p][h] =
                                if start == 0 { sum } else { _mm256_add_ps(total[r][p][h], sum) };
                        }
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

dense!(dense_f32, 4, |p: *const u8| _mm256_loadu_ps(p.cast()));
dense!(dense_f16, 2, |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())));
dense!(dense_bf16, 2, |p: *const u8| {
    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
    _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
});

#[target_feature(enable = "avx2")]
fn store(tile: &Tile<'_>, r: usize, p: usize, value: [__m256; 2]) {
    let mut out = [0f32; PANEL];
    // SAFETY: twice 8 of 16 values.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), value[0]);
        _mm256_storeu_ps(out.as_mut_ptr().add(LANES), value[1]);
    }
    tile.store(r, p, &out);
}

/// Running sums of `R` rows and both halves of a panel: of the chunk, and of the chunks before.
struct Sums<const R: usize> {
    acc: [[__m256; 2]; R],
    total: [[__m256; 2]; R],
}

impl<const R: usize> Sums<R> {
    #[inline(always)]
    fn new() -> Self {
        // SAFETY: the caller has AVX2.
        let zero = unsafe { _mm256_setzero_ps() };
        Self { acc: [[zero; 2]; R], total: [[zero; 2]; R] }
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
            for h in 0..2 {
                // SAFETY: the caller has AVX2.
                unsafe {
                    let sum = self.acc[r][h];
                    self.total[r][h] = if first { sum } else { _mm256_add_ps(self.total[r][h], sum) };
                    self.acc[r][h] = _mm256_setzero_ps();
                }
            }
        }
    }
}

/// Pointers to the quantised activations of a tile's first row, and blocks in a row.
#[derive(Clone, Copy)]
struct Act {
    q: *const i8,
    wide: *const u16,
    d: *const f32,
    s: *const f32,
    half_sums: *const [i32; 2],
    blocks: usize,
}

impl Act {
    fn of(tile: &Tile<'_>) -> Self {
        let a = tile.rows.quantised;
        let first = tile.first_row * a.blocks;
        Self {
            q: a.q[first * BLOCK..].as_ptr(),
            wide: a.wide[first * BLOCK..].as_ptr(),
            d: a.d[first..].as_ptr(),
            s: a.s[first..].as_ptr(),
            half_sums: a.half_sums[first..].as_ptr(),
            blocks: a.blocks,
        }
    }
}

/// The same four bytes in every lane of 32 bits.
///
/// # Safety
/// Four bytes are readable at `p`; AVX2.
#[inline(always)]
unsafe fn four<T>(p: *const T) -> __m256i {
    // SAFETY: promised.
    unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
}

/// Half `h` of 16 f16 values as f32.
///
/// # Safety
/// 32 bytes are readable at `p`; AVX2 and F16C.
#[inline(always)]
unsafe fn halves(p: *const u8, h: usize) -> __m256 {
    // SAFETY: promised.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.add(h * 16).cast())) }
}

/// # Safety
/// As [`tile`], with `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8<const R: usize>(tile: &Tile<'_>) {
    let a = Act::of(tile);
    let panel = tile.panel_data(0);
    let mut sums = Sums::<R>::new();
    for b in 0..a.blocks {
        sums.before(b);
        for h in 0..2 {
            // SAFETY: b < blocks, r < R: inside of panel and activations.
            unsafe {
                let w = panel.add(b * Q8_BLOCK_BYTES);
                let mut sum = [_mm256_setzero_si256(); R];
                for g in 0..8 {
                    let bytes = _mm256_loadu_si256(w.add(32 + g * 64 + h * 32).cast());
                    // Inputs 0 and 2 of each four as 16 bit, then 1 and 3: the order of the widened activations.
                    let even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
                    let odd = _mm256_srai_epi16(bytes, 8);
                    for r in 0..R {
                        let x = a.wide.add((r * a.blocks + b) * BLOCK + g * 4);
                        sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(even, four(x)));
                        sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(odd, four(x.add(2))));
                    }
                }
                let d = halves(w, h);
                for r in 0..R {
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(*a.d.add(r * a.blocks + b)));
                    sums.acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r]), scale, sums.acc[r][h]);
                }
            }
        }
    }
    sums.close(a.blocks <= CHUNK_BLOCKS);
    for r in 0..R {
        store(tile, r, 0, sums.total[r]);
    }
}

/// Integer sums of half `h` of one block of 4-bit weights with `R` rows of activations `stride` bytes apart.
///
/// Eight products of pairs are summed in 16 bits: at most 8 * 2 * 15 * 127 = 30480.
///
/// # Safety
/// 256 bytes at `w`, 32 at every row's `q`; AVX2.
#[inline(always)]
unsafe fn nibble_sums<const R: usize>(w: *const u8, h: usize, q: *const i8, stride: usize) -> [__m256; R] {
    // SAFETY: promised.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let mut sum = [_mm256_setzero_si256(); R];
        for g in 0..4 {
            let both = _mm256_loadu_si256(w.add(g * 64 + h * 32).cast());
            let low = _mm256_and_si256(both, mask);
            let high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
            for r in 0..R {
                let q = q.add(r * stride + g * 4);
                sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(low, four(q)));
                sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(high, four(q.add(16))));
            }
        }
        let ones = _mm256_set1_epi16(1);
        std::array::from_fn(|r| _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[r], ones)))
    }
}

/// # Safety
/// As [`tile`], with `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4<const R: usize>(tile: &Tile<'_>) {
    let a = Act::of(tile);
    let panel = tile.panel_data(0);
    let mut sums = Sums::<R>::new();
    for b in 0..a.blocks {
        sums.before(b);
        for h in 0..2 {
            // SAFETY: b < blocks, r < R: inside of panel and activations.
            unsafe {
                let w = panel.add(b * Q4_BLOCK_BYTES);
                let sum = nibble_sums::<R>(w.add(64), h, a.q.add(b * BLOCK), a.blocks * BLOCK);
                let (d, m) = (halves(w, h), halves(w.add(32), h));
                for r in 0..R {
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(*a.d.add(r * a.blocks + b)));
                    let acc = _mm256_fmadd_ps(sum[r], scale, sums.acc[r][h]);
                    sums.acc[r][h] = _mm256_fmadd_ps(m, _mm256_set1_ps(*a.s.add(r * a.blocks + b)), acc);
                }
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4k<const R: usize>(tile: &Tile<'_>) {
    let a = Act::of(tile);
    let panel = tile.panel_data(0);
    let mut sums = Sums::<R>::new();
    for b in 0..a.blocks {
        sums.before(b);
        for h in 0..2 {
            // SAFETY: b < blocks, r < R: inside of panel and activations; 8 blocks make a super-block.
            unsafe {
                let (w, u) = (panel.add(b / 8 * Q4K_BLOCK_BYTES), b % 8);
                let sum = nibble_sums::<R>(w.add(320 + u * 256), h, a.q.add(b * BLOCK), a.blocks * BLOCK);
                let bytes = |at: usize| {
                    let eight = _mm_loadl_epi64(w.add(at + h * LANES).cast());
                    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight))
                };
                let d = _mm256_mul_ps(halves(w, h), bytes(64 + u * PANEL));
                let m = _mm256_mul_ps(halves(w.add(32), h), bytes(192 + u * PANEL));
                for r in 0..R {
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(*a.d.add(r * a.blocks + b)));
                    let acc = _mm256_fmadd_ps(sum[r], scale, sums.acc[r][h]);
                    sums.acc[r][h] = _mm256_fnmadd_ps(m, _mm256_set1_ps(*a.s.add(r * a.blocks + b)), acc);
                }
            }
        }
    }
    sums.close(a.blocks <= CHUNK_BLOCKS);
    for r in 0..R {
        store(tile, r, 0, sums.total[r]);
    }
}

/// Integer sums, scales included, of half `h` of 32 inputs of Q6_K with `R` rows of activations `stride` bytes apart.
///
/// A value has 6 bits, so two products of pairs fit 16 bits: 2 * 2 * 63 * 127 = 32004.
///
/// # Safety
/// 384 bytes at `w`, 32 scales at `scales`, 32 bytes at every row's `q`, a sum of every row at `half_sums`, `blocks` apart; AVX2.
#[inline(always)]
unsafe fn six_bit_sums<const R: usize>(
    w: *const u8,
    scales: *const u8,
    h: usize,
    (q, half_sums, blocks): (*const i8, *const [i32; 2], usize),
) -> [__m256; R] {
    // SAFETY: promised.
    unsafe {
        let (nibble, upper, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30), _mm256_set1_epi16(1));
        // What values around 32 take off.
        let mut sum: [[__m256i; 2]; R] =
            std::array::from_fn(|r| (*half_sums.add(r * blocks)).map(|sum| _mm256_set1_epi32(-32 * sum)));
        for v in 0..2 {
            let bits = _mm256_loadu_si256(w.add(256 + v * 64 + h * 32).cast());
            let mut pairs = [[_mm256_setzero_si256(); 2]; R];
            for g in 0..2 {
                let both = _mm256_loadu_si256(w.add((v * 2 + g) * 64 + h * 32).cast());
                let (up, down) = if g == 0 {
                    (_mm256_slli_epi16(bits, 4), _mm256_slli_epi16(bits, 2))
                } else {
                    (bits, _mm256_srli_epi16(bits, 2))
                };
                let low = _mm256_or_si256(_mm256_and_si256(both, nibble), _mm256_and_si256(up, upper));
                let high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
                let high = _mm256_or_si256(high, _mm256_and_si256(down, upper));
                for r in 0..R {
                    let q = q.add(r * blocks * BLOCK + (v * 2 + g) * 4);
                    pairs[r][0] = _mm256_add_epi16(pairs[r][0], _mm256_maddubs_epi16(low, four(q)));
                    pairs[r][1] = _mm256_add_epi16(pairs[r][1], _mm256_maddubs_epi16(high, four(q.add(16))));
                }
            }
            for r in 0..R {
                for half in 0..2 {
                    sum[r][half] = _mm256_add_epi32(sum[r][half], _mm256_madd_epi16(pairs[r][half], ones));
                }
            }
        }
        let scale =
            |half: usize| _mm256_cvtepi8_epi32(_mm_loadl_epi64(scales.add(half * PANEL + h * LANES).cast()));
        let scales = [scale(0), scale(1)];
        sum.map(|[first, second]| {
            let (first, second) =
                (_mm256_mullo_epi32(first, scales[0]), _mm256_mullo_epi32(second, scales[1]));
            _mm256_cvtepi32_ps(_mm256_add_epi32(first, second))
        })
    }
}

/// # Safety
/// As [`tile`], with `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6k<const R: usize>(tile: &Tile<'_>) {
    let a = Act::of(tile);
    let panel = tile.panel_data(0);
    let mut sums = Sums::<R>::new();
    for b in 0..a.blocks {
        sums.before(b);
        for h in 0..2 {
            // SAFETY: b < blocks, r < R: inside of panel and activations; 8 blocks make a super-block.
            unsafe {
                let (w, u) = (panel.add(b / 8 * Q6K_BLOCK_BYTES), b % 8);
                let (part, scales) = (w.add(288 + u * Q6K_PART_BYTES), w.add(32 + u * 2 * PANEL));
                let rows = (a.q.add(b * BLOCK), a.half_sums.add(b), a.blocks);
                let sum = six_bit_sums::<R>(part, scales, h, rows);
                let d = halves(w, h);
                for r in 0..R {
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(*a.d.add(r * a.blocks + b)));
                    sums.acc[r][h] = _mm256_fmadd_ps(sum[r], scale, sums.acc[r][h]);
                }
            }
        }
    }
    sums.close(a.blocks <= CHUNK_BLOCKS);
    for r in 0..R {
        store(tile, r, 0, sums.total[r]);
    }
}
