//! What the sums of a few outputs are made from.

use super::activations::Quantised;
use crate::lanes::WeightLanes;
use crate::matrix::{Matrix, PANEL};
use crate::pool::Shards;

/// Inputs of a chunk: sums inside run in sequence, chunk sums are added in order.
pub(crate) const CHUNK: usize = 256;
/// Blocks of a chunk.
pub(crate) const CHUNK_BLOCKS: usize = CHUNK / crate::matrix::BLOCK;

/// Inputs and outputs of one call.
pub(super) struct Rows<'a> {
    pub(super) x: &'a [f32],
    /// The same for quantised weights, where there are any.
    pub(super) quantised: Option<&'a Quantised>,
    pub(super) m: usize,
    /// Outputs are added to what is there.
    pub(super) add: bool,
    pub(super) out: Shards<f32>,
}

/// A block of rows against some panels starting at `panel`.
pub(super) struct Tile<'a> {
    pub(super) w: &'a Matrix,
    pub(super) rows: &'a Rows<'a>,
    pub(super) first_row: usize,
    pub(super) panel: usize,
}

impl Tile<'_> {
    /// Writes the 16 columns of panel `self.panel + p` of row `self.first_row + r`, as far as they exist.
    #[inline(always)]
    pub(super) fn store<L: WeightLanes, const H: usize>(
        &self,
        lanes: L,
        r: usize,
        p: usize,
        values: &[L::Floats; H],
    ) {
        const { assert!(H * L::WIDTH == PANEL) };
        let (n, column) = (self.w.n(), (self.panel + p) * PANEL);
        let out = self.rows.out.at((self.first_row + r) * n + column);
        if column + PANEL <= n {
            for (h, sums) in values.iter().enumerate() {
                // SAFETY: (row, panel) is inside of the output, and each is written by one thread only.
                unsafe {
                    let out = out.add(h * L::WIDTH);
                    let sums = if self.rows.add { lanes.add(lanes.load(out), *sums) } else { *sums };
                    lanes.store(out, sums);
                }
            }
            return;
        }
        let mut sums = [0f32; PANEL];
        for (h, values) in values.iter().enumerate() {
            // SAFETY: all registers together have as many values as a panel.
            unsafe { lanes.store(sums.as_mut_ptr().add(h * L::WIDTH), *values) };
        }
        // SAFETY: as above; the rest of the panel is outside.
        let out = unsafe { std::slice::from_raw_parts_mut(out, n - column) };
        put(out, &sums, self.rows.add);
    }

    pub(super) fn panel_data(&self, p: usize) -> *const u8 {
        let bytes = self.w.panel_bytes();
        self.w.data[(self.panel + p) * bytes..][..bytes].as_ptr()
    }

    pub(super) fn x(&self) -> *const f32 {
        self.rows.x[self.first_row * self.w.k()..].as_ptr()
    }
}

/// What there is of a last panel.
#[cold]
fn put(out: &mut [f32], sums: &[f32; PANEL], add: bool) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if add { *out + sum } else { *sum };
    }
}

/// The sums of a tile, over lanes.
pub(super) trait TileKernel {
    /// Computes and stores `R` rows of `P` panels, each of `H` registers.
    ///
    /// # Safety
    /// These rows and panels exist, and quantised activations are filled where the packing needs them.
    unsafe fn tile<L: WeightLanes, const R: usize, const P: usize, const H: usize>(lanes: L, tile: &Tile<'_>);
}
