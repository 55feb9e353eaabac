//! Numbers of two to six bits in a panel, 32 inputs of 16 columns at a time.
//!
//! The bits of a number lie in planes, the lowest ones in the first: a plane of four bits, one of two and one of one, as far as the number has them (6 bits are 4 and 2). In each, the four bytes of a column are side
//! by side, and a byte has the bits of several inputs, `j` being its place among the four:
//!
//! | plane | bytes | bits of a byte, from the lowest |
//! |---|---|---|
//! | four bits | `[4][16][4]` | of inputs `4g+j`, `16+4g+j` |
//! | two bits | `[2][16][4]` | of inputs `8v+j`, `16+8v+j`, `8v+4+j`, `16+8v+4+j` |
//! | one bit | `[16][4]` | of inputs `4g+j` for `g` from 0 to 3, then of `16+4g+j` |

use std::array::from_fn;

use super::packing::{BLOCK, PANEL, plane_bytes};

/// Bits of a number of `bits` bits that lie in planes before its plane of `own` bits, if it has one.
const fn before(bits: usize, own: usize) -> Option<usize> {
    if bits & own == 0 { None } else { Some(bits & !(2 * own - 1)) }
}

/// Writes 32 inputs of column `c`.
#[inline(always)]
pub(super) fn put(bits: usize, to: &mut [u8], c: usize, value: impl Fn(usize) -> u8) {
    let values: [u8; BLOCK] = from_fn(value);
    if let Some(lower) = before(bits, 4) {
        let bytes: [u8; 16] = from_fn(|i| values[i] & 15 | values[16 + i] << 4);
        fours(&bytes, &mut to[plane_bytes(lower)..], c);
    }
    if let Some(lower) = before(bits, 2) {
        let own = |i: usize| values[i] >> lower & 3;
        let bytes: [u8; 8] = from_fn(|at| {
            let i = at / 4 * 8 + at % 4;
            own(i) | own(16 + i) << 2 | own(4 + i) << 4 | own(20 + i) << 6
        });
        fours(&bytes, &mut to[plane_bytes(lower)..], c);
    }
    if let Some(lower) = before(bits, 1) {
        let own = |i: usize| values[i] >> lower & 1;
        let bytes: [u8; 4] = from_fn(|j| {
            (0..4).fold(0, |byte, g| byte | own(4 * g + j) << g | own(16 + 4 * g + j) << (4 + g))
        });
        fours(&bytes, &mut to[plane_bytes(lower)..], c);
    }
}

/// The bytes of column `c` of a plane.
#[inline(always)]
fn fours(bytes: &[u8], plane: &mut [u8], c: usize) {
    for (row, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
        plane[(row * PANEL + c) * 4..][..4].copy_from_slice(bytes);
    }
}

/// Input `i` of column `c`.
#[inline(always)]
pub(super) fn get(bits: usize, from: &[u8], c: usize, i: usize) -> u8 {
    let (half, g, j) = (i / 16, i % 16 / 4, i % 4);
    let mut value = 0;
    for (own, row, bit) in [(4, g, half * 4), (2, g / 2, half * 2 + g % 2 * 4), (1, 0, half * 4 + g)] {
        if let Some(lower) = before(bits, own) {
            let byte = from[plane_bytes(lower) + (row * PANEL + c) * 4 + j];
            value |= (byte >> bit & ((1 << own) - 1)) << lower;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_width_come_back_from_as_many_bits() {
        let value = |bits: usize, c: usize, i: usize| (c * 37 + i * 11 + c * i) as u8 & ((1 << bits) - 1);
        for bits in 1..=7 {
            let mut panel = vec![0; plane_bytes(bits)];
            for c in 0..PANEL {
                put(bits, &mut panel, c, |i| value(bits, c, i));
            }
            for c in 0..PANEL {
                for i in 0..BLOCK {
                    assert_eq!(
                        get(bits, &panel, c, i),
                        value(bits, c, i),
                        "{bits} bits, column {c}, input {i}"
                    );
                }
            }
        }
    }
}
