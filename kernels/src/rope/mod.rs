//! Rotary position embedding (Su et al. 2021), from tables we compute ourselves.

pub mod reference;

use std::sync::Arc;

use crate::isa::{Isa, vectorised};
use crate::math::{ln_f64, powf, sin_cos};
use crate::pool::{Pool, SMALL};

/// How the two values of a rotated pair lie in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Neighbours: (0, 1), (2, 3), ... GGUF's llama.
    Interleaved,
    /// First half and second half: (0, d/2), (1, d/2 + 1), ... Hugging Face, GGUF's qwen2.
    Halves,
}

/// How frequencies are stretched for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies are used as they are.
    None,
    /// Positions divided by a factor.
    Linear(f64),
    /// Llama 3's: low frequencies divided by `factor`, high ones left, in between blended.
    Llama3 {
        /// Division of low frequencies.
        factor: f64,
        /// Below this many turns over the original context a frequency is low.
        low_freq_factor: f64,
        /// Above this many it is high.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_context: f64,
    },
    /// Each divided by a number of its own, as in LongRoPE (Ding et al. 2024).
    Divided {
        /// `head_dim / 2` of them.
        by: Arc<[f64]>,
        /// What cosines and sines are multiplied by.
        magnitude: f32,
    },
    /// YaRN (Peng et al. 2023): low frequencies divided by `factor`, high ones left, in between a ramp over the pairs.
    Yarn {
        /// Division of low frequencies.
        factor: f64,
        /// Pairs that turn more often than this over the original context are left as they are.
        beta_fast: f64,
        /// Those that turn less often are divided.
        beta_slow: f64,
        /// Context length of the original training.
        original_context: f64,
        /// Does the ramp begin and end at whole pairs?
        truncate: bool,
        /// What cosines and sines are multiplied by.
        magnitude: f32,
    },
}

impl RopeScaling {
    /// What YaRN multiplies cosines and sines by, if a model does not say another number: `0.1 ln(factor) + 1`.
    #[must_use]
    pub fn yarn_magnitude(factor: f64) -> f32 {
        if factor > 1.0 { (0.1 * ln_f64(factor) + 1.0) as f32 } else { 1.0 }
    }

    /// What LongRoPE multiplies them by for a context that is `factor` times as long as the original.
    #[must_use]
    pub fn long_magnitude(factor: f64, original_context: f64) -> f32 {
        if factor > 1.0 { (1.0 + ln_f64(factor) / ln_f64(original_context)).sqrt() as f32 } else { 1.0 }
    }
}

/// cos and sin for every (position, pair).
pub struct RopeTable {
    half: usize,
    /// `[position][pair]` of (cos, sin).
    values: Vec<(f32, f32)>,
}

impl RopeTable {
    /// For heads of `head_dim` values (even) and positions below `positions_max`.
    ///
    /// # Panics
    /// When `head_dim` is odd or 0, or there are not as many divisors as pairs.
    #[must_use]
    pub fn new(head_dim: usize, base: f64, scaling: RopeScaling, positions_max: usize) -> Self {
        assert!(
            head_dim > 0 && head_dim.is_multiple_of(2),
            "rope needs an even head dimension, not {head_dim}"
        );
        let half = head_dim / 2;
        let stretch = Stretch { head_dim, base, scaling: &scaling };
        let frequencies: Vec<f64> = (0..half).map(|i| stretch.frequency(i)).collect();
        let magnitude = stretch.magnitude();
        let mut values = Vec::with_capacity(positions_max * half);
        for position in 0..positions_max {
            values.extend(frequencies.iter().map(|frequency| {
                let (sin, cos) = sin_cos(position as f64 * frequency);
                // A product with 1 changes no bit.
                (cos as f32 * magnitude, sin as f32 * magnitude)
            }));
        }
        Self { half, values }
    }

    /// (cos, sin) of every pair at `position`.
    fn at(&self, position: usize) -> &[(f32, f32)] {
        &self.values[position * self.half..(position + 1) * self.half]
    }

    /// `[position][pair]` of (cos, sin).
    #[must_use]
    pub fn values(&self) -> &[(f32, f32)] {
        &self.values
    }

    /// Positions there is a table for.
    #[must_use]
    pub fn positions_max(&self) -> usize {
        self.values.len() / self.half
    }
}

/// How the frequencies of a table are found, as for [`RopeTable::new`].
pub struct Stretch<'a> {
    /// Width of a head.
    pub head_dim: usize,
    /// Base of the frequencies.
    pub base: f64,
    /// How they are stretched.
    pub scaling: &'a RopeScaling,
}

