//! Running sums of weights, likeliest token first, without sorting what need not be sorted.
//!
//! A token is drawn where the running sum of the weights passes a point. The sums are f32, so their bits depend on the order of the
//! weights, and sorting a whole vocabulary for every token takes longer than anything else in sampling. Three facts make most of that
//! needless, and change no bit:
//!
//! * The likeliest token weighs 1, so every sum is at least 1. A weight below half a unit in the last place of 1 (2^-24) changes no sum: its
//!   token is never drawn.
//! * As long as a sum stays below the next power of two, adding a weight adds a whole number of units in its last place: the weight
//!   rounded to such units. Unless a weight lies exactly between two of them, that number does not depend on the sum, and so the order
//!   of the weights does not matter.
//! * Sums never fall, so a point lies in the first part of the order whose last sum has passed it. Only that part is sorted.

use dunlin_kernels::softmax::weights;

/// Weights below this change no sum: half a unit in the last place of 1.
const WEIGHT_MIN: f32 = 1.0 / (1 << 24) as f32;
/// Fewer weights are sorted at once.
const SORTED_MAX: usize = 64;
/// The likeliest are split off first: what is behind them mostly needs no order.
const LIKELIEST: usize = 256;
/// Weights after which it is looked whether their order matters.
const BLOCK: usize = 1024;

/// Tokens that can be drawn, in parts that are in order; within a part they are not, until somebody asks.
pub(super) struct Ranking {
    /// A token's logit, mapped so that larger ones come first, above the bits of its weight.
    entries: Vec<u64>,
    /// Where parts end, with the running sum there.
    parts: Vec<(usize, f32)>,
}

/// Where the running sum first passed what was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    /// The running sum there.
    pub sum: f32,
    /// The logit of the token.
    pub logit: f32,
    /// How many tokens of the same logit are before it; they are in the order of their ids.
    pub before: usize,
}

impl Ranking {
    /// Of tokens with these logits, `max` being the largest, weighing `exp((logit - max) / temperature)`.
    pub fn new(logits: &[f32], max: f32, temperature: f32) -> Self {
        let weights = weights(logits, max, temperature);
        // Room for one more: every entry is written, and kept only if it counts. So nothing branches.
        let mut entries = vec![0; logits.len() + 1];
        let mut count = 0;
        for (logit, weight) in logits.iter().zip(weights) {
            entries[count] = u64::from(descending(*logit)) << 32 | u64::from(weight.to_bits());
            count += usize::from(weight >= WEIGHT_MIN);
        }
        entries.truncate(count);
        Self { entries, parts: Vec::new() }
    }

    /// The same, of the `count` likeliest tokens alone, `count` being at least 1.
    pub fn of_likeliest(logits: &[f32], max: f32, temperature: f32, count: usize) -> Self {
        if count >= logits.len() {
            return Self::new(logits, max, temperature);
        }
        let mut keys: Vec<u32> = logits.iter().map(|logit| descending(*logit)).collect();
        let (likelier, last, _) = keys.select_nth_unstable(count - 1);
        let likeliest: Vec<f32> = likelier.iter().chain([&*last]).map(|key| ascending(*key)).collect();
        Self::new(&likeliest, max, temperature)
    }

    /// Drops all tokens from the first one on that weighs less than `weight`, but never the likeliest one.
    pub fn keep_heavier(&mut self, weight: f32) {
        let Some(&likeliest) = self.entries.iter().min() else { return };
        let light = self.entries.iter().copied().filter(|entry| weight_of(*entry) < weight);
        if let Some(first) = light.min() {
            self.entries.retain(|entry| *entry < first);
        }
        if self.entries.is_empty() {
            self.entries.push(likeliest);
        }
    }

    /// The sum of all weights.
    pub fn sum(&mut self) -> f32 {
        self.parts.clear();
        add(0.0, &mut self.entries, 0, &mut self.parts)
    }

    /// The first token in order whose running sum `passes`. Once a sum passes, larger ones must, too. [`Ranking::sum`] must have been
    /// asked for since anything was dropped.
    pub fn first(&mut self, passes: impl Fn(f32) -> bool) -> Option<Found> {
        let part = self.parts.partition_point(|(_, sum)| !passes(*sum));
        let (mut end, _) = *self.parts.get(part)?;
        let (mut start, mut sum) = part.checked_sub(1).map_or((0, 0.0), |before| self.parts[before]);
        while end - start > SORTED_MAX {
            let middle = usize::midpoint(start, end);
            self.entries[start..end].select_nth_unstable(middle - start);
            let after = add(sum, &mut self.entries[start..middle], 0, &mut Vec::new());
            if passes(after) { end = middle } else { (start, sum) = (middle, after) }
        }
        self.entries[start..end].sort_unstable();
        let at = (start..end).find(|at| {
            sum += weight_of(self.entries[*at]);
            passes(sum)
        })?;
        let entry = self.entries[at];
        let before = self.entries[..at].iter().filter(|other| **other == entry).count();
        Some(Found { sum, logit: logit_of(entry), before })
    }
}

