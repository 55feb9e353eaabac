//! Which sequence comes when.
//!
//! Per epoch a permutation of the sequences: six rounds of a Feistel network keyed by (seed, epoch) on the smallest even number of bits that
//! has room, walked until it ends inside. It needs no memory, any place of it is computed alone, and it is the same on every machine and in
//! `e2e/torch/train.py`.

const ROUNDS: u64 = 6;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The order of `count` sequences, epoch after epoch.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    seed: u64,
    count: u64,
    half_bits: u32,
}

impl Order {
    /// An order of `count` sequences, at least 1 and fewer than 2^62.
    #[must_use]
    pub fn new(seed: u64, count: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self { seed, count: count.max(1), half_bits: bits.div_ceil(2).max(1) }
    }

    /// The sequence at `position`, counted from the beginning of training: below `count`.
    #[must_use]
    pub fn sequence(&self, position: u64) -> u64 {
        let (epoch, mut at) = (position / self.count, position % self.count);
        let key = mix(self.seed ^ mix(epoch.wrapping_add(GOLDEN)));
        // The network permutes fewer than 4 * count numbers, so this ends: at the latest where it began.
        loop {
            at = self.permuted(key, at);
            if at < self.count {
                return at;
            }
        }
    }

    fn permuted(&self, key: u64, at: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (at >> self.half_bits, at & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (mix(key ^ mix((round << 32) ^ right)) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The finaliser of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Order;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn an_epoch_has_every_sequence_once(seed: u64, count in 1u64..3000, epoch in 0u64..1_000_000) {
            let order = Order::new(seed, count);
            let mut seen = vec![false; count as usize];
            for i in 0..count {
                let sequence = order.sequence(epoch * count + i) as usize;
                prop_assert!(!std::mem::replace(&mut seen[sequence], true));
            }
        }
    }

    #[test]
    fn orders_of_other_seeds_and_epochs_differ_and_are_not_sorted() {
        let count = 1000;
        let epoch = |seed, epoch| -> Vec<u64> {
            let order = Order::new(seed, count);
            (0..count).map(|i| order.sequence(epoch * count + i)).collect()
        };
        let first = epoch(1, 0);
        assert_eq!(first, epoch(1, 0));
        for other in [epoch(1, 1), epoch(2, 0), (0..count).collect()] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of {count}");
        }
        // Neighbours are as far from each other as in any shuffle: a third of the whole on average.
        let steps: u64 = first.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum();
        let mean = steps as f64 / 999.0;
        assert!((mean - 333.0).abs() < 30.0, "{mean}");
    }

    /// `e2e/torch/train.py --check-order` reads the same file.
    #[test]
    fn the_order_is_that_of_the_fixture() {
        let fixture: serde_json::Value = serde_json::from_str(include_str!("order.json")).unwrap();
        let cases = fixture.as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            let number = |key: &str| case[key].as_u64().unwrap();
            let order = Order::new(number("seed"), number("count"));
            let found: Vec<u64> = (0..16).map(|i| order.sequence(number("from") + i)).collect();
            let expected: Vec<u64> =
                case["sequences"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
            assert_eq!(found, expected, "{case}");
        }
    }
}
