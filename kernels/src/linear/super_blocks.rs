//! Integer sums, scales and minima of a block in packings whose blocks have 256 inputs, which are a chunk; the packings are in the table of [`crate::matrix`].

use super::blocks::{BlockFormat, Inputs, Minimum, Part, SuperScales};
use super::sums::{chosen_sums, half_sums, sums};
use super::tile::CHUNK_BLOCKS;
use crate::lanes::WeightLanes;
use crate::matrix::{
    IQ4_XS_BLOCK_BYTES, PANEL, Q2_K_BLOCK_BYTES, minima_block_bytes, plane_bytes, sixteens_block_bytes,
};

/// Q4_K and Q5_K: every 32 inputs have scale and minimum.
pub(super) struct Minima<const BITS: usize>;
/// Q3_K and Q6_K: every sixteen inputs have a scale.
pub(super) struct Sixteens<const BITS: usize>;
pub(super) struct Q2K;
pub(super) struct Iq4Xs;

/// Where the super-block of block `b` begins, and which of its blocks this is.
///
/// # Safety
/// The panel has such a block.
#[inline(always)]
unsafe fn super_block(panel: *const u8, b: usize, bytes: usize) -> (*const u8, usize) {
    // SAFETY: promised.
    (unsafe { panel.add(b / CHUNK_BLOCKS * bytes) }, b % CHUNK_BLOCKS)
}

impl<const BITS: usize> BlockFormat for Minima<BITS> {
    const MINIMUM: Minimum = Minimum::Subtracted;
    const SUPER_BLOCK_BYTES: usize = minima_block_bytes(BITS);

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        of_all: SuperScales<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let (w, u) = super_block(panel, b, Self::SUPER_BLOCK_BYTES);
            let sums = sums::<L, R, BITS>(lanes, w.add(320 + u * const { plane_bytes(BITS) }), x, (b, h));
            let bytes = w.add(64 + u * PANEL + h * L::WIDTH);
            let d = lanes.mul(of_all.d, lanes.to_floats(lanes.unsigned(bytes)));
            let m = lanes.mul(of_all.m, lanes.to_floats(lanes.unsigned(bytes.add(128))));
            Part { m, ..Part::scaled(lanes, sums, d) }
        }
    }
}

/// Of each row both halves of a block, each times its own factors, and added.
#[inline(always)]
fn each_scaled<L: WeightLanes, const R: usize>(
    lanes: L,
    halves: [[L::Integers; 2]; R],
    factors: [L::Integers; 2],
) -> [L::Integers; R] {
    let mut sums = [lanes.all_integers(0); R];
    for r in 0..R {
        let first = lanes.mul_integers(halves[r][0], factors[0]);
        sums[r] = lanes.add_integers(first, lanes.mul_integers(halves[r][1], factors[1]));
    }
    sums
}

impl<const BITS: usize> BlockFormat for Sixteens<BITS> {
    const MINIMUM: Minimum = Minimum::None;
    const SUPER_BLOCK_BYTES: usize = sixteens_block_bytes(BITS);

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        of_all: SuperScales<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let (w, u) = super_block(panel, b, Self::SUPER_BLOCK_BYTES);
            let weights = w.add(288 + u * const { plane_bytes(BITS) });
            let halves = half_sums::<L, R, BITS>(lanes, weights, x, (b, h), 1 << (BITS - 1));
            let scales = w.add(32 + u * 2 * PANEL + h * L::WIDTH);
            let scales = [lanes.signed(scales), lanes.signed(scales.add(PANEL))];
            Part::scaled(lanes, each_scaled(lanes, halves, scales), of_all.d)
        }
    }
}

impl BlockFormat for Q2K {
    const MINIMUM: Minimum = Minimum::Integers;
    const SUPER_BLOCK_BYTES: usize = Q2_K_BLOCK_BYTES;

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        of_all: SuperScales<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let (w, u) = super_block(panel, b, Self::SUPER_BLOCK_BYTES);
            let weights = w.add(320 + u * const { plane_bytes(2) });
            let halves = half_sums::<L, R, 2>(lanes, weights, x, (b, h), 0);
            let both = w.add(64 + u * 2 * PANEL + h * L::WIDTH);
            let both = [lanes.unsigned(both), lanes.unsigned(both.add(PANEL))];
            let scales = [lanes.low(both[0]), lanes.low(both[1])];
            let minima = [lanes.high(both[0]), lanes.high(both[1])];
            let mut activations = [[lanes.all_integers(0); 2]; R];
            for r in 0..R {
                let [first, last] = x.half_sums(r, b);
                activations[r] = [lanes.all_integers(first), lanes.all_integers(last)];
            }
            let minima = each_scaled(lanes, activations, minima);
            Part { m: of_all.m, minima, ..Part::scaled(lanes, each_scaled(lanes, halves, scales), of_all.d) }
        }
    }
}

impl BlockFormat for Iq4Xs {
    const MINIMUM: Minimum = Minimum::None;
    const SUPER_BLOCK_BYTES: usize = IQ4_XS_BLOCK_BYTES;

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        of_all: SuperScales<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let (w, u) = super_block(panel, b, Self::SUPER_BLOCK_BYTES);
            let sums = chosen_sums(lanes, w.add(160 + u * const { plane_bytes(4) }), x, (b, h));
            let scale = lanes.to_floats(lanes.signed(w.add(32 + u * PANEL + h * L::WIDTH)));
            Part::scaled(lanes, sums, lanes.mul(of_all.d, scale))
        }
    }
}
