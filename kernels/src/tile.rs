//! Products `C = A B` of f32 with free strides that fit in the near caches: what weight gradients, attention over whole sequences, and
//! linear maps of many rows are made of.
//!
//! Per output one chain: `acc = fma(a[i], b[i], acc)` in order of the steps `i`. Where it starts and where it goes is [`Into`].

use crate::isa::Isa;
use crate::matrix::PANEL;

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
    /// Value of (step `i`, column `c`) at `c / 16 * b_panel + i * b_step + c % 16`.
    pub(crate) b: &'a [f32],
    pub(crate) b_step: usize,
    pub(crate) b_panel: usize,
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
        assert!((rows - 1) * c_row + columns <= c.len(), "a product's output is too short");
        // SAFETY: just asserted.
        unsafe { self.run_at(isa, rows, columns, c.as_mut_ptr(), c_row, into) }
    }

    /// Where the furthest of `columns` columns of the first step ends in `b`.
    fn row_end(&self, columns: usize) -> usize {
        let (whole, part) = (columns / PANEL, columns % PANEL);
        let last_whole = if whole > 0 { (whole - 1) * self.b_panel + PANEL } else { 0 };
        if part > 0 { last_whole.max(whole * self.b_panel + part) } else { last_whole }
    }

    /// [`Self::run`] with outputs at `c`.
    ///
    /// # Safety
    /// `rows` rows of `columns` values, `c_row` apart, may be read and written there, and nobody else does.
    ///
    /// # Panics
    /// When the inputs do not fit.
    pub(crate) unsafe fn run_at(
        &self,
        isa: Isa,
        rows: usize,
        columns: usize,
        c: *mut f32,
        c_row: usize,
        into: Into,
    ) {
        assert!(self.steps > 0 && columns.is_multiple_of(8), "a product of {columns} columns");
        assert!(
            rows > 0
                && columns > 0
                && (rows - 1) * self.a_row + (self.steps - 1) * self.a_step < self.a.len()
                && (self.steps - 1) * self.b_step + self.row_end(columns) <= self.b.len(),
            "a product's input is too short"
        );
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 {
            let mut column = 0;
            while column < columns {
                let left = columns - column;
                // SAFETY: the pool checked that this machine has the instructions; the asserts and the caller's promise cover every row
                // and column.
                column += unsafe {
                    let c = c.add(column);
                    match isa {
                        Isa::Avx512 if left >= 32 => avx512::columns::<2>(self, column, rows, c, c_row, into),
                        Isa::Avx512 if left >= 16 => avx512::columns::<1>(self, column, rows, c, c_row, into),
                        _ if left >= 16 => avx2::columns::<2>(self, column, rows, c, c_row, into),
                        _ => avx2::columns::<1>(self, column, rows, c, c_row, into),
                    }
                };
            }
            return;
        }
        let _ = isa;
        for r in 0..rows {
            for column in 0..columns {
                // SAFETY: promised.
                let out = unsafe { &mut *c.add(r * c_row + column) };
                let mut acc = if into == Into::Continue { *out } else { 0.0 };
                for i in 0..self.steps {
                    acc = self.a[r * self.a_row + i * self.a_step].mul_add(
                        self.b[column / PANEL * self.b_panel + i * self.b_step + column % PANEL],
                        acc,
                    );
                }
                *out = if into == Into::Add { *out + acc } else { acc };
            }
        }
    }
}

