//! Small products `C = A B` of f32 with free strides: what weight gradients and attention over whole sequences are made of.
//!
//! Per output one chain: `acc = fma(a[i], b[i], acc)` in order of the steps `i`. Where it starts and where it goes is [`Into`].

use crate::isa::Isa;

/// Rows of a tile: 6 rows of 16 columns are 12 sums, enough for two multiply-adds a cycle.
pub(crate) const ROWS: usize = 6;

/// What a product does with what lies in its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Into {
    /// The chain starts at 0 and replaces it.
    Set,
    /// The chain starts at 0 and is added to it.
    Add,
    /// The chain starts there.
    Continue,
}

/// Both inputs of a product.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// Value of (row `r`, step `i`) at `r * a_row + i * a_step`.
    pub(crate) a: &'a [f32],
    pub(crate) a_row: usize,
    pub(crate) a_step: usize,
    /// Value of (step `i`, column `c`) at `i * b_step + c`.
    pub(crate) b: &'a [f32],
    pub(crate) b_step: usize,
    pub(crate) steps: usize,
}

impl Product<'_> {
    /// `rows` rows of `columns` columns (a multiple of 8); row `r` of the output starts at `r * c_row`.
    ///
    /// # Panics
    /// When something does not fit.
    pub(crate) fn run(&self, isa: Isa, rows: usize, columns: usize, c: &mut [f32], c_row: usize, into: Into) {
        if rows == 0 || columns == 0 {
            return;
        }
        assert!(self.steps > 0 && columns.is_multiple_of(8), "a product of {columns} columns");
        assert!((rows - 1) * c_row + columns <= c.len(), "a product's output is too short");
        assert!(
            (rows - 1) * self.a_row + (self.steps - 1) * self.a_step < self.a.len()
                && (self.steps - 1) * self.b_step + columns <= self.b.len(),
            "a product's input is too short"
        );
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 {
            let blocks = rows.div_ceil(ROWS);
            for column in (0..columns).step_by(16) {
                let wide = columns - column >= 16;
                for block in 0..blocks {
                    let start = rows * block / blocks;
                    let count = rows * (block + 1) / blocks - start;
                    // SAFETY: the pool checked that this machine has AVX2 and FMA; the asserts above cover every row and column.
                    unsafe {
                        let c = c.as_mut_ptr().add(start * c_row + column);
                        avx2::any_tile(self, start, column, count, wide, c, c_row, into);
                    }
                }
            }
            return;
        }
        let _ = isa;
        for r in 0..rows {
            for column in 0..columns {
                let out = &mut c[r * c_row + column];
                let mut acc = if into == Into::Continue { *out } else { 0.0 };
                for i in 0..self.steps {
                    acc = self.a[r * self.a_row + i * self.a_step]
                        .mul_add(self.b[i * self.b_step + column], acc);
                }
                *out = if into == Into::Add { *out + acc } else { acc };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Into, Product};

    /// # Safety
    /// Needs AVX2 and FMA. Rows `row..row + rows` (1 to 6) and columns from `column` (16 when `wide`, else 8) are inside of the inputs
    /// and of the output at `c`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn any_tile(
        p: &Product<'_>,
        row: usize,
        column: usize,
        rows: usize,
        wide: bool,
        c: *mut f32,
        c_row: usize,
        into: Into,
    ) {
        macro_rules! by_rows {
            ($($rows:literal),*) => {
                match (rows, wide) {
                    $(($rows, true) => tile::<$rows, 2>(p, row, column, c, c_row, into),
                    ($rows, false) => tile::<$rows, 1>(p, row, column, c, c_row, into),)*
                    _ => unreachable!("1 to 6 rows"),
                }
            };
        }
        // SAFETY: promised.
        unsafe { by_rows!(1, 2, 3, 4, 5, 6) }
    }

    /// # Safety
    /// As [`any_tile`] with `R` rows and `H * 8` columns.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const R: usize, const H: usize>(
        p: &Product<'_>,
        row: usize,
        column: usize,
        c: *mut f32,
        c_row: usize,
        into: Into,
    ) {
        // SAFETY (whole block): r < R, h < H and i < steps stay inside by the caller's promise.
        unsafe {
            let mut acc = [[_mm256_setzero_ps(); H]; R];
            if into == Into::Continue {
                for r in 0..R {
                    for h in 0..H {
                        acc[r][h] = _mm256_loadu_ps(c.add(r * c_row + h * 8));
                    }
                }
            }
            let mut a = p.a.as_ptr().add(row * p.a_row);
            let mut b = p.b.as_ptr().add(column);
            for _ in 0..p.steps {
                let w: [__m256; H] = std::array::from_fn(|h| _mm256_loadu_ps(b.add(h * 8)));
                for r in 0..R {
                    let x = _mm256_set1_ps(*a.add(r * p.a_row));
                    for h in 0..H {
                        acc[r][h] = _mm256_fmadd_ps(x, w[h], acc[r][h]);
                    }
                }
                a = a.wrapping_add(p.a_step);
                b = b.wrapping_add(p.b_step);
            }
            for r in 0..R {
                for h in 0..H {
                    let at = c.add(r * c_row + h * 8);
                    let sum = acc[r][h];
                    let sum = if into == Into::Add { _mm256_add_ps(_mm256_loadu_ps(at), sum) } else { sum };
                    _mm256_storeu_ps(at, sum);
                }
            }
        }
    }
}
