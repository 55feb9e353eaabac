use std::ops::Range;
use std::sync::Arc;

use dunlin_kernels::{GradientSums, Pool, gradient_sum};

use super::{Average, CHUNK, Share, Total, chunks, has_feedback, part, result_codec, sum_bytes};
use crate::config::GradientWire;

const ALL: [GradientWire; 4] = [GradientWire::Exact, GradientWire::F32, GradientWire::F16, GradientWire::Q8];
/// More than a chunk a member, and nothing is a multiple of anything.
const LEN: usize = 2 * CHUNK + 4567;

/// Between -1 and 1.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move || {
        z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (z >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// Two tensors with a gap between them: 3 and the rest.
fn tensors(len: usize) -> Vec<Range<usize>> {
    vec![1..4, 10..len + 7]
}

/// A member between steps.
struct Member {
    sums: Arc<GradientSums>,
    residual: Arc<Vec<f32>>,
}

impl Member {
    fn new(wire: GradientWire, len: usize) -> Self {
        let kept = if has_feedback(wire) { len + 7 } else { 0 };
        Self { sums: Arc::new(GradientSums::new(len + 7)), residual: Arc::new(vec![0.0; kept]) }
    }

    fn compute(&mut self, seed: u64) {
        let mut next = noise(seed);
        // More bits than an f32 has.
        let mut sum = || gradient_sum::to_fixed(next() * 1e-5) + gradient_sum::to_fixed(next() * 1e-9);
        let added: Vec<i64> = (0..self.sums.len()).map(|_| sum()).collect();
        let mut sums = GradientSums::new(added.len());
        sums.add_sums(&added);
        self.sums = Arc::new(sums);
    }

    fn share(&self, wire: GradientWire, len: usize) -> Share {
        Share::new(wire, Arc::clone(&self.sums), Arc::clone(&self.residual), tensors(len))
    }

    fn commit(&mut self, share: &Share, average: &Average) {
        if self.residual.is_empty() {
            return;
        }
        for (range, lost) in share.remaining(&Pool::new(2), average).unwrap() {
            Arc::make_mut(&mut self.residual)[range].copy_from_slice(&lost);
        }
    }
}

/// The average of a group, as each of its members holds it.
pub(crate) fn form(wire: GradientWire, shares: &[Share]) -> Vec<Average> {
    let (len, count) = (shares[0].len(), shares.len());
    let of = |index| Average { values: vec![0.0; len], index, count, lost: Vec::new(), bits: 0 };
    let mut all: Vec<Average> = (0..count).map(of).collect();
    for owner in 0..count {
        let mut total = Total::new(wire, count);
        for chunk in chunks(part(len, owner, count)) {
            total.begin(chunk.len());
            for (member, share) in shares.iter().enumerate() {
                if member == owner {
                    total.add_own(share, &chunk).unwrap();
                } else {
                    let bytes = share.encode(chunk.clone(), &mut Vec::new()).unwrap();
                    assert_eq!(bytes.len(), sum_bytes(wire, chunk.len()));
                    total.add(&bytes).unwrap();
                }
            }
            let Average { values, lost, .. } = &mut all[owner];
            let bytes = total.end(&mut values[chunk.clone()], lost).unwrap();
            for (_, other) in all.iter_mut().enumerate().filter(|(member, _)| *member != owner) {
                let mut decoded = Vec::new();
                result_codec(wire).decode(&bytes, chunk.len(), &mut decoded).unwrap();
                other.values[chunk.clone()].copy_from_slice(&decoded);
            }
        }
    }
    all.iter_mut().for_each(Average::seal);
    all
}

/// The values of a shard in a stage's vector.
fn of_shard<T: Copy>(values: &[T], len: usize) -> Vec<T> {
    tensors(len).into_iter().flat_map(|range| values[range].to_vec()).collect()
}

/// RMS of the difference, relative to that of `wanted`.
fn error(wanted: &[f64], values: &[f64]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    (squares(&mut wanted.iter().zip(values).map(|(a, b)| a - b)) / squares(&mut wanted.iter().copied()))
        .sqrt()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn all_members_hold_the_same_bits_and_the_error_is_that_of_the_codec() {
    for count in [1, 2, 3, 4] {
        let seeds = 0..count as u64;
        let shares = |wire| -> Vec<Share> {
            let one = |seed| {
                let mut member = Member::new(wire, LEN);
                member.compute(seed);
                member.share(wire, LEN)
            };
            seeds.clone().map(one).collect()
        };
        let all = shares(GradientWire::Exact);
        let exact: Vec<i64> =
            (0..LEN + 7).map(|i| all.iter().map(|share| share.sums.values()[i]).sum()).collect();
        let exact: Vec<f32> = of_shard(&exact, LEN).into_iter().map(gradient_sum::to_f32).collect();
        for wire in ALL {
            let averages = form(wire, &shares(wire));
            for average in &averages {
                let same =
                    average.values.iter().zip(&averages[0].values).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{wire:?}, {count} members");
                let own = part(LEN, average.index, count).len();
                assert_eq!(average.lost.len(), if has_feedback(wire) { own } else { 0 });
            }
            let lost = error(&wide(&exact), &wide(&averages[0].values));
            let most = match wire {
                GradientWire::Exact => 0.0,
                // Nothing travels.
                _ if count == 1 => 0.0,
                GradientWire::F32 => 1e-7,
                GradientWire::F16 => 4e-4,
                GradientWire::Q8 => 1e-2,
            };
            assert!(lost <= most && lost >= most / 10.0, "{wire:?}, {count} members: {lost}");
        }
    }
}

#[test]
fn with_feedback_errors_do_not_add_up_even_if_members_come_and_own_other_parts() {
    for (wire, most) in [(GradientWire::F16, 6e-5), (GradientWire::Q8, 1.5e-3)] {
        let mut members: Vec<Member> = (0..3).map(|_| Member::new(wire, LEN)).collect();
        let (mut wanted, mut with, mut without) = (vec![0.0; LEN], vec![0.0; LEN], vec![0.0; LEN]);
        let add = |sum: &mut Vec<f64>, values: &[f64]| sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
        for step in 0..16 {
            if step == 8 {
                members.push(Member::new(wire, LEN));
            }
            let mut exact = vec![0i64; LEN + 7];
            for (seed, member) in (0..).zip(&mut members) {
                // Nearly the same gradient each time, so that its error is, too.
                member.compute(seed);
                exact.iter_mut().zip(member.sums.values().iter()).for_each(|(sum, more)| *sum += more);
            }
            let exact: Vec<f32> = of_shard(&exact, LEN).into_iter().map(gradient_sum::to_f32).collect();
            add(&mut wanted, &wide(&exact));
            let empty = Arc::new(vec![0.0; LEN + 7]);
            let bare = |m: &Member| Share::new(wire, Arc::clone(&m.sums), Arc::clone(&empty), tensors(LEN));
            add(&mut without, &wide(&form(wire, &members.iter().map(bare).collect::<Vec<_>>())[0].values));

            let shares: Vec<Share> = members.iter().map(|m| m.share(wire, LEN)).collect();
            let averages = form(wire, &shares);
            // An average that is formed again, with somebody less meanwhile, is the same: nothing is kept before the commit.
            form(wire, &shares[1..]);
            let again: Vec<Share> = members.iter().map(|m| m.share(wire, LEN)).collect();
            assert_eq!(form(wire, &again), averages);
            add(&mut with, &wide(&averages[0].values));
            for ((member, share), average) in members.iter_mut().zip(&shares).zip(&averages) {
                member.commit(share, average);
            }
            // Everything that was not in the averages so far is in the residuals.
            for (i, (wanted, with)) in wanted.iter().zip(&with).enumerate().step_by(997) {
                let left: f64 = members.iter().map(|m| f64::from(of_shard(&m.residual, LEN)[i])).sum();
                assert!((wanted - with - left).abs() < 1e-9, "{wanted} {with} {left}");
            }
        }
        let (with, without) = (error(&wanted, &with), error(&wanted, &without));
        println!(
            "{wire:?}: relative error of the sum over 16 steps {with:.1e}, without feedback {without:.1e}"
        );
        assert!(with < most && with * 5.0 < without, "{wire:?} {with} {without}");
    }
}

#[test]
fn what_is_not_the_encoding_of_the_chunk_is_refused() {
    for wire in ALL {
        let mut total = Total::new(wire, 2);
        total.begin(100);
        let length = sum_bytes(wire, 100);
        total.add(&vec![0; length]).unwrap();
        for wrong in [0, length - 1, length + 1, length * 2] {
            total.add(&vec![0; wrong]).unwrap_err();
        }
    }
}
