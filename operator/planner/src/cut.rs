//! Where the pipeline is cut: spans for members, by speed and within memory; places that lost peers left; and whether cutting anew is
//! worth moving layers for.

use std::collections::BTreeSet;

use crate::layout::{Member, Wanted};
use crate::partition::{Capacity, partition};
use crate::topology::{Layers, ranges};

/// A new cut moves layers only if the slowest stage gets faster by more than this, in percent.
pub const GAIN_PERCENT_MIN: u32 = 10;
/// Peers whose measured rate is within this factor of the median count as equal: rates measured under load are noisy.
const RATE_NOISE: f64 = 1.5;

/// Rows per second through one layer of each member, cleaned: what is not measured is taken for the median, as is what differs
/// from it by noise alone.
#[must_use]
pub fn rates(members: &[&Member]) -> Vec<f64> {
    let measured = |rate: f64| rate.is_finite() && rate > 0.0;
    let mut known: Vec<f64> =
        members.iter().map(|m| m.rows_per_s_per_layer).filter(|r| measured(*r)).collect();
    known.sort_by(f64::total_cmp);
    let median = known.get(known.len() / 2).copied().unwrap_or(1.0);
    members
        .iter()
        .map(|m| match m.rows_per_s_per_layer {
            rate if measured(rate) && (rate > median * RATE_NOISE || rate * RATE_NOISE < median) => rate,
            _ => median,
        })
        .collect()
}

/// Spans for `members` in their order, and whether every span fits into its member's memory.
///
/// First within the memory that leaves room for shadows, then within all memory, then as if there were enough.
#[must_use]
pub fn cut(wanted: &Wanted, members: &[&Member]) -> (Vec<Layers>, bool) {
    let copies = wanted.shadows.min(members.len().saturating_sub(1)) as u64;
    let fitting = [copies + 1, 1].into_iter().find_map(|share| within(wanted, members, share));
    if let Some(spans) = fitting {
        return (spans, true);
    }
    let layers = wanted.layers();
    let all = rates(members).into_iter().map(|rate| Capacity { rate, layers_max: layers });
    (partition(layers, &all.collect::<Vec<_>>()).unwrap_or_default(), false)
}

/// Spans that fit into a `share`-th of each member's memory.
fn within(wanted: &Wanted, members: &[&Member], share: u64) -> Option<Vec<Layers>> {
    let layers = wanted.layers();
    let all = rates(members).into_iter().map(|rate| Capacity { rate, layers_max: layers });
    let mut capacities: Vec<Capacity> = all.collect();
    loop {
        let spans = partition(layers, &capacities).ok()?;
        let mut fits = true;
        for ((span, member), capacity) in spans.iter().zip(members).zip(&mut capacities) {
            let room = member.weight_bytes_max / share;
            let mut used = 0u64;
            let fit = span.iter().take_while(|&layer| {
                used = used.saturating_add(wanted.bytes(layer));
                used <= room
            });
            let fit = u32::try_from(fit.count()).unwrap_or(u32::MAX);
            if fit < span.len() {
                // Never more than this again, so the loop ends.
                (capacity.layers_max, fits) = (fit, false);
            }
        }
        if fits {
            return Some(spans);
        }
    }
}

/// By how many percent the slowest stage of `spans` would get faster if it were cut like `better`.
#[must_use]
pub fn gain_percent(members: &[&Member], spans: &[Layers], better: &[Layers]) -> u32 {
    let rates = rates(members);
    let slowest = |spans: &[Layers]| {
        spans.iter().zip(&rates).map(|(span, rate)| f64::from(span.len()) / rate).fold(0.0, f64::max)
    };
    let (now, then) = (slowest(spans), slowest(better));
    if now > 0.0 && then < now { ((1.0 - then / now) * 100.0).floor() as u32 } else { 0 }
}

