//! Integer sums, scales and minima of a block in each packing of quantised weights; the packings are in the table of [`crate::matrix`].

use super::blocks::{BlockFormat, Inputs, Minimum, Part};
use super::tile::CHUNK_BLOCKS;
use crate::lanes::WeightLanes;
use crate::matrix::{
    PANEL, Q4_BLOCK_BYTES, Q4K_BLOCK_BYTES, Q6K_BLOCK_BYTES, Q6K_PART_BYTES, Q8_BLOCK_BYTES,
};

/// Bytes of 64 weights: four of each column.
const FOURS: usize = PANEL * 4;

pub(super) struct Q8;
pub(super) struct Q4;
pub(super) struct Q4K;
pub(super) struct Q6K;

impl BlockFormat for Q8 {
    const MINIMUM: Minimum = Minimum::None;

    type Shared<L: WeightLanes> = ();

    #[inline(always)]
    fn nothing_shared<L: WeightLanes>(_: L) {}

    #[inline(always)]
    unsafe fn shared<L: WeightLanes>(_: L, _: *const u8, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        (): Self::Shared<L>,
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
                let weights = [lanes.bytes(weights), lanes.bytes(weights.add(FOURS))];
                for r in 0..R {
                    let q = x.q(r, b).add(g * 4);
                    sums[r] = lanes.add_signed(sums[r], weights[0], lanes.four(q));
                    others[r] = lanes.add_signed(others[r], weights[1], lanes.four(q.add(4)));
                }
            }
            for r in 0..R {
                sums[r] = lanes.add_integers(sums[r], others[r]);
            }
            Part { sums, d: lanes.f16(w.add(h * L::WIDTH * 2)), m: lanes.zero() }
        }
    }
}

/// Integer sums of 32 inputs of 4 bits, 256 bytes from `w` on. Two chains of additions for each row: one would be waited for. Eight products of
/// pairs fit 16 bits, both chains together: at most 8 * 2 * 15 * 127 = 30480.
///
/// # Safety
/// As [`BlockFormat::part`].
#[inline(always)]
unsafe fn nibble_sums<L: WeightLanes, const R: usize>(
    lanes: L,
    w: *const u8,
    x: &Inputs,
    b: usize,
    h: usize,
) -> [L::Integers; R] {
    let zero = lanes.all_integers(0);
    let mut sums = [lanes.open(zero); R];
    let mut others = [lanes.open(zero); R];
    for g in 0..4 {
        // SAFETY: promised.
        unsafe {
            let both = lanes.bytes(w.add(g * FOURS + h * L::WIDTH * 4));
            let (low, high) = (lanes.low(both), lanes.high(both));
            for r in 0..R {
                let q = x.q(r, b).add(g * 4);
                sums[r] = lanes.add_products(sums[r], low, lanes.four(q));
                others[r] = lanes.add_products(others[r], high, lanes.four(q.add(16)));
            }
        }
    }
    for r in 0..R {
        sums[r] = lanes.close(zero, lanes.add_partial(sums[r], others[r]));
    }
    sums
}

impl BlockFormat for Q4 {
    const MINIMUM: Minimum = Minimum::Added;

    type Shared<L: WeightLanes> = ();

    #[inline(always)]
    fn nothing_shared<L: WeightLanes>(_: L) {}

    #[inline(always)]
    unsafe fn shared<L: WeightLanes>(_: L, _: *const u8, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        (): Self::Shared<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let (w, halves) = (panel.add(b * Q4_BLOCK_BYTES), h * L::WIDTH * 2);
            let sums = nibble_sums(lanes, w.add(64), x, b, h);
            Part { sums, d: lanes.f16(w.add(halves)), m: lanes.f16(w.add(32 + halves)) }
        }
    }
}

impl BlockFormat for Q4K {
    const MINIMUM: Minimum = Minimum::Subtracted;

    /// Scale and minimum.
    type Shared<L: WeightLanes> = (L::Floats, L::Floats);

    #[inline(always)]
    fn nothing_shared<L: WeightLanes>(lanes: L) -> (L::Floats, L::Floats) {
        (lanes.zero(), lanes.zero())
    }

