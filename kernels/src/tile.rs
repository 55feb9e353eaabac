//! Products `C = A B` of f32 with free strides that fit in the near caches: what weight gradients, attention over whole sequences, and
//! linear maps of many rows are made of.
//!
//! Per output one chain: `acc = fma(a[i], b[i], acc)` in order of the steps `i`. Where it starts and where it goes is [`Into`].

use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2, Avx512};
use crate::lanes::{Lanes, Portable, compiled, prefetch};
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

/// Outputs of a product: row `r` starts `r * row` values behind `at`.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub(crate) at: *mut f32,
    pub(crate) row: usize,
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
    pub(crate) fn run(
        &self,
        isa: Isa,
        (rows, columns): (usize, usize),
        c: &mut [f32],
        c_row: usize,
        into: Into,
    ) {
        if rows == 0 || columns == 0 {
            return;
        }
        assert!((rows - 1) * c_row + columns <= c.len(), "a product's output is too short");
        // SAFETY: just asserted.
        unsafe { self.run_at(isa, (rows, columns), Out { at: c.as_mut_ptr(), row: c_row }, into) }
    }

    /// Where the furthest of `columns` columns of the first step ends in `b`.
    fn row_end(&self, columns: usize) -> usize {
        let (whole, part) = (columns / PANEL, columns % PANEL);
        let last_whole = if whole > 0 { (whole - 1) * self.b_panel + PANEL } else { 0 };
        if part > 0 { last_whole.max(whole * self.b_panel + part) } else { last_whole }
    }

    /// [`Self::run`] with outputs somewhere.
    ///
    /// # Safety
    /// `rows` rows of `columns` values may be read and written there, and nobody else does.
    ///
    /// # Panics
    /// When the inputs do not fit.
    pub(crate) unsafe fn run_at(&self, isa: Isa, (rows, columns): (usize, usize), out: Out, into: Into) {
        assert!(self.steps > 0 && columns.is_multiple_of(8), "a product of {columns} columns");
        assert!(
            rows > 0
                && columns > 0
                && (rows - 1) * self.a_row + (self.steps - 1) * self.a_step < self.a.len()
                && (self.steps - 1) * self.b_step + self.row_end(columns) <= self.b.len(),
            "a product's input is too short"
        );
        let mut column = 0;
        while column < columns {
            let left = columns - column;
            // SAFETY: the pool checked that this machine has the instructions; the asserts and the caller's promise cover every row and
            // column.
            column += unsafe {
                match isa {
                    Isa::Scalar => portable::<1>(self, column, rows, out, into),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 if left >= 32 => avx512::<2>(self, column, rows, out, into),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 if left >= 16 => avx512::<1>(self, column, rows, out, into),
                    #[cfg(target_arch = "x86_64")]
                    _ if left >= 16 => avx2::<2>(self, column, rows, out, into),
                    #[cfg(target_arch = "x86_64")]
                    _ => avx2::<1>(self, column, rows, out, into),
                    #[cfg(not(target_arch = "x86_64"))]
                    _ => portable::<1>(self, column, rows, out, into),
                }
            };
        }
    }
}

/// `R` rows from `row` on, and `H` registers of columns from `column` on: enough sums for two multiply-adds a cycle, and no more than there are
/// registers.
///
/// # Safety
/// The rows and columns are inside of the inputs and of the output.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const H: usize>(
    lanes: L,
    p: &Product<'_>,
    (row, column): (usize, usize),
    out: Out,
    into: Into,
) {
    // SAFETY (whole block): r < R, h < H and i < steps stay inside by the caller's promise.
    unsafe {
        let c = |r: usize, h: usize| out.at.wrapping_add((row + r) * out.row + column + h * L::WIDTH);
        let mut acc = [[lanes.zero(); H]; R];
        if into == Into::Continue {
            for r in 0..R {
                for h in 0..H {
                    acc[r][h] = lanes.load(c(r, h));
                }
            }
        }
        if into == Into::Add {
            // The output comes from afar meanwhile.
            for r in 0..R {
                for h in (0..H).step_by(PANEL / L::WIDTH) {
                    prefetch(c(r, h));
                }
            }
        }
        let mut a = p.a.as_ptr().add(row * p.a_row);
        let mut b = p.b.as_ptr().add(column / PANEL * p.b_panel + column % PANEL);
        for _ in 0..p.steps {
            let mut w = [lanes.zero(); H];
            for h in 0..H {
                let at = h * L::WIDTH;
                w[h] = lanes.load(b.add(at / PANEL * p.b_panel + at % PANEL));
            }
            for r in 0..R {
                let x = lanes.all(*a.add(r * p.a_row));
                for h in 0..H {
                    acc[r][h] = lanes.fma(x, w[h], acc[r][h]);
                }
            }
            a = a.wrapping_add(p.a_step);
            b = b.wrapping_add(p.b_step);
        }
        for r in 0..R {
            for h in 0..H {
                let sum = acc[r][h];
                lanes.store(
                    c(r, h),
                    if into == Into::Add { lanes.add(lanes.load(c(r, h)), sum) } else { sum },
                );
            }
        }
    }
}

/// A function for these lanes, in tiles of up to `most` rows.
macro_rules! columns {
    ($isa:ident, $lanes:ident, $most:literal, [$($rows:literal),*]) => {
        /// All rows of `H` registers of columns from `column` on; returns how many columns these are.
        ///
        /// # Safety
        /// The machine has the instructions. The rows and columns are inside of the inputs and of the output.
        unsafe fn $isa<const H: usize>(p: &Product<'_>, column: usize, rows: usize, out: Out, into: Into) -> usize {
            compiled! { $isa,
                unsafe fn some<const R: usize, const H: usize>(p: &Product<'_>, at: (usize, usize), out: Out, into: Into) {
                    // SAFETY: promised.
                    unsafe { tile::<$lanes, R, H>($lanes::new(), p, at, out, into) }
                }
            }
            let blocks = rows.div_ceil($most);
            for block in 0..blocks {
                // Rows are spread evenly: 16 rows are 8 + 8, not 12 + 4.
                let start = rows * block / blocks;
                // SAFETY: promised.
                unsafe {
                    match rows * (block + 1) / blocks - start {
                        $($rows => some::<$rows, H>(p, (start, column), out, into),)*
                        _ => unreachable!("more rows than a tile takes"),
                    }
                }
            }
            H * $lanes::WIDTH
        }
    };
}

columns!(portable, Portable, 2, [1, 2]);
#[cfg(target_arch = "x86_64")]
columns!(avx2, Avx2, 6, [1, 2, 3, 4, 5, 6]);
#[cfg(target_arch = "x86_64")]
columns!(avx512, Avx512, 12, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

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
                                product.run(isa, (rows, columns), &mut got, columns + 3, into);
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
        product.run(Isa::best(), (1, 24), &mut [0.0; 24], 24, Into::Set);
    }

    #[test]
    #[should_panic(expected = "input is too short")]
    fn a_product_beyond_its_last_panel_panics() {
        let product =
            Product { a: &[1.0; 8], a_row: 4, a_step: 1, b: &[1.0; 127], b_step: 16, b_panel: 64, steps: 4 };
        product.run(Isa::best(), (2, 32), &mut [0.0; 64], 32, Into::Set);
    }
}
