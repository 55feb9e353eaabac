//! Every packing and size of tile, compiled for each instruction set.

use super::blocks::{BlockFormat, Blocks};
use super::dense::{Bf16, Dense, F16, F32, Value};
use super::formats::{Iq4, Q8, WithMinimum};
use super::super_blocks::{Iq4Xs, Minima, Q2K, Sixteens};
use super::tile::{Tile, TileKernel};
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2, Avx512};
use crate::lanes::{Portable, compiled};
use crate::matrix::Packing;

/// Functions for these lanes, of which `registers` make a panel: with so many panels, so many rows; and with quantised weights one panel and so many rows.
macro_rules! tiles {
    ($isa:ident, $lanes:ident, $registers:literal, dense: { $($panels:literal: [$($rows:literal),*]),* }, quantised: [$($few:literal),*]) => {
        /// # Safety
        /// The machine has the instructions. The tile's `rows` rows and `panels` panels exist, and quantised activations are filled where the packing
        /// needs them.
        unsafe fn $isa(tile: &Tile<'_>, rows: usize, panels: usize) {
            compiled! { $isa,
                unsafe fn run<K: TileKernel, const R: usize, const P: usize>(tile: &Tile<'_>) {
                    // SAFETY: promised.
                    unsafe { K::tile::<$lanes, R, P, $registers>($lanes::new(), tile) }
                }
            }
            unsafe fn dense<V: Value>(tile: &Tile<'_>, rows: usize, panels: usize) {
                // SAFETY: promised.
                unsafe {
                    match (panels, rows) {
                        $($(($panels, $rows) => run::<Dense<V>, $rows, $panels>(tile),)*)*
                        _ => unreachable!("no tiles of {rows} rows and {panels} panels"),
                    }
                }
            }
            unsafe fn quantised<F: BlockFormat>(tile: &Tile<'_>, rows: usize) {
                // SAFETY: promised.
                unsafe {
                    match rows {
                        $($few => run::<Blocks<F>, $few, 1>(tile),)*
                        _ => unreachable!("no tiles of {rows} rows"),
                    }
                }
            }
            // SAFETY: promised.
            unsafe {
                match tile.w.packing {
                    Packing::F32 => dense::<F32>(tile, rows, panels),
                    Packing::F16 => dense::<F16>(tile, rows, panels),
                    Packing::Bf16 => dense::<Bf16>(tile, rows, panels),
                    Packing::Q8 => quantised::<Q8>(tile, rows),
                    Packing::Q4 => quantised::<WithMinimum<4>>(tile, rows),
                    Packing::Q5 => quantised::<WithMinimum<5>>(tile, rows),
                    Packing::Iq4 => quantised::<Iq4>(tile, rows),
                    Packing::Q2K => quantised::<Q2K>(tile, rows),
                    Packing::Q3K => quantised::<Sixteens<3>>(tile, rows),
                    Packing::Q4K => quantised::<Minima<4>>(tile, rows),
                    Packing::Q5K => quantised::<Minima<5>>(tile, rows),
                    Packing::Q6K => quantised::<Sixteens<6>>(tile, rows),
                    Packing::Iq4Xs => quantised::<Iq4Xs>(tile, rows),
                }
            }
        }
    };
}

tiles!(portable, Portable, 2, dense: { 1: [1] }, quantised: [1]);
#[cfg(target_arch = "x86_64")]
tiles!(avx2, Avx2, 2, dense: { 1: [1, 2, 3, 4, 5, 6], 2: [1, 2], 4: [1] }, quantised: [1, 2, 3, 4]);
#[cfg(target_arch = "x86_64")]
tiles!(avx512, Avx512, 1,
    dense: { 1: [1, 2, 3, 4, 5, 6, 7, 8], 2: [1, 2, 3, 4, 5, 6, 7, 8], 4: [1, 2, 3, 4], 8: [1] },
    quantised: [1, 2, 3, 4, 5, 6, 7, 8]);

/// The most rows of a tile.
pub(super) fn rows_max(isa: Isa, dense: bool) -> usize {
    match isa {
        Isa::Scalar => 1,
        Isa::Avx2 if dense => 6,
        Isa::Avx2 => 4,
        Isa::Avx512 => 8,
    }
}

/// Panels of a tile of so many rows: few rows need many for enough independent sums.
pub(super) fn panels_max(isa: Isa, dense: bool, rows: usize) -> usize {
    match (isa, rows) {
        _ if !dense => 1,
        (Isa::Scalar, _) => 1,
        (Isa::Avx2, 1) => 4,
        (Isa::Avx2, 2) => 2,
        (Isa::Avx2, _) => 1,
        (Isa::Avx512, 1) => 8,
        (Isa::Avx512, 2..=4) => 4,
        (Isa::Avx512, _) => 2,
    }
}

/// Computes a tile of at most [`rows_max`] rows, and [`panels_max`] panels or a half of that, or a half of this and so on.
///
/// # Safety
/// The machine has the instructions. The tile's `rows` rows and `panels` panels exist, and quantised activations are filled where the packing needs them.
pub(super) unsafe fn run(isa: Isa, tile: &Tile<'_>, rows: usize, panels: usize) {
    // SAFETY: promised.
    unsafe {
        match isa {
            Isa::Scalar => portable(tile, rows, panels),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(tile, rows, panels),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512(tile, rows, panels),
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable(tile, rows, panels),
        }
    }
}
