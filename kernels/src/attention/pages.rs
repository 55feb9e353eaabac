//! Some query heads that share a KV head against the pages of a row, over lanes: each value of a page is loaded once for all of them.

use std::ops::Range;

use super::row::{AttentionRow, GROUP, HEAD_DIM_MAX, PAGE};
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::lanes::Avx2;
use crate::lanes::{Portable, SoftmaxLanes, compiled};
use crate::math::exp_lane;

/// Lanes of a register: the widths of heads are multiples of it.
const WIDTH: usize = 8;
/// Registers that the positions of a page fill.
const REGISTERS: usize = PAGE / WIDTH;

/// Up to [`GROUP`] query heads.
pub(super) struct Group<'a> {
    /// `[head][head_dim]`.
    pub(super) q: &'a [f32],
    pub(super) row: &'a AttentionRow<'a>,
    /// Where the keys of the KV head begin in a page.
    pub(super) keys: usize,
    /// Where its values do.
    pub(super) values: usize,
    /// A multiple of 8, up to [`HEAD_DIM_MAX`].
    pub(super) head_dim: usize,
    pub(super) scale: f32,
}

/// The softmax of what has been seen by each of `G` heads.
struct Running<const G: usize> {
    max: [f32; G],
    sum: [f32; G],
}

/// What a page counts: the weights of its positions, and what sums over the pages before it are multiplied by.
struct Weights<const G: usize> {
    weights: [[f32; PAGE]; G],
    keep: [f32; G],
}

/// Functions for these lanes.
macro_rules! heads {
    ($isa:ident, $lanes:ident) => {
        /// # Safety
        /// The machine has the instructions; otherwise as [`Group::attend`].
        unsafe fn $isa(group: &Group<'_>, out: &mut [f32]) {
            compiled! { $isa,
                unsafe fn run<const G: usize>(group: &Group<'_>, out: &mut [f32]) {
                    // SAFETY: promised.
                    unsafe { group.attend::<$lanes, G>($lanes::new(), out) }
                }
            }
            // SAFETY: promised.
            unsafe {
                match group.q.len() / group.head_dim {
                    1 => run::<1>(group, out),
                    2 => run::<2>(group, out),
                    3 => run::<3>(group, out),
                    _ => run::<GROUP>(group, out),
                }
            }
        }
    };
}

heads!(portable, Portable);
#[cfg(target_arch = "x86_64")]
heads!(avx2, Avx2);

impl Group<'_> {
    /// Sets `out`, `[head][head_dim]`.
    pub(super) fn run(&self, isa: Isa, out: &mut [f32]) {
        // SAFETY (both): the pool checked that this machine has the instructions; `attention` checked the lengths.
        match isa {
            Isa::Scalar => unsafe { portable(self, out) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { avx2(self, out) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unsafe { portable(self, out) },
        }
    }

    /// # Safety
    /// `q` and `out` have `G` heads; the row has pages for its length, each with the keys and values of this head.
    #[inline(always)]
    unsafe fn attend<L: SoftmaxLanes, const G: usize>(&self, lanes: L, out: &mut [f32]) {
        const { assert!(L::WIDTH == WIDTH) };
        let mut running = Running { max: [f32::NEG_INFINITY; G], sum: [0.0; G] };
        // Weighted sums of values, not yet divided.
        let mut sums = [[0f32; HEAD_DIM_MAX]; G];
        let mut weights = Weights { weights: [[0.0; PAGE]; G], keep: [1.0; G] };
        for (page, seen) in self.row.pages_seen() {
            // SAFETY: promised.
            unsafe {
                let scores = self.scores::<L, G>(lanes, page.as_ptr().add(self.keys));
                self.weigh(lanes, scores, &seen, &mut running, &mut weights);
                let values = page.as_ptr().add(self.values);
                self.add_values(lanes, values, &weights, &seen, &mut sums);
            }
        }
        for g in 0..G {
            let inverse = 1.0 / running.sum[g];
            for d in 0..self.head_dim {
                out[g * self.head_dim + d] = sums[g][d] * inverse;
            }
        }
    }

    /// Scores of the positions of a page, not yet scaled.
    ///
    /// # Safety
    /// `q` has `G` heads, and a page of keys begins at `keys`.
    #[inline(always)]
    unsafe fn scores<L: SoftmaxLanes, const G: usize>(
        &self,
        lanes: L,
        keys: *const f32,
    ) -> [[L::Floats; REGISTERS]; G] {
        let q = self.q.as_ptr();
        let mut scores = [[lanes.zero(); REGISTERS]; G];
        for d in 0..self.head_dim {
            // SAFETY: promised.
            unsafe {
                let k = [lanes.load(keys.add(d * PAGE)), lanes.load(keys.add(d * PAGE + WIDTH))];
                for g in 0..G {
                    let q = lanes.all(*q.add(g * self.head_dim + d));
                    for h in 0..REGISTERS {
                        scores[g][h] = lanes.fma(q, k[h], scores[g][h]);
                    }
                }
            }
        }
        scores
    }

    /// A step of the online softmax: sets `out`, and goes on with maxima and sums.
    #[inline(always)]
    fn weigh<L: SoftmaxLanes, const G: usize>(
        &self,
        lanes: L,
        mut scores: [[L::Floats; REGISTERS]; G],
        seen: &Range<usize>,
        Running { max, sum }: &mut Running<G>,
        out: &mut Weights<G>,
    ) {
        for g in 0..G {
            for h in 0..REGISTERS {
                let scaled = lanes.mul(scores[g][h], lanes.all(self.scale));
                scores[g][h] = lanes.seen(scaled, h * WIDTH, seen);
            }
            let page_max = lanes.largest(lanes.max(scores[g][0], scores[g][1]));
            let new_max = if page_max > max[g] { page_max } else { max[g] };
            out.keep[g] = if new_max == max[g] { 1.0 } else { exp_lane(max[g] - new_max) };
            max[g] = new_max;
            let less = lanes.all(-new_max);
            let e = [lanes.exp(lanes.add(scores[g][0], less)), lanes.exp(lanes.add(scores[g][1], less))];
            sum[g] = sum[g].mul_add(out.keep[g], lanes.sum(lanes.add(e[0], e[1])));
            for h in 0..REGISTERS {
                // SAFETY: the registers have as many values as a page has positions.
                unsafe { lanes.store(out.weights[g].as_mut_ptr().add(h * WIDTH), e[h]) };
            }
        }
    }

    /// Goes on with the weighted sums of values.
    ///
    /// # Safety
    /// A page of values begins at `values`.
    #[inline(always)]
    unsafe fn add_values<L: SoftmaxLanes, const G: usize>(
        &self,
        lanes: L,
        values: *const f32,
        Weights { weights, keep }: &Weights<G>,
        seen: &Range<usize>,
        sums: &mut [[f32; HEAD_DIM_MAX]; G],
    ) {
        for d in (0..self.head_dim).step_by(WIDTH) {
            // SAFETY: d + WIDTH <= head_dim <= HEAD_DIM_MAX, and t < PAGE.
            unsafe {
                let mut o = [lanes.zero(); G];
                for g in 0..G {
                    o[g] = lanes.mul(lanes.load(sums[g].as_ptr().add(d)), lanes.all(keep[g]));
                }
                for t in seen.clone() {
                    let v = lanes.load(values.add(t * self.head_dim + d));
                    for g in 0..G {
                        o[g] = lanes.fma(lanes.all(weights[g][t]), v, o[g]);
                    }
                }
                for g in 0..G {
                    lanes.store(sums[g].as_mut_ptr().add(d), o[g]);
                }
            }
        }
    }
}
