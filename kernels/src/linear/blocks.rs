//! Products with quantised weights, block by block (ARITHMETIC.md, 2). What a format has of its own is in [`super::formats`].

use std::marker::PhantomData;

use super::tile::{CHUNK_BLOCKS, Tile, TileKernel};
use crate::lanes::WeightLanes;
use crate::matrix::{BLOCK, PANEL};

/// What a format adds besides its products.
pub(super) enum Minimum {
    None,
    Added,
    Subtracted,
}

/// What a block of 32 inputs adds to a register of outputs of each row.
pub(super) struct Part<L: WeightLanes, const R: usize> {
    /// Exact integer sums.
    pub(super) sums: [L::Integers; R],
    /// Scales of the weights.
    pub(super) d: L::Floats,
    /// Their minima, where the format has them.
    pub(super) m: L::Floats,
}

/// A packing of quantised weights.
pub(super) trait BlockFormat {
    const MINIMUM: Minimum;

    /// What all blocks of a chunk share.
    type Shared<L: WeightLanes>: Copy;

    /// Of chunk `c` of a panel, for the columns of register `h`.
    ///
    /// # Safety
    /// The panel has such a chunk and such columns.
    unsafe fn shared<L: WeightLanes>(lanes: L, panel: *const u8, c: usize, h: usize) -> Self::Shared<L>;

    /// Block `b` of a panel with `R` rows of activations, for the columns of register `h`.
    ///
    /// # Safety
    /// The panel and the rows have such a block, the panel such columns; `shared` is that of the block's chunk.
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        shared: Self::Shared<L>,
    ) -> Part<L, R>;
}

/// Quantised activations from a tile's first row on. Every method needs that there are a row `r` and a block `b`.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    q: *const i8,
    d: *const f32,
    s: *const f32,
    sum: *const i32,
    half_sums: *const [i32; 2],
    blocks: usize,
}

// SAFETY (all blocks): promised by the caller.
impl Inputs {
    fn of(tile: &Tile<'_>) -> Self {
        let a = tile.rows.quantised.expect("inputs of quantised weights are quantised first");
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

    /// The 32 values.
    #[inline(always)]
    pub(super) unsafe fn q(&self, r: usize, b: usize) -> *const i8 {
        unsafe { self.q.add((r * self.blocks + b) * BLOCK) }
    }

    /// Their sum.
    #[inline(always)]
    pub(super) unsafe fn sum(&self, r: usize, b: usize) -> i32 {
        unsafe { *self.sum.add(r * self.blocks + b) }
    }

    /// The sums of both halves.
    #[inline(always)]
    pub(super) unsafe fn half_sums(&self, r: usize, b: usize) -> [i32; 2] {
        unsafe { *self.half_sums.add(r * self.blocks + b) }
    }

    /// Their scale.
    #[inline(always)]
    unsafe fn d(&self, r: usize, b: usize) -> f32 {
        unsafe { *self.d.add(r * self.blocks + b) }
    }

    /// Scale times sum.
    #[inline(always)]
    unsafe fn s(&self, r: usize, b: usize) -> f32 {
        unsafe { *self.s.add(r * self.blocks + b) }
    }
}

/// Products with weights of this format.
pub(super) struct Blocks<F>(PhantomData<F>);

impl<F: BlockFormat> TileKernel for Blocks<F> {
    #[inline(always)]
    unsafe fn tile<L: WeightLanes, const R: usize, const P: usize, const H: usize>(
        lanes: L,
        tile: &Tile<'_>,
    ) {
        const { assert!(H * L::WIDTH == PANEL && P == 1) };
        let x = Inputs::of(tile);
        let panel = tile.panel_data(0);
        let mut total = [[lanes.zero(); H]; R];
        for c in 0..x.blocks.div_ceil(CHUNK_BLOCKS) {
            let mut acc = [[lanes.zero(); H]; R];
            for h in 0..H {
                // SAFETY: there is a chunk `c`.
                let shared = unsafe { F::shared(lanes, panel, c, h) };
                for b in c * CHUNK_BLOCKS..x.blocks.min((c + 1) * CHUNK_BLOCKS) {
                    // SAFETY: b < blocks, r < R: inside of panel and activations.
                    unsafe {
                        let Part { sums, d, m } = F::part::<L, R>(lanes, panel, &x, b, h, shared);
                        for r in 0..R {
                            let scale = lanes.mul(d, lanes.all(x.d(r, b)));
                            let sum = lanes.fma(lanes.to_floats(sums[r]), scale, acc[r][h]);
                            acc[r][h] = match F::MINIMUM {
                                Minimum::None => sum,
                                Minimum::Added => lanes.fma(m, lanes.all(x.s(r, b)), sum),
                                Minimum::Subtracted => lanes.fused_sub(m, lanes.all(x.s(r, b)), sum),
                            };
                        }
                    }
                }
            }
            for r in 0..R {
                for h in 0..H {
                    total[r][h] = if c == 0 { acc[r][h] } else { lanes.add(total[r][h], acc[r][h]) };
                }
            }
        }
        for r in 0..R {
            tile.store(lanes, r, 0, &total[r]);
        }
    }
}