/// Places for `missing` peers in the layers that none of `spans` covers: one in each gap, more in wide ones. `usual`: layers of an
/// average peer. `None` when there are more gaps than missing peers: fewer peers are wanted now.
#[must_use]
pub fn places(spans: &[Layers], layers: u32, missing: usize, usual: f64) -> Option<Vec<Layers>> {
    let covered: BTreeSet<u32> = spans.iter().flat_map(|span| span.iter()).collect();
    let gaps = ranges(&(0..layers).filter(|l| !covered.contains(l)).collect());
    if gaps.len() > missing {
        return None;
    }
    let mut pieces = vec![1u32; gaps.len()];
    for _ in gaps.len()..missing {
        // A piece much smaller than a usual span is no place: who took it would hardly help.
        let width = |i: usize| f64::from(gaps[i].len()) / f64::from(pieces[i]);
        let fits =
            |i: &usize| f64::from(gaps[*i].len()) / f64::from(pieces[*i] + 1) >= (usual * 0.75).max(1.0);
        let widest = (0..gaps.len()).filter(fits).max_by(|a, b| width(*a).total_cmp(&width(*b)));
        let Some(widest) = widest else { break };
        pieces[widest] += 1;
    }
    let split = |(gap, pieces): (&Layers, u32)| {
        let at = |i: u32| gap.start + gap.len() * i / pieces;
        (0..pieces).map(|i| Layers::new(at(i), at(i + 1))).collect::<Vec<_>>()
    };
    Some(gaps.iter().zip(pieces).flat_map(split).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(rates: &[f64]) -> Vec<Member> {
        let member = |rate: &f64| Member {
            rows_per_s_per_layer: *rate,
            weight_bytes_max: u64::MAX,
            ..Member::default()
        };
        rates.iter().map(member).collect()
    }

    #[test]
    fn noise_and_missing_measurements_make_no_difference_and_real_ones_do() {
        let rates = |of: &[f64]| super::rates(&members(of).iter().collect::<Vec<_>>());
        assert_eq!(rates(&[100.0, 130.0, 0.0, f64::NAN]), [130.0; 4]);
        assert_eq!(rates(&[400.0, 200.0, 100.0]), [400.0, 200.0, 100.0]);
        assert_eq!(rates(&[0.0, 0.0]), [1.0; 2]);
    }

    #[test]
    fn the_embedding_in_the_first_layer_leaves_less_room_for_others() {
        let mut all = members(&[1.0; 3]);
        for member in &mut all {
            member.weight_bytes_max = 12;
        }
        let mut wanted = Wanted { layer_bytes: vec![1; 30], ..Wanted::default() };
        wanted.layer_bytes[0] = 5;
        let (spans, fits) = cut(&wanted, &all.iter().collect::<Vec<_>>());
        assert_eq!((spans.iter().map(|s| s.len()).collect::<Vec<_>>(), fits), (vec![8, 11, 11], true));
        wanted.layer_bytes[0] = 12;
        assert!(!cut(&wanted, &all.iter().collect::<Vec<_>>()).1);
    }

    #[test]
    fn each_gap_is_a_place_and_a_wide_one_is_as_many_as_are_missing() {
        let l = Layers::new;
        let places = |spans: &[Layers], missing| places(spans, 30, missing, 10.0);
        assert_eq!(places(&[l(0, 10), l(20, 30)], 1), Some(vec![l(10, 20)]));
        assert_eq!(places(&[l(0, 10)], 2), Some(vec![l(10, 20), l(20, 30)]));
        // One peer with more than its equal share was lost: one place.
        assert_eq!(places(&[l(0, 8), l(25, 30)], 1), Some(vec![l(8, 25)]));
        assert_eq!(places(&[l(0, 10), l(20, 30)], 0), None);
        // More peers are wanted than there are places.
        assert_eq!(places(&[l(0, 10), l(20, 30)], 3), Some(vec![l(10, 20)]));
    }
}
