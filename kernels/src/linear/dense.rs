//! Products with weights that are floats (ARITHMETIC.md, 1).

use std::marker::PhantomData;

use super::tile::{CHUNK, Tile, TileKernel};
use crate::lanes::WeightLanes;
use crate::matrix::PANEL;

/// How a weight is stored.
pub(super) trait Value {
    const BYTES: usize;

    /// # Safety
    /// As many values as lanes are readable at `from`.
    unsafe fn load<L: WeightLanes>(lanes: L, from: *const u8) -> L::Floats;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

// In all of them:
// SAFETY: promised.
impl Value for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<L: WeightLanes>(lanes: L, from: *const u8) -> L::Floats {
        unsafe { lanes.load(from.cast()) }
    }
}

impl Value for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: WeightLanes>(lanes: L, from: *const u8) -> L::Floats {
        unsafe { lanes.f16(from) }
    }
}

impl Value for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: WeightLanes>(lanes: L, from: *const u8) -> L::Floats {
        unsafe { lanes.bf16(from) }
    }
}

/// Products with weights of this kind.
pub(super) struct Dense<V>(PhantomData<V>);

impl<V: Value> TileKernel for Dense<V> {
    #[inline(always)]
    unsafe fn tile<L: WeightLanes, const R: usize, const P: usize, const H: usize>(
        lanes: L,
        tile: &Tile<'_>,
    ) {
        const { assert!(H * L::WIDTH == PANEL) };
        let k = tile.w.k();
        let x = tile.x();
        let panels: [*const u8; P] = std::array::from_fn(|p| tile.panel_data(p));
        let mut total = [[[lanes.zero(); H]; P]; R];
        for start in (0..k).step_by(CHUNK) {
            let mut acc = [[[lanes.zero(); H]; P]; R];
            for i in start..k.min(start + CHUNK) {
                let mut w = [[lanes.zero(); H]; P];
                for p in 0..P {
                    for h in 0..H {
                        // SAFETY: i < k, so the loads lie inside of the panels.
                        w[p][h] =
                            unsafe { V::load(lanes, panels[p].add((i * PANEL + h * L::WIDTH) * V::BYTES)) };
                    }
                }
                for r in 0..R {
                    // SAFETY: i < k, and these rows exist.
                    let x = lanes.all(unsafe { *x.add(r * k + i) });
                    for p in 0..P {
                        for h in 0..H {
                            acc[r][p][h] = lanes.fma(x, w[p][h], acc[r][p][h]);
                        }
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    for h in 0..H {
                        let sum = acc[r][p][h];
                        total[r][p][h] = if start == 0 { sum } else { lanes.add(total[r][p][h], sum) };
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                tile.store(lanes, r, p, &total[r][p]);
            }
        }
    }
}
