//! Products with quantised weights, block by block (ARITHMETIC.md, 2). What a format has of its own is in [`super::formats`] and [`super::super_blocks`].

use std::marker::PhantomData;

use super::tile::{CHUNK_BLOCKS, Tile, TileKernel};
use crate::lanes::WeightLanes;
use crate::matrix::{BLOCK, PANEL};

/// What a format adds besides its products.
pub(super) enum Minimum {
    None,
    Added,
    Subtracted,
    /// In integers that are summed as the products are, with one scale, and subtracted.
    Integers,
}

/// What a block of 32 inputs adds to a register of outputs of each row.
pub(super) struct Part<L: WeightLanes, const R: usize> {
    /// Exact integer sums.
    pub(super) sums: [L::Integers; R],
    /// Scales of the weights.
    pub(super) d: L::Floats,
    /// Their minima, where the format has them, or the scales of these.
    pub(super) m: L::Floats,
    /// Minima times activations, where they are integers.
    pub(super) minima: [L::Integers; R],
}

impl<L: WeightLanes, const R: usize> Part<L, R> {
    /// Without minima.
    #[inline(always)]
    pub(super) fn scaled(lanes: L, sums: [L::Integers; R], d: L::Floats) -> Self {
        Self { sums, d, m: lanes.zero(), minima: [lanes.all_integers(0); R] }
    }
}

/// What all blocks of a super-block share.
#[derive(Clone, Copy)]
pub(super) struct SuperScales<L: WeightLanes> {
    /// Of the weights.
    pub(super) d: L::Floats,
    /// Of the minima.
    pub(super) m: L::Floats,
}

impl<L: WeightLanes> SuperScales<L> {
    /// Those of a format without any.
    #[inline(always)]
    fn zero(lanes: L) -> Self {
        Self { d: lanes.zero(), m: lanes.zero() }
    }

    /// Of super-block `c` of a panel, for the columns of register `h`.
    ///
    /// # Safety
    /// The panel has such a super-block of format `F`, and such columns.
    #[inline(always)]
    unsafe fn read<F: BlockFormat>(lanes: L, panel: *const u8, c: usize, h: usize) -> Self {
        // SAFETY: promised.
        unsafe {
            let d = panel.add(c * F::SUPER_BLOCK_BYTES + h * L::WIDTH * 2);
            let m = match F::MINIMUM {
                Minimum::None => lanes.zero(),
                _ => lanes.f16(d.add(PANEL * 2)),
            };
            Self { d: lanes.f16(d), m }
        }
    }
}

/// A packing of quantised weights.
pub(super) trait BlockFormat {
    const MINIMUM: Minimum;

    /// Bytes of a super-block, which is a chunk: it begins with an f16 scale of each column, and if there are minima, with their scales behind them. 0 where
    /// every block has all of its own.
    const SUPER_BLOCK_BYTES: usize = 0;

    /// Block `b` of a panel with `R` rows of activations, for the columns of register `h`.
    ///
    /// # Safety
    /// The panel and the rows have such a block, the panel such columns; `of_all` are the scales of its super-block, or zero.
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        of_all: SuperScales<L>,
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

/// Running sums of `R` rows and a panel of `H` registers: of the chunk, and of the chunks before.
struct Sums<L: WeightLanes, const R: usize, const H: usize> {
    lanes: L,
    acc: [[L::Floats; H]; R],
    total: [[L::Floats; H]; R],
}

impl<L: WeightLanes, const R: usize, const H: usize> Sums<L, R, H> {
    #[inline(always)]
    fn new(lanes: L) -> Self {
        let zero = [[lanes.zero(); H]; R];
        Self { lanes, acc: zero, total: zero }
    }

    /// Ends a chunk.
    #[inline(always)]
    fn close(&mut self, first: bool) {
        for r in 0..R {
            for h in 0..H {
                let sum = self.acc[r][h];
                self.total[r][h] = if first { sum } else { self.lanes.add(self.total[r][h], sum) };
                self.acc[r][h] = self.lanes.zero();
            }
        }
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
        let mut sums = Sums::<L, R, H>::new(lanes);
        let mut scales = [SuperScales::zero(lanes); H];
        // One loop over all blocks, not one of eight for each chunk: with few rows, weights that come from memory were read a tenth slower.
        for b in 0..x.blocks {
            if b.is_multiple_of(CHUNK_BLOCKS) {
                if b > 0 {
                    sums.close(b == CHUNK_BLOCKS);
                }
                if F::SUPER_BLOCK_BYTES > 0 {
                    for h in 0..H {
                        // SAFETY: there is a chunk that begins with block `b`.
                        scales[h] = unsafe { SuperScales::read::<F>(lanes, panel, b / CHUNK_BLOCKS, h) };
                    }
                }
            }
            for h in 0..H {
                // SAFETY: b < blocks, r < R: inside of panel and activations.
                unsafe {
                    let part = F::part::<L, R>(lanes, panel, &x, b, h, scales[h]);
                    for r in 0..R {
                        let scale = lanes.mul(part.d, lanes.all(x.d(r, b)));
                        let acc = lanes.fma(lanes.to_floats(part.sums[r]), scale, sums.acc[r][h]);
                        sums.acc[r][h] = match F::MINIMUM {
                            Minimum::None => acc,
                            Minimum::Added => lanes.fma(part.m, lanes.all(x.s(r, b)), acc),
                            Minimum::Subtracted => lanes.fused_sub(part.m, lanes.all(x.s(r, b)), acc),
                            Minimum::Integers => {
                                let scale = lanes.mul(part.m, lanes.all(x.d(r, b)));
                                lanes.fused_sub(lanes.to_floats(part.minima[r]), scale, acc)
                            }
                        };
                    }
                }
            }
        }
        sums.close(x.blocks <= CHUNK_BLOCKS);
        for r in 0..R {
            tile.store(lanes, r, 0, &sums.total[r]);
        }
    }
}
