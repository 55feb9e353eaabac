//! Integer sums of a block of 32 inputs with weights of a few bits, which lie in planes ([`crate::matrix`], `bits`).

use super::blocks::Inputs;
use crate::lanes::WeightLanes;
use crate::matrix::{IQ4_VALUES, PANEL, plane_bytes};

/// Bytes of 64 weights: four of each column.
pub(super) const FOURS: usize = PANEL * 4;

/// Unsigned weights of inputs `4g` to `4g + 3`, and of those 16 further on.
///
/// # Safety
/// As many bytes as 32 inputs of a panel have are readable at `w`, and register `h` has columns of it.
#[inline(always)]
unsafe fn fours<L: WeightLanes, const BITS: usize>(
    lanes: L,
    w: *const u8,
    g: usize,
    h: usize,
) -> [L::Integers; 2] {
    let mut weights = [lanes.all_integers(0); 2];
    let mut known = 0;
    // SAFETY: promised.
    unsafe {
        let w = w.add(h * L::WIDTH * 4);
        if BITS & 4 != 0 {
            let both = lanes.bytes(w.add(g * FOURS));
            weights = [lanes.low(both), lanes.high(both)];
            known = 4;
        }
        if BITS & 2 != 0 {
            let bits = lanes.bytes(w.add(plane_bytes(known) + g / 2 * FOURS));
            let bit = g % 2 * 4;
            weights = with_bits(lanes, weights, (bits, 2), [bit, bit + 2], known);
            known += 2;
        }
        if BITS & 1 != 0 {
            let bits = lanes.bytes(w.add(plane_bytes(known)));
            weights = with_bits(lanes, weights, (bits, 1), [g, g + 4], known);
        }
    }
    weights
}

/// Both weights with `count` more bits above the `known` ones; in `bits` these lie at the places `from`.
#[inline(always)]
fn with_bits<L: WeightLanes>(
    lanes: L,
    weights: [L::Integers; 2],
    (bits, count): (L::Integers, usize),
    from: [usize; 2],
    known: usize,
) -> [L::Integers; 2] {
    let mask = ((1 << count) - 1) << known;
    let first = lanes.moved(bits, known as i32 - from[0] as i32, mask);
    let last = lanes.moved(bits, known as i32 - from[1] as i32, mask);
    if known == 0 { [first, last] } else { [lanes.or(weights[0], first), lanes.or(weights[1], last)] }
}

/// How many times four products of such weights fit 16 bits: pairs of them are at most 254 times the largest weight.
const fn fours_max(bits: usize) -> usize {
    i16::MAX as usize / (254 * ((1 << bits) - 1))
}

/// Sums of the first 16 and of the last 16 inputs, less `middle` times those of the activations.
///
/// # Safety
/// As [`super::blocks::BlockFormat::part`], with the weights at `w`.
#[inline(always)]
pub(super) unsafe fn half_sums<L: WeightLanes, const R: usize, const BITS: usize>(
    lanes: L,
    w: *const u8,
    x: &Inputs,
    (b, h): (usize, usize),
    middle: i32,
) -> [[L::Integers; 2]; R] {
    const { assert!(BITS <= 6) };
    // Else only two of the four that a half has.
    let all_fit = const { fours_max(BITS) >= 4 };
    let mut sums = [[lanes.all_integers(0); 2]; R];
    if middle != 0 {
        for r in 0..R {
            // SAFETY: promised.
            let [first, last] = unsafe { x.half_sums(r, b) };
            sums[r] = [lanes.all_integers(-middle * first), lanes.all_integers(-middle * last)];
        }
    }
    let mut partial = sums;
    for v in 0..2 {
        // SAFETY: promised.
        unsafe {
            let weights = [fours::<L, BITS>(lanes, w, 2 * v, h), fours::<L, BITS>(lanes, w, 2 * v + 1, h)];
            for r in 0..R {
                for half in 0..2 {
                    let q = x.q(r, b).add(v * 8 + half * 16);
                    let open = if v == 0 || !all_fit { lanes.open(sums[r][half]) } else { partial[r][half] };
                    let open = lanes.add_products(open, weights[0][half], lanes.four(q));
                    let open = lanes.add_products(open, weights[1][half], lanes.four(q.add(4)));
                    if v == 1 || !all_fit {
                        sums[r][half] = lanes.close(sums[r][half], open);
                    } else {
                        partial[r][half] = open;
                    }
                }
            }
        }
    }
    sums
}

/// Sums of 32 inputs.
///
/// # Safety
/// As [`half_sums`].
#[inline(always)]
pub(super) unsafe fn sums<L: WeightLanes, const R: usize, const BITS: usize>(
    lanes: L,
    w: *const u8,
    x: &Inputs,
    (b, h): (usize, usize),
) -> [L::Integers; R] {
    // SAFETY: promised.
    unsafe {
        if const { BITS == 4 } {
            return nibble_sums(lanes, w, x, (b, h));
        }
        let halves = half_sums::<L, R, BITS>(lanes, w, x, (b, h), 0);
        let mut sums = [lanes.all_integers(0); R];
        for r in 0..R {
            sums[r] = lanes.add_integers(halves[r][0], halves[r][1]);
        }
        sums
    }
}

/// [`sums`] of 4 bits. Two chains of additions for each row: one would be waited for. Eight products of
/// pairs fit 16 bits, both chains together: at most 8 * 2 * 15 * 127 = 30480.
///
/// # Safety
/// As [`half_sums`].
#[inline(always)]
unsafe fn nibble_sums<L: WeightLanes, const R: usize>(
    lanes: L,
    w: *const u8,
    x: &Inputs,
    (b, h): (usize, usize),
) -> [L::Integers; R] {
    let zero = lanes.all_integers(0);
    let mut sums = [lanes.open(zero); R];
    let mut others = [lanes.open(zero); R];
    for g in 0..4 {
        // SAFETY: promised.
        unsafe {
            let [low, high] = fours::<L, 4>(lanes, w, g, h);
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

/// Sums of 32 inputs whose 4 bits are numbers of [`IQ4_VALUES`].
///
/// # Safety
/// As [`half_sums`].
#[inline(always)]
pub(super) unsafe fn chosen_sums<L: WeightLanes, const R: usize>(
    lanes: L,
    w: *const u8,
    x: &Inputs,
    (b, h): (usize, usize),
) -> [L::Integers; R] {
    let mut sums = [lanes.all_integers(0); R];
    let mut others = sums;
    // SAFETY: promised.
    unsafe {
        for r in 0..R {
            sums[r] = lanes.open_signed(x.sum(r, b));
        }
        for g in 0..4 {
            let [low, high] = fours::<L, 4>(lanes, w, g, h);
            let weights = [lanes.chosen_weights(&IQ4_VALUES, low), lanes.chosen_weights(&IQ4_VALUES, high)];
            for r in 0..R {
                let q = x.q(r, b).add(g * 4);
                sums[r] = lanes.add_signed(sums[r], weights[0], lanes.four(q));
                others[r] = lanes.add_signed(others[r], weights[1], lanes.four(q.add(16)));
            }
        }
    }
    for r in 0..R {
        sums[r] = lanes.add_integers(sums[r], others[r]);
    }
    sums
}