/// Adds the weights of `entries` to `sum` in order, and orders them as far as their sum needs it. The parts are added to `parts`, `start`
/// being where the entries begin.
fn add(sum: f32, entries: &mut [u64], start: usize, parts: &mut Vec<(usize, f32)>) -> f32 {
    let sum = if entries.len() <= SORTED_MAX {
        entries.sort_unstable();
        entries.iter().fold(sum, |sum, entry| sum + weight_of(*entry))
    } else if let Some(sum) = add_in_any_order(sum, entries) {
        sum
    } else {
        let middle = if sum == 0.0 { LIKELIEST.min(entries.len() / 2) } else { entries.len() / 2 };
        entries.select_nth_unstable(middle);
        let (first, second) = entries.split_at_mut(middle);
        let sum = add(sum, first, start, parts);
        return add(sum, second, start + middle, parts);
    };
    parts.push((start + entries.len(), sum));
    sum
}

/// Adds the weights of `entries` to `sum`, if their order does not matter.
fn add_in_any_order(sum: f32, entries: &[u64]) -> Option<f32> {
    if sum < 1.0 {
        return None;
    }
    // Exponent of the sum alone: between it and its double all floats are whole units apart.
    let power = f32::from_bits(sum.to_bits() & 0x7f80_0000);
    let half_unit = power * WEIGHT_MIN;
    let mut total = sum;
    for block in entries.chunks(BLOCK) {
        // Sums of whole units are exact while they are below `2 * power`, in any order.
        let (mut sums, mut between) = ([0f32; 8], [false; 8]);
        let (whole, rest) = block.as_chunks::<8>();
        let mut take = |lane: usize, entry: u64| {
            let weight = weight_of(entry);
            let units = (power + weight) - power;
            sums[lane] += units;
            between[lane] |= (weight - units).abs() == half_unit;
        };
        for chunk in whole {
            for (lane, entry) in chunk.iter().enumerate() {
                take(lane, *entry);
            }
        }
        for (lane, entry) in rest.iter().enumerate() {
            take(lane, *entry);
        }
        total += sums.iter().sum::<f32>();
        if total >= 2.0 * power || between.contains(&true) {
            return None;
        }
    }
    Some(total)
}

fn weight_of(entry: u64) -> f32 {
    f32::from_bits(entry as u32)
}

fn logit_of(entry: u64) -> f32 {
    ascending((entry >> 32) as u32)
}

/// The float that [`descending`] made `key` of.
fn ascending(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 0 { !key & !(1 << 31) } else { key })
}

/// The bits of a float, mapped so that whole numbers in ascending order are floats in descending total order.
pub(super) fn descending(value: f32) -> u32 {
    let bits = value.to_bits();
    let sign = (bits.cast_signed() >> 31).cast_unsigned();
    !(bits ^ (sign | 1 << 31))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Ranking, descending, logit_of};
    use crate::sampler::testing::logits;

    /// Weights in order, likeliest first, all of them.
    fn sorted(logits: &[f32], max: f32, temperature: f32) -> Vec<(f32, f32)> {
        let mut order = logits.to_vec();
        order.sort_by(|a, b| b.total_cmp(a));
        order.into_iter().map(|l| (l, dunlin_kernels::math::exp((l - max) / temperature))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sums_have_the_bits_of_sums_in_order(
            logits in logits(3000),
            temperature in 0.05f32..3.0,
            points in prop::collection::vec(0f32..1.0, 8),
        ) {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let order = sorted(&logits, max, temperature);
            let mut ranking = Ranking::new(&logits, max, temperature);
            let total: f32 = order.iter().map(|(_, weight)| weight).sum();
            prop_assert_eq!(ranking.sum().to_bits(), total.to_bits());
            for point in points {
                let mut sum = 0.0;
                let at = order.iter().position(|(_, weight)| {
                    sum += weight;
                    point * total < sum
                });
                let at = at.unwrap();
                let before = order[..at].iter().filter(|(l, _)| l.to_bits() == order[at].0.to_bits()).count();
                let found = ranking.first(|sum| point * total < sum).unwrap();
                prop_assert_eq!(
                    (found.logit.to_bits(), found.sum.to_bits(), found.before),
                    (order[at].0.to_bits(), sum.to_bits(), before)
                );
            }
        }
    }

    #[test]
    fn whole_numbers_stand_for_floats_in_descending_order() {
        let floats = [f32::MAX, 2.0, 1.0, f32::MIN_POSITIVE, 0.0, -0.0, -1e-40, -1.0, -7.5];
        assert!(floats.windows(2).all(|pair| descending(pair[0]) < descending(pair[1])));
        for float in floats {
            assert_eq!(logit_of(u64::from(descending(float)) << 32).to_bits(), float.to_bits());
        }
    }
}