    /// A super-block is a chunk.
    #[inline(always)]
    unsafe fn shared<L: WeightLanes>(
        lanes: L,
        panel: *const u8,
        c: usize,
        h: usize,
    ) -> (L::Floats, L::Floats) {
        // SAFETY: promised.
        unsafe {
            let halves = panel.add(c * Q4K_BLOCK_BYTES + h * L::WIDTH * 2);
            (lanes.f16(halves), lanes.f16(halves.add(32)))
        }
    }

    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        (d, dmin): Self::Shared<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let (w, u) = (panel.add(b / CHUNK_BLOCKS * Q4K_BLOCK_BYTES), b % CHUNK_BLOCKS);
            let sums = nibble_sums(lanes, w.add(320 + u * 256), x, b, h);
            let bytes = w.add(64 + u * PANEL + h * L::WIDTH);
            let (d, m) = (lanes.mul(d, lanes.small(bytes)), lanes.mul(dmin, lanes.small(bytes.add(128))));
            Part { sums, d, m }
        }
    }
}

impl BlockFormat for Q6K {
    const MINIMUM: Minimum = Minimum::None;

    /// The scale.
    type Shared<L: WeightLanes> = L::Floats;

    #[inline(always)]
    fn nothing_shared<L: WeightLanes>(lanes: L) -> L::Floats {
        lanes.zero()
    }

    /// A super-block is a chunk.
    #[inline(always)]
    unsafe fn shared<L: WeightLanes>(lanes: L, panel: *const u8, c: usize, h: usize) -> L::Floats {
        // SAFETY: promised.
        unsafe { lanes.f16(panel.add(c * Q6K_BLOCK_BYTES + h * L::WIDTH * 2)) }
    }

    /// A value has 6 bits, so two products of pairs fit 16 bits: 2 * 2 * 63 * 127 = 32004.
    #[inline(always)]
    unsafe fn part<L: WeightLanes, const R: usize>(
        lanes: L,
        panel: *const u8,
        x: &Inputs,
        b: usize,
        h: usize,
        d: Self::Shared<L>,
    ) -> Part<L, R> {
        // SAFETY: promised.
        unsafe {
            let (w, u) = (panel.add(b / CHUNK_BLOCKS * Q6K_BLOCK_BYTES), b % CHUNK_BLOCKS);
            let part = w.add(288 + u * Q6K_PART_BYTES + h * L::WIDTH * 4);
            let mut sums = [[lanes.all_integers(0); 2]; R];
            for r in 0..R {
                // What values around 32 take off.
                let [first, second] = x.half_sums(r, b);
                sums[r] = [lanes.all_integers(-32 * first), lanes.all_integers(-32 * second)];
            }
            for v in 0..2 {
                let upper = lanes.bytes(part.add(256 + v * FOURS));
                let even = lanes.bytes(part.add(v * 2 * FOURS));
                let odd = lanes.bytes(part.add((v * 2 + 1) * FOURS));
                // Of inputs 8v and 8v + 4 of the first half, and of the second.
                let first =
                    [lanes.above::<0>(upper, lanes.low(even)), lanes.above::<4>(upper, lanes.low(odd))];
                let second =
                    [lanes.above::<2>(upper, lanes.high(even)), lanes.above::<6>(upper, lanes.high(odd))];
                for r in 0..R {
                    let q = x.q(r, b).add(v * 8);
                    for (half, weights) in [first, second].into_iter().enumerate() {
                        let q = q.add(half * 16);
                        let partial = lanes.open(sums[r][half]);
                        let partial = lanes.add_products(partial, weights[0], lanes.four(q));
                        let partial = lanes.add_products(partial, weights[1], lanes.four(q.add(4)));
                        sums[r][half] = lanes.close(sums[r][half], partial);
                    }
                }
            }
            let scales = w.add(32 + u * 2 * PANEL + h * L::WIDTH);
            let scales = [lanes.signed(scales), lanes.signed(scales.add(PANEL))];
            let mut scaled = [lanes.all_integers(0); R];
            for r in 0..R {
                let [first, second] = sums[r];
                let (first, second) =
                    (lanes.mul_integers(first, scales[0]), lanes.mul_integers(second, scales[1]));
                scaled[r] = lanes.add_integers(first, second);
            }
            Part { sums: scaled, d, m: lanes.zero() }
        }
    }
}
