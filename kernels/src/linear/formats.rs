//! Integer sums, scales and minima of a block in packings whose blocks have 32 inputs; the packings are in the table of [`crate::matrix`].

use super::blocks::{BlockFormat, Inputs, Minimum, Part, SuperScales};
use super::sums::{FOURS, chosen_sums, sums};
use crate::lanes::WeightLanes;
use crate::matrix::{IQ4_BLOCK_BYTES, Q8_BLOCK_BYTES, minimum_block_bytes};

pub(super) struct Q8;
/// Q4 and Q5.
pub(super) struct WithMinimum<const BITS: usize>;
pub(super) struct Iq4;

impl BlockFormat for Q8 {
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        _: SuperScales<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let w = panel.add(b * Q8_BLOCK_BYTES);
            let mut sums = [lanes.all_integers(0); R];
            for r in 0..R {
                sums[r] = lanes.open_signed(x.sum(r, b));
            }
            let mut others = [lanes.all_integers(0); R];
            for g in (0..8).step_by(2) {
                let weights = w.add(32 + g * FOURS + h * L::WIDTH * 4);
                let weights = [
                    lanes.signed_weights(lanes.bytes(weights)),
                    lanes.signed_weights(lanes.bytes(weights.add(FOURS))),
                ];
                for r in 0..R {
                    let q = x.q(r, b).add(g * 4);
                    sums[r] = lanes.add_signed(sums[r], weights[0], lanes.four(q));
                    others[r] = lanes.add_signed(others[r], weights[1], lanes.four(q.add(4)));
                }
            }
            for r in 0..R {
                sums[r] = lanes.add_integers(sums[r], others[r]);
            }
            Part::scaled(lanes, sums, lanes.f16(w.add(h * L::WIDTH * 2)))
        }
    }
}

impl<const BITS: usize> BlockFormat for WithMinimum<BITS> {
    const MINIMUM: Minimum = Minimum::Added;

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        _: SuperScales<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let (w, halves) = (panel.add(b * const { minimum_block_bytes(BITS) }), h * L::WIDTH * 2);
            let sums = sums::<L, R, BITS>(lanes, w.add(64), x, (b, h));
            let m = lanes.f16(w.add(32 + halves));
            Part { m, ..Part::scaled(lanes, sums, lanes.f16(w.add(halves))) }
        }
    }
}

impl BlockFormat for Iq4 {
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        _: SuperScales<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let w = panel.add(b * IQ4_BLOCK_BYTES);
            let sums = chosen_sums(lanes, w.add(32), x, (b, h));
            Part::scaled(lanes, sums, lanes.f16(w.add(h * L::WIDTH * 2)))
        }
    }
}