impl Stretch<'_> {
    /// What cosines and sines are multiplied by.
    fn magnitude(&self) -> f32 {
        match *self.scaling {
            RopeScaling::Yarn { magnitude, .. } | RopeScaling::Divided { magnitude, .. } => magnitude,
            _ => 1.0,
        }
    }

    /// The frequency of pair `i`.
    fn frequency(&self, i: usize) -> f64 {
        let frequency = powf(self.base, -2.0 * i as f64 / self.head_dim as f64);
        match *self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Divided { ref by, .. } => frequency / by[i],
            RopeScaling::Linear(factor) => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context * frequency / (2.0 * std::f64::consts::PI);
                if turns < low_freq_factor {
                    frequency / factor
                } else if turns > high_freq_factor {
                    frequency
                } else {
                    let high = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    frequency * (high + (1.0 - high) / factor)
                }
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
                let (low, high) =
                    (self.pair(beta_fast, original_context), self.pair(beta_slow, original_context));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min((self.head_dim - 1) as f64));
                // As transformers has it, so that nothing is divided by 0.
                let high = if low == high { high + 0.001 } else { high };
                let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (1.0 - divided) + frequency / factor * divided
            }
        }
    }

    /// The pair, not whole, that turns so often over the original context.
    fn pair(&self, turns: f64, original_context: f64) -> f64 {
        let length = original_context / (turns * 2.0 * std::f64::consts::PI);
        self.head_dim as f64 * ln_f64(length) / (2.0 * ln_f64(self.base))
    }
}

/// Rotates the `heads` heads of one row `x` to `position`.
///
/// # Panics
/// When `x` is not `heads` heads long or `position` is beyond the table.
pub fn rope(table: &RopeTable, layout: RopeLayout, x: &mut [f32], heads: usize, position: usize) {
    let half = table.half;
    assert_eq!(x.len(), heads * half * 2, "rope: {heads} heads of {}", half * 2);
    turn_row(Isa::best(), table.at(position), layout, x, 1.0);
}

/// [`rope`] of many rows, row `i` to `positions[i]`; `back` turns the other way, which is what gradients need.
///
/// # Panics
/// When `x` has no equal rows of whole heads or a position is beyond the table.
pub fn rope_rows(
    pool: &Pool,
    table: &RopeTable,
    layout: RopeLayout,
    x: &mut [f32],
    positions: &[u32],
    back: bool,
) {
    let (m, head) = (positions.len(), table.half * 2);
    assert!(m > 0 && x.len().is_multiple_of(m * head), "rope: {} values in {m} rows", x.len());
    let width = x.len() / m;
    let sign = if back { -1.0 } else { 1.0 };
    let rows = |x: &mut [f32], positions: &[u32]| {
        for (row, position) in x.chunks_exact_mut(width).zip(positions) {
            turn_row(pool.isa(), table.at(*position as usize), layout, row, sign);
        }
    };
    if x.len() < SMALL {
        return rows(x, positions);
    }
    pool.split_rows([(x, width)], &|range, [x]| rows(x, &positions[range]));
}

vectorised! {
    /// Turns every head by the angles of `turn`, times `sign`: a product with 1 or -1 changes no other bit.
    fn turn_row(turn: &[(f32, f32)], layout: RopeLayout, x: &mut [f32], sign: f32) {
        for head in x.chunks_exact_mut(turn.len() * 2) {
            match layout {
                RopeLayout::Interleaved => {
                    for (pair, &(cos, sin)) in head.chunks_exact_mut(2).zip(turn) {
                        let (a, b, sin) = (pair[0], pair[1], sin * sign);
                        pair[0] = a * cos - b * sin;
                        pair[1] = a * sin + b * cos;
                    }
                }
                RopeLayout::Halves => {
                    let (first, second) = head.split_at_mut(turn.len());
                    for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(turn) {
                        let sin = sin * sign;
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RopeLayout, RopeScaling, RopeTable, rope};

    #[test]
    fn rotates_pairs_by_position() {
        let table = RopeTable::new(8, 10_000.0, RopeScaling::None, 32);
        let x: Vec<f32> = (0..16).map(|i| i as f32 - 7.5).collect();
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            let mut y = x.clone();
            rope(&table, layout, &mut y, 2, 17);
            for head in 0..2 {
                for pair in 0..4 {
                    let (i, j) = match layout {
                        RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                        RopeLayout::Halves => (pair, pair + 4),
                    };
                    let (a, b) = (f64::from(x[head * 8 + i]), f64::from(x[head * 8 + j]));
                    let angle = 17.0 * 10_000f64.powf(-2.0 * pair as f64 / 8.0);
                    assert!((f64::from(y[head * 8 + i]) - (a * angle.cos() - b * angle.sin())).abs() < 1e-5);
                    assert!((f64::from(y[head * 8 + j]) - (a * angle.sin() + b * angle.cos())).abs() < 1e-5);
                }
            }
        }
    }
}