/// Tiles of up to `$most` rows and two vectors: enough sums for two multiply-adds a cycle, and no more than there are registers.
macro_rules! tiles {
    (
        $isa:ident, $features:literal, $most:literal, [$($rows:literal),*],
        $vector:ty, $lanes:literal, $zero:ident, $load:ident, $store:ident, $all:ident, $fma:ident, $add:ident
    ) => {
        #[cfg(target_arch = "x86_64")]
        mod $isa {
            use std::arch::x86_64::*;

            use super::{Into, PANEL, Product};

            /// All rows of `H` vectors of columns from `column` on; returns how many columns these are.
            ///
            /// # Safety
            /// Needs the instructions. The rows and columns are inside of the inputs and of the output, whose first value is at `c`.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn columns<const H: usize>(
                p: &Product<'_>,
                column: usize,
                rows: usize,
                c: *mut f32,
                c_row: usize,
                into: Into,
            ) -> usize {
                let blocks = rows.div_ceil($most);
                for block in 0..blocks {
                    // Rows are spread evenly: 16 rows are 8 + 8, not 12 + 4.
                    let start = rows * block / blocks;
                    let count = rows * (block + 1) / blocks - start;
                    // SAFETY: promised.
                    unsafe {
                        let c = c.add(start * c_row);
                        match count {
                            $($rows => tile::<$rows, H>(p, start, column, c, c_row, into),)*
                            _ => unreachable!("more rows than a tile takes"),
                        }
                    }
                }
                H * $lanes
            }

            /// # Safety
            /// As [`columns`] with `R` rows from `row` on; the output of the first is at `c`.
            #[target_feature(enable = $features)]
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
                    let mut acc: [[$vector; H]; R] = [[$zero(); H]; R];
                    if into == Into::Continue {
                        for r in 0..R {
                            for h in 0..H {
                                acc[r][h] = $load(c.add(r * c_row + h * $lanes));
                            }
                        }
                    }
                    if into == Into::Add {
                        // The output comes from afar meanwhile.
                        for r in 0..R {
                            for h in (0..H).step_by(PANEL / $lanes) {
                                _mm_prefetch::<_MM_HINT_T0>(c.add(r * c_row + h * $lanes).cast());
                            }
                        }
                    }
                    let mut a = p.a.as_ptr().add(row * p.a_row);
                    let mut b = p.b.as_ptr().add(column / PANEL * p.b_panel + column % PANEL);
                    for _ in 0..p.steps {
                        let w: [$vector; H] = std::array::from_fn(|h| $load(b.add(h * $lanes / PANEL * p.b_panel + h * $lanes % PANEL)));
                        for r in 0..R {
                            let x = $all(*a.add(r * p.a_row));
                            for h in 0..H {
                                acc[r][h] = $fma(x, w[h], acc[r][h]);
                            }
                        }
                        a = a.wrapping_add(p.a_step);
                        b = b.wrapping_add(p.b_step);
                    }
                    for r in 0..R {
                        for h in 0..H {
                            let at = c.add(r * c_row + h * $lanes);
                            let sum = acc[r][h];
                            let sum = if into == Into::Add { $add($load(at), sum) } else { sum };
                            $store(at, sum);
                        }
                    }
                }
            }
        }
    };
}

tiles! {
    avx2, "avx2,fma", 6, [1, 2, 3, 4, 5, 6],
    __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps
}
tiles! {
    avx512, "avx512f,avx512bw,avx512vl", 12, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps
}

#[cfg(test)]
mod tests {
    use super::{Into, PANEL, Product};
    use crate::isa::Isa;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(2_246_822_519) >> 8;
        (0..count as u32).map(|i| noise(i) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// Every number of rows and vectors that tiles have, and some together; with rows and with steps of `a` side by side; with `b` in rows
    /// and in panels. What lies between the rows of the output stays.
    #[test]
    fn every_tile_has_the_bits_of_the_definition() {
        for columns in (8..=72).step_by(8) {
            for (rows, steps) in (1..=26).zip([1, 7, 19].into_iter().cycle()) {
                let (a, b) = (values((rows + 2) * (steps + 3), 1), values((columns + 16) * (steps + 1), 2));
                let before = values(rows * (columns + 3), 3);
                for (a_row, a_step) in [(steps + 3, 1), (1, rows + 2)] {
                    for (b_step, b_panel) in [(columns + 1, PANEL), (PANEL, steps * PANEL)] {
                        let product = Product { a: &a, a_row, a_step, b: &b, b_step, b_panel, steps };
                        for into in [Into::Set, Into::Add, Into::Continue] {
                            let mut want = before.clone();
                            for r in 0..rows {
                                for column in 0..columns {
                                    let b_at = column / PANEL * b_panel + column % PANEL;
                                    let out = &mut want[r * (columns + 3) + column];
                                    let start = if into == Into::Continue { *out } else { 0.0 };
                                    let sum = (0..steps).fold(start, |acc, i| {
                                        a[r * a_row + i * a_step].mul_add(b[b_at + i * b_step], acc)
                                    });
                                    *out = if into == Into::Add { *out + sum } else { sum };
                                }
                            }
                            for isa in Isa::all() {
                                let mut got = before.clone();
                                product.run(isa, rows, columns, &mut got, columns + 3, into);
                                assert!(
                                    got.iter().map(|v| v.to_bits()).eq(want.iter().map(|v| v.to_bits())),
                                    "{isa:?}: {rows} rows, {columns} columns, {steps} steps, {into:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "input is too short")]
    fn a_product_beyond_an_earlier_panel_panics() {
        let product =
            Product { a: &[1.0], a_row: 1, a_step: 1, b: &[1.0; 15], b_step: 16, b_panel: 0, steps: 1 };
        product.run(Isa::best(), 1, 24, &mut [0.0; 24], 24, Into::Set);
    }

    #[test]
    #[should_panic(expected = "input is too short")]
    fn a_product_beyond_its_last_panel_panics() {
        let product =
            Product { a: &[1.0; 8], a_row: 4, a_step: 1, b: &[1.0; 127], b_step: 16, b_panel: 64, steps: 4 };
        product.run(Isa::best(), 2, 32, &mut [0.0; 64], 32, Into::Set);
    }
}
